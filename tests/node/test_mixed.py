"""A node that serves both phases: prompts that stay where they were prefilled."""

from __future__ import annotations

import pytest
from node_driver import NodeDriver, make_work

from pd.messages import Abort, Granted, Message, PrefillDone, Renew, Snapshot, Stopped
from pd.outbox import Expect, Push, Send


@pytest.fixture
def m() -> NodeDriver:
    return NodeDriver("m0", "mixed")


def local(m: NodeDriver, num_tokens: int = 10, transfer_id: int = 1, **work: object) -> None:
    m.start_prefill(make_work(num_tokens, **work), transfer_id, decode="m0")  # type: ignore[arg-type]


def assert_idle(m: NodeDriver) -> None:
    m.core.check_idle()
    assert m.core.decode._incoming_seqs == 0 and m.core.prefill.waiting_tokens == 0


def test_a_prompt_that_stays_moves_no_block(m: NodeDriver) -> None:
    local(m, max_tokens=3)
    for _ in range(4):
        m.step()
    assert [event.position for event in m.tokens()] == [0, 1, 2]
    sends: list[Message] = [send.message for send in m.effects(Send)]
    assert not [x for x in sends if isinstance(x, Granted | PrefillDone | Renew | Stopped)]
    assert not m.effects(Push) and not m.effects(Expect)
    assert_idle(m)


def test_prompts_ride_on_decode_steps_within_the_budget(m: NodeDriver) -> None:
    local(m, 4, name="a", n=2, max_tokens=50)
    m.step()
    local(m, 20, 2, name="b", first=500, max_tokens=50)
    sizes = []
    for _ in range(4):
        m.begin_step()
        plan = m.node.plan
        assert plan is not None
        sizes.append((len(plan.decodes), sum(chunk.num_tokens for chunk in plan.chunks)))
        m.finish_step()
    assert sizes == [(2, 6), (2, 6), (2, 6), (2, 2)]
    m.begin_step()
    assert m.node.plan is not None and len(m.node.plan.decodes) == 3


def test_a_batch_that_fills_the_budget_leaves_none_for_prompts() -> None:
    m = NodeDriver("m0", "mixed", max_num_batched_tokens=2, num_blocks=40)
    local(m, 2, name="a", n=2, max_tokens=3)
    m.step()
    local(m, 4, 2, name="b", max_tokens=2)
    for _ in range(2):
        m.begin_step()
        assert m.node.plan is not None and not m.node.plan.chunks
        m.finish_step()
    m.begin_step()
    assert m.node.plan is not None and m.node.plan.chunks


def test_the_rest_of_a_cached_prompt_is_computed_in_place(m: NodeDriver) -> None:
    local(m, 12, max_tokens=1)
    m.step()
    m.step()
    local(m, 12, 2, name="again", max_tokens=1)
    m.begin_step()
    assert m.node.plan is not None and m.node.plan.num_tokens == 4
    m.finish_step()
    assert m.core.snapshot(m.now).cache_hit_tokens == 8
    assert_idle(m)


def test_outputs_that_end_with_their_first_token_free_the_prompt(m: NodeDriver) -> None:
    local(m, 6, n=3, max_tokens=1)
    m.step()
    assert len(m.tokens()) == 3
    assert_idle(m)


def test_a_prompt_waits_for_room_to_decode_in() -> None:
    m = NodeDriver("m0", "mixed", num_blocks=6)
    local(m, 8, name="a", max_tokens=3)
    local(m, 16, 2, name="b", first=500, max_tokens=3)
    m.step()
    assert m.core.snapshot(m.now).num_reserving == 1 and m.core.prefill.waiting_tokens == 16
    while m.begin_step():
        m.finish_step()
    assert len(m.tokens()) == 6
    assert_idle(m)


# ---------------------------------------------------------------- aborts
def test_abort_while_waiting_for_room() -> None:
    m = NodeDriver("m0", "mixed", num_blocks=6)
    local(m, 8, name="a")
    local(m, 16, 2, name="b")
    m.order(Abort("b", (0,), 0))
    m.order(Abort("a", (0,), 0))
    assert_idle(m)


def test_abort_with_room_but_before_the_first_chunk(m: NodeDriver) -> None:
    local(m)
    assert m.num_held == 3
    m.order(Abort("r", (0,), 0))
    assert_idle(m)


def test_abort_between_chunks(m: NodeDriver) -> None:
    local(m)
    m.step()
    m.order(Abort("r", (0,), 0))
    assert_idle(m)


@pytest.mark.parametrize("num_tokens", [6, 10])
def test_abort_with_a_chunk_in_flight(m: NodeDriver, num_tokens: int) -> None:
    local(m, num_tokens)
    m.begin_step()
    held = m.num_held
    m.order(Abort("r", (0,), 0))
    assert m.num_held == held, "the step still writes there"
    m.finish_step()
    assert not m.tokens()
    assert_idle(m)


def test_room_is_not_given_away_while_a_cancelled_chunk_is_in_flight() -> None:
    m = NodeDriver("m0", "mixed", num_blocks=3)
    local(m, 10, name="a", max_tokens=2)
    m.begin_step()
    m.order(Abort("a", (0,), 0))
    local(m, 10, 2, name="b", max_tokens=2)
    assert m.core.decode.handoffs[2].table == []
    m.finish_step()
    assert len(m.core.decode.handoffs[2].table) == 3
    while m.begin_step():
        m.finish_step()
    assert len(m.tokens()) == 2
    assert_idle(m)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("steps_before", [0, 1, 2, 3])
def test_one_output_is_aborted(m: NodeDriver, index: int, steps_before: int) -> None:
    local(m, 10, n=3, max_tokens=4)
    for _ in range(steps_before):
        m.step()
    m.begin_step()
    m.order(Abort("r", (index,), 0))
    m.finish_step()
    while m.begin_step():
        m.finish_step()
    finished = {event.index for event in m.tokens() if event.finish}
    assert finished == {0, 1, 2} - {index}
    assert_idle(m)


# ---------------------------------------------------------------- what the coordinator hears
def test_snapshots_say_what_there_is(m: NodeDriver) -> None:
    local(m, 10, 7, n=2, max_tokens=9)
    m.tick()
    ((first),) = m.sent(Snapshot)
    assert first.snapshot.last_transfer_id == 7 and first.snapshot.waiting_tokens == 10
    m.step()
    m.step()
    m.step()
    m.tick(1.0)
    ((second),) = m.sent(Snapshot)
    snapshot = second.snapshot
    assert (snapshot.num_running, snapshot.waiting_tokens, snapshot.num_waiting) == (2, 0, 0)
    assert snapshot.running_tokens == 24 and snapshot.steps == 3
    assert (snapshot.prefill_tokens, snapshot.decode_tokens) == (10, 2)
    assert snapshot.free_blocks == m.pool.num_free and snapshot.prefill_rate > 0


def test_snapshots_are_not_sent_more_often_than_wanted(m: NodeDriver) -> None:
    local(m, 1, max_tokens=50)
    for _ in range(30):
        m.step()
        m.tick(0.01)
    sent = len(m.sent(Snapshot))
    assert 5 <= sent <= 1 + m.now / m.core.limits.snapshot_s


def test_an_idle_node_shows_that_it_is_alive(m: NodeDriver) -> None:
    m.tick()
    m.clear()
    m.tick(m.core.next_tick() - m.now)
    m.tick(m.core.limits.heartbeat_s)
    assert m.sent(Snapshot)


def test_a_node_that_is_not_welcomed_yet_says_nothing() -> None:
    m = NodeDriver("m0", "mixed")
    m.core.epoch = 0
    m.tick(10.0)
    assert not m.sent(Snapshot)


def test_steps_come_one_after_the_other(m: NodeDriver) -> None:
    local(m)
    m.begin_step()
    with pytest.raises(RuntimeError, match="in flight"):
        m.core.plan(m.now)
    m.finish_step()
    with pytest.raises(RuntimeError, match="no step"):
        m.core.commit([], m.now)


def test_a_message_it_has_no_use_for_is_an_error(m: NodeDriver) -> None:
    with pytest.raises(TypeError, match="Snapshot"):
        m.hear("x", Snapshot(m.core.snapshot(0.0)))
