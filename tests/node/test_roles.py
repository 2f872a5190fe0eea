"""A node that becomes another: what it was doing goes on elsewhere, or ends here."""

from __future__ import annotations

import pytest
from node_driver import LEASE_S, NodeDriver, make_work

from pd.messages import AbortTransfer, Granted, Interrupted, PrefillDone, Renew, SetRole, Stopped
from pd.types import Role


def decoding(role: Role = "mixed") -> NodeDriver:
    """A node on which one sequence decodes."""
    node = NodeDriver("m0", role)
    node.start_prefill(make_work(10), 1, "m0")
    while not node.core.decode.scheduler.running:
        node.step()
    node.clear()
    return node


def test_what_decodes_is_interrupted_between_steps() -> None:
    node = decoding()
    assert node.begin_step()
    node.order(SetRole("prefill"))
    node.finish_step()
    assert len(node.tokens()) == 1 and not node.interrupted(), "the step under way counts"
    assert not node.begin_step()
    (message,) = node.sent(Interrupted)
    assert message.reason == "m0 becomes a prefill node"
    node.core.check_idle()
    assert node.core.snapshot(node.now).role == "prefill"
    assert node.core.snapshot(node.now).cached_blocks > 0, "for who goes on with it"


def test_without_migration_it_ends_here() -> None:
    node = decoding()
    node.order(SetRole("prefill", migrate=False))
    while node.begin_step():
        node.finish_step()
    assert node.tokens()[-1].finish is not None and not node.interrupted()
    node.core.check_idle()


def test_a_handoff_under_way_starts_and_moves_on() -> None:
    node = NodeDriver("d0", "decode")
    node.reserve(make_work(10))
    node.order(SetRole("prefill"))
    node.hear("p0", PrefillDone(1, ((0, 5),)))
    node.arrived(0, 3)
    assert not node.begin_step() and node.interrupted() == [(0,)]
    node.core.check_idle()


@pytest.mark.parametrize("decode", ["d0", "m0"])
def test_prompts_not_begun_are_computed_elsewhere(decode: str) -> None:
    node = NodeDriver("m0", "mixed", max_num_seqs=1)
    for i in range(3):
        node.start_prefill(make_work(12, name=f"r{i}", first=100 * i), i + 1, decode)
    if decode == "d0":
        node.hear("d0", Granted(1, 0, (1, 2, 3)))
    node.step()  # 8 of the first one's 12 tokens
    node.clear()
    node.order(SetRole("decode"))
    assert [m.request_id for m in node.sent(Interrupted)] == ["r1", "r2"]
    if decode == "d0":
        assert [m.transfer_id for m in node.sent(Stopped)] == [2, 3]
    assert node.core.prefill.waiting_tokens == 4
    node.step()
    assert len(node.tokens()) == 1, "what was begun is ended"
    assert not node.sent(AbortTransfer)


def test_back_again() -> None:
    node = decoding()
    node.order(SetRole("prefill"))
    node.order(SetRole("decode"))
    assert node.begin_step(), "nothing has left meanwhile"
    assert not node.interrupted()


def test_two_nodes_do_not_wait_for_one_another_for_ever() -> None:
    """Each holds room for a prompt that the other computes, and has none left for its own."""
    node = NodeDriver("m0", "mixed", num_blocks=4)
    node.reserve(make_work(12, name="theirs"), 1)
    node.start_prefill(make_work(12, name="ours", first=500), 2, "d0")
    node.hear("d0", Granted(2, 0, (1, 2, 3)))
    assert not node.begin_step()
    node.tick(LEASE_S / 2)
    assert not node.sent(Interrupted)
    node.hear("p0", Renew((1,), ()))
    node.tick(LEASE_S / 2)
    assert [m.request_id for m in node.sent(Interrupted)] == ["ours"]
    assert [m.transfer_id for m in node.sent(Stopped)] == [2]
    assert node.core.decode.handoffs, "what the other computes may still come"
