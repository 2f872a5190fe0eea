"""The prefill end of a hand-off, and every race of it that users of such systems have met."""

from __future__ import annotations

import pytest
from node_driver import LEASE_S, NodeDriver, make_work

from pd.messages import Abort, AbortTransfer, Granted, PeerLost, PrefillDone, Renew, Stopped
from pd.outbox import CancelPush, Push

BLOCKS = (10, 11, 12)  # what the decode node grants for ten tokens


@pytest.fixture
def p() -> NodeDriver:
    return NodeDriver("p0", "prefill")


def granted(p: NodeDriver, transfer_id: int = 1) -> None:
    p.hear("d0", Granted(transfer_id, 0, BLOCKS))


def test_finished_blocks_leave_while_later_chunks_compute(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    (first,) = p.effects(Push)
    assert (first.first, first.dst) == (0, (10, 11)) and not p.sent(PrefillDone)
    assert p.begin_step(), "the rest runs while those blocks are on their way"
    p.pushed(first)
    p.finish_step()
    (rest,) = p.effects(Push)
    assert (rest.first, rest.dst) == (2, (12,))
    (token,) = p.tokens()
    assert p.sent(PrefillDone, "d0") == [PrefillDone(1, ((0, token.token),))]
    p.pushed(rest)
    p.core.check_idle()
    assert not p.sent(Stopped), "what went well needs no last word"


def test_blocks_that_the_decode_node_has_are_not_sent(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.hear("d0", Granted(1, 2, (12,)))
    p.step()
    assert not p.effects(Push)
    p.step()
    (push,) = p.effects(Push)
    assert (push.first, push.dst, len(push.src)) == (0, (12,), 1)
    p.pushed(push)
    p.core.check_idle()


def test_a_prompt_that_the_decode_node_has_whole_sends_no_block(p: NodeDriver) -> None:
    p.start_prefill(make_work(8))
    p.hear("d0", Granted(1, 2, ()))
    p.step()
    assert not p.effects(Push) and p.sent(PrefillDone)
    p.core.check_idle()


def test_a_cached_prefix_leaves_before_the_first_chunk_has_run(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    p.step()
    for push in p.effects(Push):
        p.pushed(push)
    p.start_prefill(make_work(10, name="again"), 2)
    granted(p, 2)
    p.begin_step()
    (push,) = p.effects(Push)
    assert push.transfer_id == 2 and push.dst == (10, 11)
    assert p.node.plan is not None and p.node.plan.num_tokens == 2


def test_nothing_runs_before_there_is_room(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    assert not p.begin_step() and p.num_held == 0
    assert p.core.snapshot(0.0).waiting_tokens == 10


def test_a_grant_may_come_before_the_order(p: NodeDriver) -> None:
    granted(p)
    p.start_prefill(make_work(10))
    assert p.begin_step()


def test_an_abort_of_the_transfer_may_come_before_the_order(p: NodeDriver) -> None:
    p.hear("d0", AbortTransfer(1, "no room"))
    assert p.sent(Stopped, "d0") == [Stopped(1)]
    p.start_prefill(make_work(10))
    granted(p)
    assert not p.begin_step()
    p.core.check_idle()


def test_early_grants_and_aborts_are_forgotten_in_time(p: NodeDriver) -> None:
    for transfer_id in range(10_000):
        p.core.on_message("d0", Granted(transfer_id, 0, BLOCKS), 0.0)
        p.core.on_message("d0", AbortTransfer(transfer_id + 20_000, "x"), 0.0)
    phase = p.core.prefill
    assert len(phase._early_grants) <= 4096 and len(phase._early_aborts) <= 4096


def test_a_repeated_order_changes_nothing(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.start_prefill(make_work(10))
    granted(p)
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    p.step()
    assert len(p.tokens()) == 1
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


def test_a_grant_by_somebody_else_is_not_taken(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.hear("d1", Granted(1, 0, BLOCKS))
    assert not p.begin_step()


def test_a_grant_for_another_length_interrupts(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.hear("d0", Granted(1, 0, (10, 11)))
    assert p.interrupted() == [(0,)] and p.sent(Stopped, "d0") == [Stopped(1)]
    p.core.check_idle()


def test_a_lost_grant_is_asked_for_again(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.tick(LEASE_S)
    assert p.sent(Renew, "d0") == [Renew((1,), ungranted=(1,))]
    granted(p)
    p.tick(LEASE_S)
    assert p.sent(Renew, "d0") == [Renew((1,))]


# ---------------------------------------------------------------- aborts
def test_abort_while_waiting_for_room(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.order(Abort("r", (0,), 0))
    assert p.sent(Stopped, "d0") == [Stopped(1)] and not p.interrupted()
    p.core.check_idle()
    granted(p)  # it was under way
    assert not p.begin_step()


def test_abort_once_granted(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.order(Abort("r", (0,), 0))
    assert not p.begin_step()
    p.core.check_idle()


def test_abort_between_plan_and_commit_waits_for_the_step(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.begin_step()
    p.order(Abort("r", (0,), 0))
    assert p.num_held == 3 and not p.sent(Stopped), "the step still writes there"
    p.finish_step()
    assert p.sent(Stopped) == [Stopped(1)]
    assert not p.tokens() and not p.effects(Push)
    p.core.check_idle()


def test_abort_in_the_step_that_draws_the_first_token(p: NodeDriver) -> None:
    """An abort that races the end of the prefill."""
    p.start_prefill(make_work(6))
    p.hear("d0", Granted(1, 0, (10, 11)))
    p.begin_step()
    p.order(Abort("r", (0,), 0))
    p.finish_step()
    assert not p.tokens() and not p.sent(PrefillDone)
    p.core.check_idle()


def test_abort_while_blocks_are_being_sent_waits_for_the_copy(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    (push,) = p.effects(Push)
    p.order(Abort("r", (0,), 0))
    assert p.effects(CancelPush) == [CancelPush(1)]
    assert p.num_held == 3 and not p.sent(Stopped), "the copy may still read and write"
    p.pushed(push, ok=False)
    assert p.sent(Stopped) == [Stopped(1)] and not p.interrupted()
    p.core.check_idle()


def test_abort_with_a_step_and_a_copy_under_way(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    (push,) = p.effects(Push)
    p.begin_step()
    p.order(Abort("r", (0,), 0))
    p.pushed(push)
    assert p.num_held == 3
    p.finish_step()
    assert p.sent(Stopped) == [Stopped(1)]
    p.core.check_idle()


def test_a_second_abort_changes_nothing(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.begin_step()
    for _ in range(3):
        p.order(Abort("r", (0,), 0))
        p.hear("d0", AbortTransfer(1, "given up"))
    p.finish_step()
    assert p.sent(Stopped) == [Stopped(1)] and not p.interrupted()
    p.core.check_idle()


def test_an_abort_of_an_earlier_attempt_leaves_the_present_one(p: NodeDriver) -> None:
    p.start_prefill(make_work(10, attempt=2))
    p.order(Abort("r", (0,), 1))
    granted(p)
    assert p.begin_step()
    p.order(Abort("unknown", (0,), 9))


def test_an_output_aborted_during_prefill_is_not_handed_over(p: NodeDriver) -> None:
    p.start_prefill(make_work(10, n=3))
    granted(p)
    p.step()
    p.order(Abort("r", (0,), 0))  # the one whose blocks the others share
    p.step()
    assert [event.index for event in p.tokens()] == [1, 2]
    (done,) = p.sent(PrefillDone)
    assert [index for index, _ in done.tokens] == [1, 2]
    for push in p.effects(Push):
        p.pushed(push)
    p.core.check_idle()


# ---------------------------------------------------------------- first tokens that end it
def test_a_sequence_that_ends_with_its_first_token_is_not_handed_over(p: NodeDriver) -> None:
    p.start_prefill(make_work(6, max_tokens=1))
    p.hear("d0", Granted(1, 0, (10, 11)))
    p.step()
    (token,) = p.tokens()
    assert token.finish == "length"
    assert not p.effects(Push)
    assert p.sent(PrefillDone) == [PrefillDone(1, ())] and p.sent(Stopped) == [Stopped(1)]
    p.core.check_idle()


def test_room_is_given_back_only_after_the_last_copy(p: NodeDriver) -> None:
    """It ended with its first token, but blocks of earlier chunks are still on their way."""
    p.start_prefill(make_work(10, max_tokens=1))
    granted(p)
    p.step()
    (push,) = p.effects(Push)
    p.step()
    assert p.sent(PrefillDone) and not p.sent(Stopped)
    p.pushed(push)
    assert p.sent(Stopped) == [Stopped(1)]
    p.core.check_idle()


# ---------------------------------------------------------------- trouble
def test_a_failed_push_interrupts_once(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    p.step()
    first, second = p.effects(Push)
    p.pushed(first, ok=False)
    p.pushed(second, ok=False)
    assert p.interrupted() == [(0,)]
    assert p.sent(Stopped) == [Stopped(1)]
    p.core.check_idle()


def test_the_decode_node_gives_up_during_prefill(p: NodeDriver) -> None:
    p.start_prefill(make_work(10, n=2))
    granted(p)
    p.step()
    (push,) = p.effects(Push)
    p.hear("d0", AbortTransfer(1, "it does not know this transfer"))
    assert p.interrupted() == [(0, 1)]
    p.pushed(push, ok=False)
    assert p.sent(Stopped) == [Stopped(1)]
    p.core.check_idle()


def test_what_was_taken_over_is_not_interrupted(p: NodeDriver) -> None:
    """A renewal met a decode node that had everything, and so had forgotten the transfer."""
    p.start_prefill(make_work(10))
    granted(p)
    p.step()
    p.step()
    pushes = p.effects(Push)
    p.hear("d0", AbortTransfer(1, "it does not know this transfer"))
    for push in pushes:
        p.pushed(push)
    assert not p.interrupted()
    p.core.check_idle()


def test_somebody_else_cannot_abort_a_transfer(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    granted(p)
    p.hear("d1", AbortTransfer(1, "not theirs"))
    assert p.begin_step()


def test_the_decode_node_is_lost(p: NodeDriver) -> None:
    p.start_prefill(make_work(10), 1)
    p.start_prefill(make_work(10, name="other"), 2, decode="d1")
    granted(p)
    p.step()
    (push,) = p.effects(Push)
    p.order(PeerLost("d0", 1))
    assert p.effects(CancelPush) == [CancelPush(1)]
    assert not p.interrupted(), "that is the coordinator's to tell"
    p.pushed(push, ok=False)
    assert list(p.core.prefill.tasks) == [2] and p.num_held == 0


def test_the_loss_of_an_earlier_process_of_that_name_changes_nothing(p: NodeDriver) -> None:
    p.start_prefill(make_work(10))
    p.order(PeerLost("d0", 0))
    assert list(p.core.prefill.tasks) == [1]
