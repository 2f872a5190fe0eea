"""A node that brings blocks from elsewhere instead of computing them, and gives its own away."""

from __future__ import annotations

import pytest
from node_driver import NodeDriver, make_work

from kvstore.prefix import block_hashes, pack_keys
from pd.messages import (
    Abort,
    AbortTransfer,
    Fetch,
    Granted,
    PeerLost,
    StartPrefill,
    Stopped,
)
from pd.outbox import CancelPush, Expect, Forget, Push
from pd.types import Source, Work

POOL = Source("pool-0", 9, 2)  # has the first two blocks
TIMEOUT_S = 2.0
LIMITS = {"max_num_batched_tokens": 4, "fetch_timeout_s": TIMEOUT_S}


@pytest.fixture
def p() -> NodeDriver:
    return NodeDriver("p0", "prefill", **LIMITS)


def start(node: NodeDriver, work: Work, transfer_id: int = 1, *sources: Source) -> None:
    decode = "d0" if node.core.role == "prefill" else node.core.node_id
    node.order(StartPrefill(work, transfer_id, decode, 1, sources or (POOL,)))
    if decode == "d0":
        count = -(-work.num_tokens // node.pool.block_size)
        node.hear("d0", Granted(transfer_id, 0, tuple(range(10, 10 + count))))


def finish(node: NodeDriver) -> int:
    """Run until nothing is left to run; how many steps that took."""
    steps = 0
    while node.begin_step():
        node.finish_step()
        steps += 1
    return steps


def computed(node: NodeDriver) -> int:
    return node.core.snapshot(node.now).prefill_tokens


def test_leading_blocks_are_fetched_and_only_the_rest_is_computed(p: NodeDriver) -> None:
    work = make_work(13)
    start(p, work)
    (fetch,) = p.sent(Fetch, "pool-0")
    (expect,) = p.effects(Expect)
    assert (expect.sender, expect.sender_epoch, expect.blocks) == ("pool-0", 9, fetch.blocks)
    assert fetch.epoch == 1 and len(fetch.keys) == 2 * 32 and len(fetch.blocks) == 2
    assert not p.begin_step(), "it waits for its blocks"
    p.arrived(0, 2, fetch.transfer_id)
    assert p.effects(Forget)
    assert finish(p) == 2, "5 of 13 tokens in steps of 4"
    assert p.core.snapshot(p.now).fetched_tokens == 8
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


def test_the_last_token_is_always_computed(p: NodeDriver) -> None:
    start(p, make_work(8))
    (fetch,) = p.sent(Fetch)
    assert len(fetch.blocks) == 1


def test_what_is_here_is_not_fetched(p: NodeDriver) -> None:
    start(p, make_work(13), 1, Source("pool-0", 9, 0))
    finish(p)
    start(p, make_work(13, name="again"), 2)
    assert not p.sent(Fetch)


def test_a_fetch_that_brings_a_part_is_used_as_far_as_it_goes(p: NodeDriver) -> None:
    start(p, make_work(13))
    (fetch,) = p.sent(Fetch)
    p.hear("pool-0", Stopped(fetch.transfer_id))
    p.arrived(0, 1, fetch.transfer_id)  # was under way when the pool said so
    assert not p.begin_step()
    p.tick()
    assert finish(p) == 3
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


def test_the_next_source_goes_on_where_the_first_stopped(p: NodeDriver) -> None:
    start(p, make_work(13), 1, POOL, Source("p1", 5, 3))
    (fetch,) = p.sent(Fetch, "pool-0")
    p.arrived(0, 2, fetch.transfer_id)
    (more,) = p.sent(Fetch, "p1")
    assert len(more.blocks) == 1
    p.arrived(0, 1, more.transfer_id)
    assert finish(p) == 1


def test_damaged_blocks_are_computed_instead(p: NodeDriver) -> None:
    start(p, make_work(13))
    (fetch,) = p.sent(Fetch)
    p.arrived(0, 2, fetch.transfer_id, ok=False)
    assert [stop.transfer_id for stop in p.sent(AbortTransfer, "pool-0")] == [fetch.transfer_id]
    assert finish(p) == 4
    held = p.num_held
    p.hear("pool-0", Stopped(fetch.transfer_id))
    p.tick()
    assert p.num_held == held - 2, "the pages waited for the pool's word"


def test_a_silent_source_is_given_up_and_its_pages_wait(p: NodeDriver) -> None:
    start(p, make_work(13))
    (fetch,) = p.sent(Fetch)
    p.tick(TIMEOUT_S / 2)
    assert not p.begin_step()
    p.tick(TIMEOUT_S)
    assert p.sent(AbortTransfer, "pool-0")
    assert finish(p) == 4
    assert set(fetch.blocks).isdisjoint(p.effects(Push)[0].src), "written to by a stranger"
    p.hear("coordinator", PeerLost("pool-0", 9))
    p.tick()
    assert not len(p.core.fetcher)


def test_a_source_that_dies_is_given_up_at_once(p: NodeDriver) -> None:
    start(p, make_work(13))
    p.hear("coordinator", PeerLost("pool-0", 8))
    p.tick()
    assert not p.begin_step(), "that was the process before it"
    p.hear("coordinator", PeerLost("pool-0", 9))
    p.tick()
    assert finish(p) == 4


def test_two_prompts_wait_for_one_fetch(p: NodeDriver) -> None:
    start(p, make_work(13))
    start(p, make_work(13, name="twin"), 2)
    (fetch,) = p.sent(Fetch)
    p.arrived(0, 2, fetch.transfer_id)
    finish(p)
    assert computed(p) == 5 + 1, "the twin has the third block from the first"


def test_a_prompt_cancelled_while_its_blocks_come(p: NodeDriver) -> None:
    start(p, make_work(13))
    (fetch,) = p.sent(Fetch)
    p.order(Abort("r", (0,), 0))
    assert not p.core.prefill.tasks and p.core.prefill.waiting_tokens == 0
    p.arrived(0, 2, fetch.transfer_id)
    p.core.check_idle()
    assert p.pool.num_cached == 2


def test_slow_sources_are_not_asked_and_tried_again_later(p: NodeDriver) -> None:
    start(p, make_work(13), 1, Source("pool-0", 9, 0))
    finish(p)  # its rate is known now
    start(p, make_work(13, name="b", first=300), 2)
    (fetch,) = p.sent(Fetch)
    p.now += 1.0
    p.arrived(0, 2, fetch.transfer_id)  # half a second a block
    finish(p)
    start(p, make_work(13, name="c", first=500), 3)
    assert not p.sent(Fetch) and finish(p)
    p.tick(60.0)
    start(p, make_work(13, name="d", first=700), 4)
    assert p.sent(Fetch)


def test_without_room_nothing_is_fetched() -> None:
    p = NodeDriver("p0", "prefill", num_blocks=4, **LIMITS)
    p.pool.allocate(3)
    p.core.on_message("c", StartPrefill(make_work(13), 1, "d0", 1, (POOL,)), p.now)
    assert not p.sent(Fetch)


def test_a_mixed_node_fetches_before_it_asks_itself_for_room() -> None:
    m = NodeDriver("m0", "mixed", **LIMITS)
    start(m, make_work(13))
    (fetch,) = m.sent(Fetch)
    assert not m.core.decode.handoffs
    m.arrived(0, 2, fetch.transfer_id)
    assert finish(m) > 2
    assert m.core.snapshot(m.now).cache_hit_tokens == 8
    m.core.check_idle()


# ---------------------------------------------------------------- the same prompt at once
def test_a_prompt_waits_for_another_that_computes_its_blocks(p: NodeDriver) -> None:
    start(p, make_work(21), 1, Source("pool-0", 9, 0))
    start(p, make_work(21, name="twin"), 2, Source("pool-0", 9, 0))
    finish(p)
    assert computed(p) == 21 + 1
    assert p.core.snapshot(p.now).cache_hit_tokens == 20
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


def test_it_goes_on_alone_when_the_other_is_cancelled(p: NodeDriver) -> None:
    start(p, make_work(21), 1, Source("pool-0", 9, 0))
    start(p, make_work(21, name="twin"), 2, Source("pool-0", 9, 0))
    p.step()
    p.order(Abort("r", (0,), 0))
    assert finish(p) == 5, "17 tokens are left"
    p.order(Abort("twin", (0,), 0))
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


def test_a_waiting_twin_can_be_cancelled(p: NodeDriver) -> None:
    start(p, make_work(21), 1, Source("pool-0", 9, 0))
    start(p, make_work(21, name="twin"), 2, Source("pool-0", 9, 0))
    p.step()
    p.order(Abort("twin", (0,), 0))
    assert finish(p) == 5
    assert p.core.prefill.waiting_tokens == 0


def test_on_a_mixed_node_the_twin_takes_the_blocks_that_were_computed() -> None:
    m = NodeDriver("m0", "mixed", **LIMITS)
    start(m, make_work(21, max_tokens=1), 1, Source("pool-0", 9, 0))
    start(m, make_work(21, name="twin", max_tokens=1), 2, Source("pool-0", 9, 0))
    finish(m)
    assert computed(m) == 21 + 1
    assert m.core.snapshot(m.now).cache_hit_tokens == 20
    m.core.check_idle()


# ---------------------------------------------------------------- giving
def keys_of(work: Work, node: NodeDriver) -> list[bytes]:
    root = node.core._root_of(work.request)
    return block_hashes(work.request.prompt, node.pool.block_size, root)


def test_a_node_gives_what_it_has_cached(p: NodeDriver) -> None:
    work = make_work(13)
    start(p, work, 1, Source("pool-0", 9, 0))
    finish(p)
    for push in p.effects(Push):
        p.pushed(push)
    keys = keys_of(work, p)
    p.hear("p1", Fetch(77 | 1 << 62, 5, pack_keys([*keys, b"x" * 32]), (3, 4, 5, 6)))
    (push,) = p.effects(Push)
    assert (push.receiver, push.receiver_epoch, push.dst) == ("p1", 5, (3, 4, 5))
    assert p.num_held == 3
    p.pushed(push)
    assert p.sent(Stopped, "p1") == [Stopped(77 | 1 << 62)], "the fourth it does not have"
    p.core.check_idle()
    p.hear("p1", Fetch(78 | 1 << 62, 5, b"y" * 32, (3,)))
    assert p.sent(Stopped, "p1") == [Stopped(78 | 1 << 62)]


def test_a_reader_that_gives_up_or_dies(p: NodeDriver) -> None:
    work = make_work(13)
    start(p, work, 1, Source("pool-0", 9, 0))
    finish(p)
    for push in p.effects(Push):
        p.pushed(push)
    packed = pack_keys(keys_of(work, p))
    for transfer_id, word in (
        (77 | 1 << 62, AbortTransfer(77 | 1 << 62, "too slow")),
        (78 | 1 << 62, PeerLost("p1", 5)),
    ):
        p.hear("p1", Fetch(transfer_id, 5, packed, (3, 4, 5)))
        (push,) = p.effects(Push)
        p.hear("p1", word)
        assert p.effects(CancelPush) == [CancelPush(transfer_id)]
        assert p.num_held == 3, "the transport may still read them"
        p.pushed(push, ok=False)
        assert p.sent(Stopped, "p1")
        p.core.check_idle()


def test_an_output_dropped_while_blocks_come_is_not_waited_for() -> None:
    m = NodeDriver("m0", "mixed", **LIMITS)
    start(m, make_work(13, n=2))
    (fetch,) = m.sent(Fetch)
    m.order(Abort("r", (1,), 0))
    m.arrived(0, 2, fetch.transfer_id)
    m.order(Abort("r", (0,), 0))
    m.core.check_idle()
