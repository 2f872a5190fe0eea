"""A node that gives the pool what it has computed."""

from __future__ import annotations

import pytest
from node_driver import LEASE_S, NodeDriver, make_work

from kvstore.prefix import unpack_keys
from pd.messages import Abort, AbortTransfer, PeerLost, Put, PutGranted, Stopped, UsePool
from pd.outbox import CancelPush, Push


@pytest.fixture
def m() -> NodeDriver:
    node = NodeDriver("m0", "mixed", num_blocks=40)
    node.order(UsePool("pool-0", 9))
    return node


def served(m: NodeDriver, num_tokens: int = 9, *, max_tokens: int = 1, name: str = "r") -> None:
    """Run a prompt and its output to the end."""
    m.start_prefill(make_work(num_tokens, max_tokens=max_tokens, name=name), 1, decode="m0")
    while m.begin_step():
        m.finish_step()


def test_full_blocks_of_a_prompt_are_put(m: NodeDriver) -> None:
    served(m)
    (put,) = m.sent(Put, "pool-0")
    assert put.epoch == 1 and len(unpack_keys(put.keys)) == 2
    assert m.num_held == 2
    m.hear("pool-0", PutGranted(put.transfer_id, (1,), (30,)))
    (push,) = m.effects(Push)
    assert (push.receiver, push.receiver_epoch, push.dst) == ("pool-0", 9, (30,))
    m.pushed(push)
    m.core.check_idle()
    assert m.core.publisher.num_put == 1 and not m.sent(Stopped)


def test_what_decode_has_written_is_put_when_the_sequence_ends(m: NodeDriver) -> None:
    served(m, 9, max_tokens=8)
    prompt, whole = m.sent(Put)
    assert len(unpack_keys(prompt.keys)) == 2
    assert len(unpack_keys(whole.keys)) == 4, "17 tokens, the last of them without KV"
    assert unpack_keys(whole.keys)[:2] == unpack_keys(prompt.keys)
    for put in (prompt, whole):
        m.hear("pool-0", PutGranted(put.transfer_id, (), ()))
    m.core.check_idle()


def test_also_when_it_is_cancelled(m: NodeDriver) -> None:
    m.start_prefill(make_work(9, max_tokens=100), 1, decode="m0")
    for _ in range(10):
        m.step()
    m.sent(Put)
    m.order(Abort("r", (0,), 0))
    (put,) = m.sent(Put)
    assert len(unpack_keys(put.keys)) >= 3


def test_nothing_is_put_without_a_pool() -> None:
    m = NodeDriver("m0", "mixed")
    served(m)
    assert not m.sent(Put)
    m.order(UsePool("pool-0", 9))
    m.order(UsePool("", 0))
    served(m, name="again")
    assert not m.sent(Put)


@pytest.mark.parametrize("word", ["lost", "silent", "abort"])
def test_a_pool_that_does_not_answer(m: NodeDriver, word: str) -> None:
    served(m)
    (put,) = m.sent(Put)
    if word == "lost":
        m.hear("coordinator", PeerLost("pool-0", 9))
    elif word == "silent":
        m.tick(LEASE_S + 0.1)
    else:
        m.hear("pool-0", AbortTransfer(put.transfer_id, "no time"))
    m.core.check_idle()
    assert m.sent(Stopped, "pool-0") == [Stopped(put.transfer_id)]
    m.hear("pool-0", PutGranted(put.transfer_id, (0,), (30,)))
    assert m.sent(Stopped, "pool-0") == [Stopped(put.transfer_id)], "its pages are free again"


def test_blocks_are_held_until_the_push_is_back(m: NodeDriver) -> None:
    served(m)
    (put,) = m.sent(Put)
    m.hear("pool-0", PutGranted(put.transfer_id, (0, 1), (30, 31)))
    (push,) = m.effects(Push)
    m.hear("coordinator", PeerLost("pool-0", 9))
    assert m.effects(CancelPush) == [CancelPush(put.transfer_id)] and m.num_held == 2
    m.pushed(push, ok=False)
    m.core.check_idle()


def test_a_grant_that_makes_no_sense_is_refused(m: NodeDriver) -> None:
    served(m)
    (put,) = m.sent(Put)
    m.hear("pool-1", PutGranted(put.transfer_id, (0,), (30,)))
    assert m.num_held == 2 and not m.effects(Push), "not the pool that was asked"
    m.hear("pool-0", PutGranted(put.transfer_id, (5,), (30,)))
    assert m.sent(Stopped, "pool-0") and not m.effects(Push)
    m.core.check_idle()


def test_no_more_is_offered_than_may_be_held() -> None:
    m = NodeDriver("m0", "mixed", num_blocks=20)
    m.order(UsePool("pool-0", 9))
    for i in range(4):
        m.start_prefill(make_work(9, max_tokens=1, name=f"r{i}", first=100 * i), i + 1, "m0")
        while m.begin_step():
            m.finish_step()
    assert [len(unpack_keys(put.keys)) for put in m.sent(Put)] == [2, 2, 1], "a quarter of 20"
    assert m.core.publisher.num_skipped == 3
    assert m.num_held == 5
