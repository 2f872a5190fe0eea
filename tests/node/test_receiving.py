"""The decode end of a hand-off: who may hold its pages, and until when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from node_driver import LEASE_S, NodeDriver, make_work

from pd.messages import (
    Abort,
    AbortTransfer,
    Granted,
    Interrupted,
    PeerLost,
    PrefillDone,
    Renew,
    Snapshot,
    Stopped,
)
from pd.outbox import Expect, Forget, Send
from pd.policies.order import OrderPolicy


@pytest.fixture
def d() -> NodeDriver:
    return NodeDriver("d0", "decode")


def reserved(d: NodeDriver, num_tokens: int = 10, **work: int) -> Granted:
    d.reserve(make_work(num_tokens, **work))
    (grant,) = d.sent(Granted, "p0")
    return grant


def started(d: NodeDriver, **work: int) -> None:
    grant = reserved(d, **work)
    d.arrived(0, len(grant.blocks))
    n = work.get("n", 1)
    d.hear("p0", PrefillDone(1, tuple((index, 50 + index) for index in range(n))))
    assert len(d.core.decode.scheduler) == n
    d.clear()


def assert_idle(d: NodeDriver) -> None:
    d.core.check_idle()
    assert d.core.decode._incoming_seqs == 0


# ---------------------------------------------------------------- the good way
@pytest.mark.parametrize("done_first", [True, False])
def test_a_sequence_starts_once_its_blocks_and_first_token_are_there(
    d: NodeDriver, done_first: bool
) -> None:
    grant = reserved(d, max_tokens=3)
    (expect,) = d.effects(Expect)
    assert expect.blocks == grant.blocks and expect.sender == "p0" and expect.sender_epoch == 1
    if done_first:
        d.hear("p0", PrefillDone(1, ((0, 50),)))
    d.arrived(0, 2)
    assert not d.begin_step()
    d.arrived(2, 1)
    if not done_first:
        assert not d.begin_step()
        d.hear("p0", PrefillDone(1, ((0, 50),)))
    assert d.effects(Forget) == [Forget(1)]
    d.step()
    d.step()
    assert [(e.position, e.finish) for e in d.tokens()] == [(1, None), (2, "length")]
    assert_idle(d)


def test_what_a_hand_off_takes_is_told_from_the_first_token_to_the_step_after_it(
    d: NodeDriver,
) -> None:
    grant = reserved(d, max_tokens=3)
    d.hear("p0", PrefillDone(1, ((0, 50),)))
    d.tick(0.2)
    d.arrived(0, len(grant.blocks))
    d.tick(0.3)
    assert d.core.snapshot(d.now).handoff_s == 0.0
    d.step()
    assert d.core.snapshot(d.now).handoff_s == pytest.approx(0.5)
    d.step()
    d.reserve(make_work(10, name="next"), 2)
    d.arrived(0, 1, transfer_id=2)  # two are cached
    d.hear("p0", PrefillDone(2, ((0, 50),)))
    d.step()
    assert d.core.snapshot(d.now).handoff_s == pytest.approx(0.45), "a tenth of the newest"


def test_blocks_that_are_cached_are_not_asked_for(d: NodeDriver) -> None:
    started(d)
    d.order(Abort("r", (0,), 0))
    d.reserve(make_work(12, name="next"), 2)
    (grant,) = d.sent(Granted)
    assert grant.num_cached == 2 and len(grant.blocks) == 1


def test_a_prompt_that_is_cached_whole_starts_on_its_first_token(d: NodeDriver) -> None:
    started(d, num_tokens=8)
    d.order(Abort("r", (0,), 0))
    d.reserve(make_work(8, name="next"), 2)
    (grant,) = d.sent(Granted)
    assert (grant.num_cached, grant.blocks) == (2, ()) and not d.effects(Expect)
    d.hear("p0", PrefillDone(2, ((0, 7),)))
    assert d.begin_step()


def test_outputs_that_ended_with_their_first_token_do_not_start(d: NodeDriver) -> None:
    grant = reserved(d, n=3)
    d.arrived(0, len(grant.blocks))
    d.hear("p0", PrefillDone(1, ((1, 7),)))
    assert [seq.index for seq in d.core.decode.scheduler.running.values()] == [1]
    assert d.core.decode._incoming_seqs == 0


def test_nothing_goes_on_and_the_sender_says_so(d: NodeDriver) -> None:
    reserved(d, max_tokens=1)
    d.hear("p0", PrefillDone(1, ()))
    d.arrived(0, 2)
    assert d.num_held == 3, "the sender may still be writing"
    d.hear("p0", Stopped(1))
    assert not d.interrupted()
    assert_idle(d)


# ---------------------------------------------------------------- room
def test_a_lone_hand_off_is_granted_whatever_the_reserve() -> None:
    d = NodeDriver("d0", "decode", num_blocks=4, watermark=0.9)
    assert len(reserved(d, num_tokens=16).blocks) == 4


def test_room_includes_a_block_to_grow_into_for_every_sequence() -> None:
    d = NodeDriver("d0", "decode", num_blocks=10)
    d.reserve(make_work(8, name="a"), 1)  # 2 blocks; it and the next may each grow
    d.reserve(make_work(16, name="b", n=2), 2)  # 4 blocks and 3 to grow into: 9 of 10
    d.reserve(make_work(1, name="c"), 3)  # 1 block and 4: too many
    assert [grant.transfer_id for grant in d.sent(Granted)] == [1, 2]
    assert d.core.snapshot(0.0).num_reserving == 3
    d.order(Abort("a", (0,), 0))
    assert not d.sent(Granted), "pages that may be written are not room"
    d.hear("p0", Stopped(1))
    assert [grant.transfer_id for grant in d.sent(Granted)] == [3]


def test_the_batch_limit_counts_sequences_that_are_on_their_way() -> None:
    d = NodeDriver("d0", "decode", num_blocks=50, max_num_seqs=4)
    d.reserve(make_work(4, name="a", n=3), 1)
    d.reserve(make_work(4, name="b", n=2), 2)
    d.reserve(make_work(4, name="c", n=1), 3)  # would fit, but it is not its turn
    assert [grant.transfer_id for grant in d.sent(Granted)] == [1]
    d.hear("p0", Stopped(1))
    assert [grant.transfer_id for grant in d.sent(Granted)] == [2, 3]


def test_room_is_granted_in_policy_order() -> None:
    d = NodeDriver("d0", "decode", num_blocks=3, order=OrderPolicy("priority", aging_s=5.0))
    d.reserve(make_work(12, name="first"), 1)
    d.reserve(make_work(12, name="later", priority=2), 2)
    d.reserve(make_work(12, name="urgent", priority=1), 3)
    granted = [d.sent(Granted)[0].transfer_id]
    for _ in range(2):
        d.hear("p0", Stopped(granted[-1]))
        granted.append(d.sent(Granted)[0].transfer_id)
    assert granted == [1, 3, 2]


def test_the_last_seats_are_not_for_who_has_most_of_the_batch() -> None:
    policy = OrderPolicy(fairness="vtc")
    d = NodeDriver("d0", "decode", num_blocks=200, max_num_seqs=16, order=policy)

    def ask(transfer_id: int, tenant: str) -> None:
        work = make_work(4, name=f"{tenant}-{transfer_id}", first=10 * transfer_id)
        d.reserve(replace(work, request=replace(work.request, tenant=tenant)), transfer_id)

    def granted() -> list[int]:
        return [grant.transfer_id for grant in d.sent(Granted)]

    ask(0, "light")
    d.hear("p0", Stopped(0))
    for number in range(1, 20):
        ask(number, "heavy")
        for transfer_id in granted():
            d.arrived(0, 1, transfer_id)
            d.hear("p0", PrefillDone(transfer_id, ((0, 50),)))
    assert len(d.core.decode.scheduler) == 15, "one of sixteen is kept"
    d.clear()
    ask(20, "light")
    assert granted() == [20]
    assert d.core.decode.scheduler.num_of_tenant == {"heavy": 15}
    d.order(Abort("heavy-1", (0,), 0))
    assert granted() == [], "the one that is kept again, from who has most"


def test_a_tenant_by_itself_has_all_seats() -> None:
    policy = OrderPolicy(fairness="vtc")
    d = NodeDriver("d0", "decode", num_blocks=200, max_num_seqs=16, order=policy)
    for number in range(1, 20):
        d.reserve(make_work(4, name=f"r{number}", first=10 * number), number)
        for grant in d.sent(Granted):
            d.arrived(0, 1, grant.transfer_id)
            d.hear("p0", PrefillDone(grant.transfer_id, ((0, 50),)))
    assert len(d.core.decode.scheduler) == 16


def test_a_repeated_reservation_changes_nothing(d: NodeDriver) -> None:
    reserved(d)
    d.reserve(make_work(10))
    assert not d.sent(Granted) and d.num_held == 3


# ---------------------------------------------------------------- leases
def test_a_lost_grant_is_sent_again_on_request(d: NodeDriver) -> None:
    grant = reserved(d)
    d.hear("p0", Renew((1,), ungranted=(1,)))
    assert d.sent(Granted) == [grant]
    d.hear("p0", Renew((1,)))
    assert not d.sent(Granted)


def test_renewals_keep_a_reservation(d: NodeDriver) -> None:
    reserved(d)
    for _ in range(10):
        d.tick(LEASE_S * 0.9)
        d.hear("p0", Renew((1,)))
    assert not d.interrupted() and d.num_held == 3


def test_a_sender_that_went_silent_loses_the_lease_but_keeps_the_pages(d: NodeDriver) -> None:
    """The reaper runs on a node that has nothing else to do, and never frees a page into
    which a process that is merely stopped may still write."""
    grant = reserved(d)
    d.tick(LEASE_S)
    assert d.interrupted() == [(0,)] and d.sent(AbortTransfer, "p0")
    d.arrived(0, len(grant.blocks))  # too late
    for _ in range(20):
        d.tick(LEASE_S)
        d.hear("p0", PrefillDone(1, ((0, 5),)))
        assert d.sent(AbortTransfer, "p0"), "asked again, as the first may have been lost"
    assert d.num_held == 3 and not d.interrupted() and not d.begin_step()
    d.hear("p0", Stopped(1))
    assert_idle(d)


def test_a_frozen_sender_holds_pages_until_it_is_known_to_be_gone(d: NodeDriver) -> None:
    reserved(d)
    d.tick(LEASE_S * 5)
    assert d.num_held == 3
    d.order(PeerLost("p0", 1))
    assert d.interrupted() == [(0,)], "once, when the lease ended"
    assert_idle(d)


def test_the_first_token_that_never_comes_ends_a_complete_hand_off(d: NodeDriver) -> None:
    grant = reserved(d)
    d.arrived(0, len(grant.blocks))
    d.tick(LEASE_S)
    assert d.interrupted() == [(0,)]
    assert_idle(d)  # everything has arrived, so nobody writes any more


def test_a_renewal_of_what_is_not_known_is_answered(d: NodeDriver) -> None:
    d.hear("p0", Renew((7, 8)))
    assert [message.transfer_id for message in d.sent(AbortTransfer, "p0")] == [7, 8]


# ---------------------------------------------------------------- aborts
def test_abort_while_waiting_for_room() -> None:
    d = NodeDriver("d0", "decode", num_blocks=4)
    d.reserve(make_work(16, name="first"), 1)
    d.reserve(make_work(16), 2)
    d.order(Abort("r", (0,), 0))
    d.hear("p0", Stopped(2))
    d.hear("p0", Stopped(1))
    assert_idle(d)


def test_abort_while_receiving_waits_for_the_sender(d: NodeDriver) -> None:
    reserved(d)
    d.arrived(0, 1)
    d.order(Abort("r", (0,), 0))
    assert d.sent(AbortTransfer, "p0") and d.effects(Forget) == [Forget(1)]
    assert d.num_held == 3
    d.arrived(1, 2)
    d.hear("p0", PrefillDone(1, ((0, 5),)))
    assert not d.begin_step()
    d.hear("p1", Stopped(1))
    assert d.num_held == 3, "only the sender can say that it has stopped"
    d.hear("p0", Stopped(1))
    assert not d.interrupted()
    assert_idle(d)


def test_abort_of_a_complete_hand_off_frees_it_at_once(d: NodeDriver) -> None:
    grant = reserved(d)
    d.arrived(0, len(grant.blocks))
    d.order(Abort("r", (0,), 0))
    assert_idle(d)


def test_abort_in_decode(d: NodeDriver) -> None:
    started(d)
    d.step()
    d.order(Abort("r", (0,), 0))
    assert_idle(d)


def test_abort_with_a_step_in_flight(d: NodeDriver) -> None:
    started(d, n=2)
    d.begin_step()
    held = d.num_held
    d.order(Abort("r", (0,), 0))
    assert d.num_held == held
    d.finish_step()
    assert [event.index for event in d.tokens()] == [1]
    d.order(Abort("r", (0, 1), 0))
    assert_idle(d)


def test_one_output_cancelled_during_the_transfer(d: NodeDriver) -> None:
    grant = reserved(d, n=2)
    d.order(Abort("r", (0,), 0))
    assert d.num_held == len(grant.blocks) and not d.sent(AbortTransfer)
    d.arrived(0, len(grant.blocks))
    d.hear("p0", PrefillDone(1, ((0, 50), (1, 51))))
    assert [seq.index for seq in d.core.decode.scheduler.running.values()] == [1]


def test_all_that_would_go_on_was_cancelled_meanwhile(d: NodeDriver) -> None:
    """Output 0 ended with its first token and output 1 was cancelled: nothing starts."""
    grant = reserved(d, n=2)
    d.order(Abort("r", (1,), 0))
    d.hear("p0", PrefillDone(1, ((1, 51),)))
    d.arrived(0, len(grant.blocks))
    assert not d.begin_step()
    assert_idle(d)


def test_an_abort_of_an_earlier_attempt_leaves_the_present_one(d: NodeDriver) -> None:
    started(d, attempt=3)
    d.order(Abort("r", (0,), 2))
    assert d.begin_step()


# ---------------------------------------------------------------- trouble
def test_damaged_blocks_interrupt_and_keep_the_pages(d: NodeDriver) -> None:
    reserved(d)
    d.arrived(0, 2, ok=False)
    assert d.interrupted() == [(0,)] and d.sent(AbortTransfer, "p0") and d.num_held == 3
    d.hear("p0", Stopped(1))
    assert_idle(d)


def test_blocks_outside_of_the_grant_interrupt(d: NodeDriver) -> None:
    reserved(d)
    d.arrived(2, 5)
    assert d.interrupted() == [(0,)]


def test_the_sender_gives_up(d: NodeDriver) -> None:
    reserved(d)
    d.arrived(0, 1)
    d.hear("p0", Stopped(1))
    assert d.interrupted() == [(0,)]
    assert_idle(d)


def test_the_prefill_node_is_lost(d: NodeDriver) -> None:
    """What it was sending is interrupted; what it had sent runs on."""
    started(d)
    d.reserve(make_work(10, name="next"), 2)
    d.order(PeerLost("p0", 1))
    (message,) = d.sent(Interrupted)
    assert message.request_id == "next"
    assert len(d.core.decode.scheduler) == 1 and not d.core.decode.handoffs


def test_the_prefill_node_is_lost_while_a_hand_off_waits_for_room() -> None:
    d = NodeDriver("d0", "decode", num_blocks=4)
    d.reserve(make_work(16, name="first"), 1)
    d.reserve(make_work(16), 2)
    d.order(PeerLost("p0", 1))
    assert len(d.sent(Interrupted)) == 2
    assert_idle(d)


def test_the_loss_of_an_earlier_process_of_that_name_changes_nothing(d: NodeDriver) -> None:
    reserved(d)
    d.order(PeerLost("p0", 0))
    assert d.num_held == 3 and not d.interrupted()


def test_a_newer_attempt_takes_the_place_of_one_whose_abort_was_lost(d: NodeDriver) -> None:
    started(d)
    d.step()
    d.begin_step()
    d.reserve(make_work(10, attempt=1), 2)
    (grant,) = d.sent(Granted)
    d.arrived(0, len(grant.blocks), 2)
    d.hear("p0", PrefillDone(2, ((0, 60),)))
    d.finish_step()
    (running,) = d.core.decode.scheduler.running.values()
    assert running.attempt == 1
    d.order(Abort("r", (0,), 1))
    assert_idle(d)


def test_an_older_attempt_does_not_take_the_place_of_a_newer(d: NodeDriver) -> None:
    d.reserve(make_work(10), 1)
    d.reserve(make_work(10, attempt=1), 2)
    old, new = d.sent(Granted)
    d.arrived(0, len(new.blocks), 2)
    d.hear("p0", PrefillDone(2, ((0, 60),)))
    d.arrived(0, len(old.blocks), 1)
    d.hear("p0", PrefillDone(1, ((0, 50),)))
    (running,) = d.core.decode.scheduler.running.values()
    assert running.attempt == 1
    d.order(Abort("r", (0,), 1))
    assert_idle(d)


def test_preemption_tells_the_gateway_after_the_tokens_it_has_earned() -> None:
    d = NodeDriver("d0", "decode", num_blocks=4)
    started(d, num_tokens=7, n=2, max_tokens=30)
    d.step()
    assert d.begin_step()
    sends = [send.message for send in d.effects(Send)]
    kinds = [type(message).__name__ for message in sends if not isinstance(message, Snapshot)]
    assert kinds[-1] == "Interrupted" and "Tokens" in kinds
    (lost,) = [message for message in sends if isinstance(message, Interrupted)]
    assert lost.indices == (1,) and lost.reason == "preempted"
    assert d.core.snapshot(d.now).preemptions == 1


def test_the_reaper_runs_on_an_idle_node(d: NodeDriver) -> None:
    """Nothing to plan, no message: ticks alone end the lease, and tell when the next is due."""
    d.tick()
    reserved(d)
    d.tick(d.core.limits.heartbeat_s)
    assert d.core.next_tick() <= d.now + d.core.limits.heartbeat_s
    d.tick(LEASE_S)
    assert d.interrupted() == [(0,)]
