"""The two ends of a hand-off, one event at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.transfer import (
    INCOMING_MOVES,
    OUTGOING_MOVES,
    IncomingStatus,
    IncomingTransfer,
    OutgoingStatus,
    OutgoingTransfer,
    Push,
)
from pd.errors import TransferError


def incoming(num_blocks: int = 3) -> IncomingTransfer:
    return IncomingTransfer(1, "p", 4, list(range(10, 10 + num_blocks)), 100.0)


def outgoing(num_cached: int = 0, num_blocks: int = 3) -> OutgoingTransfer:
    transfer = OutgoingTransfer(1, "d", 5)
    transfer.granted(num_cached, range(10, 10 + num_blocks))
    return transfer


# ------------------------------------------------------------------ the receiver's end
def test_incoming_life() -> None:
    transfer = incoming()
    assert transfer.status is IncomingStatus.RESERVED and not transfer.quiet
    transfer.arrived(2, 1, True)
    assert transfer.status is IncomingStatus.RECEIVING and transfer.num_missing == 2
    transfer.arrived(2, 1, True)  # counts once
    assert transfer.num_missing == 2 and not transfer.complete
    transfer.arrived(0, 2, True)
    assert transfer.status is IncomingStatus.COMPLETE and transfer.complete and transfer.quiet
    transfer.arrived(0, 3, True)
    transfer.stopped()
    transfer.sender_lost()
    assert transfer.status is IncomingStatus.COMPLETE
    transfer.close()
    transfer.close()
    assert transfer.status is IncomingStatus.CLOSED and transfer.quiet and transfer.complete


def test_a_transfer_of_nothing_is_complete() -> None:
    assert incoming(0).status is IncomingStatus.COMPLETE


@pytest.mark.parametrize(
    "first, count, ok, cause",
    [
        (0, 4, True, "only 3 were granted"),
        (3, 1, True, "only 3 were granted"),
        (-1, 1, True, "only 3 were granted"),
        (0, 0, True, "only 3 were granted"),
        (0, 3, False, "damaged"),
    ],
)
def test_arrivals_that_cannot_be_right(first: int, count: int, ok: bool, cause: str) -> None:
    transfer = incoming()
    with pytest.raises(TransferError, match=cause):
        transfer.arrived(first, count, ok)
    assert transfer.num_missing == 3
    transfer.abort()
    transfer.arrived(first, count, ok)  # nobody cares any more
    assert transfer.status is IncomingStatus.DRAINING


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("end", [IncomingTransfer.stopped, IncomingTransfer.sender_lost])
def test_pages_of_an_aborted_transfer_wait_for_its_sender(
    started: bool, end: Callable[[IncomingTransfer], None]
) -> None:
    transfer = incoming()
    if started:
        transfer.arrived(0, 1, True)
    transfer.abort()
    transfer.abort()
    transfer.renew(1000.0)
    transfer.arrived(0, 3, True)
    assert transfer.status is IncomingStatus.DRAINING and not transfer.quiet
    assert not transfer.expired(1e9), "no clock may free pages that may be written"
    end(transfer)
    end(transfer)
    assert transfer.status is IncomingStatus.CLOSED and transfer.quiet


def test_a_sender_that_gives_up_closes_without_an_abort() -> None:
    transfer = incoming()
    transfer.stopped()
    assert transfer.status is IncomingStatus.CLOSED and not transfer.complete
    transfer.arrived(0, 3, True)
    assert not transfer.complete


def test_closing_too_early() -> None:
    transfer = incoming()
    with pytest.raises(TransferError, match="3 blocks have not arrived"):
        transfer.close()
    transfer.abort()
    with pytest.raises(TransferError):
        transfer.close()


def test_leases() -> None:
    transfer = incoming()
    assert not transfer.expired(99.9) and transfer.expired(100.0)
    transfer.renew(150.0)
    transfer.renew(120.0)  # late, from before
    assert not transfer.expired(149.0) and transfer.expired(150.0)
    transfer.arrived(0, 3, True)
    assert transfer.expired(150.0), "complete blocks nobody takes over are given up, too"
    transfer.abort()
    assert transfer.status is IncomingStatus.CLOSED and not transfer.expired(1e9)


# ------------------------------------------------------------------ the sender's end
def test_outgoing_life() -> None:
    transfer = OutgoingTransfer(1, "d", 5)
    assert transfer.offer([1, 2], True) is None  # offer again after the grant
    transfer.granted(1, [20, 21, 22])
    assert transfer.offer([1], False) is None, "the receiver has it already"
    assert transfer.offer([1, 2], False) == Push(1, "d", 5, 0, (2,), (20,))
    assert transfer.offer([1, 2], False) is None
    assert transfer.offer([1, 2, 3, 4], True) == Push(1, "d", 5, 1, (3, 4), (21, 22))
    assert transfer.in_flight == 3 and not transfer.quiet
    transfer.pushed(1, 2, True)
    transfer.granted(1, [20, 21, 22])  # sent again because its sender was not sure
    assert transfer.status is OutgoingStatus.SENDING
    transfer.pushed(0, 1, True)
    assert transfer.status is OutgoingStatus.SENT and transfer.quiet and not transfer.failed
    transfer.finish()
    transfer.close()
    transfer.close()
    transfer.abort()
    transfer.granted(0, [1])  # late
    assert transfer.status is OutgoingStatus.CLOSED


def test_finish_after_the_last_push_came_back() -> None:
    transfer = outgoing()
    transfer.offer([1, 2, 3], False)
    transfer.pushed(0, 3, True)
    assert transfer.status is OutgoingStatus.SENDING
    transfer.finish()
    assert transfer.status is OutgoingStatus.SENT


def test_a_receiver_that_has_everything() -> None:
    transfer = outgoing(num_cached=2, num_blocks=0)
    assert transfer.offer([1, 2], True) is None
    assert transfer.status is OutgoingStatus.SENT


def test_wrong_numbers_of_blocks() -> None:
    transfer = outgoing(num_cached=1)
    with pytest.raises(TransferError, match="3 blocks offered, the receiver expects 4"):
        transfer.offer([1, 2, 3], True)
    with pytest.raises(TransferError, match="5 blocks offered"):
        transfer.offer([1, 2, 3, 4, 5], False)
    with pytest.raises(TransferError, match="finished after 0 of 3"):
        transfer.finish()
    assert transfer.status is OutgoingStatus.SENDING
    with pytest.raises(TransferError, match="-1 cached"):
        OutgoingTransfer(1, "d", 5).granted(-1, [])


def test_a_grant_that_contradicts_the_first() -> None:
    transfer = outgoing()
    with pytest.raises(TransferError, match="twice"):
        transfer.granted(0, [1, 2, 3])


def test_pushes_that_were_never_made() -> None:
    transfer = outgoing()
    transfer.offer([1, 2], False)
    for first, count in ((0, 1), (1, 1), (2, 1)):
        with pytest.raises(TransferError, match="not in flight"):
            transfer.pushed(first, count, True)
    transfer.pushed(0, 2, True)
    with pytest.raises(TransferError, match="not in flight"):
        transfer.pushed(0, 2, True)


def test_a_failed_push_ends_the_transfer_once_the_others_are_back() -> None:
    transfer = outgoing()
    transfer.offer([1], False)
    transfer.offer([1, 2], False)
    transfer.pushed(1, 1, False)
    assert transfer.failed and transfer.status is OutgoingStatus.DRAINING
    assert transfer.offer([1, 2, 3], True) is None
    transfer.pushed(0, 1, True)
    assert transfer.status is OutgoingStatus.CLOSED and transfer.quiet


@pytest.mark.parametrize("granted, in_flight", [(False, False), (True, False), (True, True)])
def test_abort(granted: bool, in_flight: bool) -> None:
    transfer = outgoing() if granted else OutgoingTransfer(1, "d", 5)
    if in_flight:
        transfer.offer([1], False)
    transfer.abort()
    transfer.abort()
    transfer.granted(0, [10, 11, 12])
    transfer.finish()
    assert transfer.offer([1, 2, 3], True) is None
    assert transfer.quiet != in_flight
    if in_flight:
        assert transfer.status is OutgoingStatus.DRAINING
        with pytest.raises(TransferError, match="not everything is sent"):
            transfer.close()
        transfer.pushed(0, 1, True)
    assert transfer.status is OutgoingStatus.CLOSED


@given(st.integers(0, 5), st.lists(st.integers(0, 4), max_size=8), st.randoms())
def test_every_block_is_pushed_once_whatever_the_chunks(
    num_cached: int, steps: list[int], random: st.DrawFn
) -> None:
    total = num_cached + sum(steps)
    transfer = outgoing(num_cached, total - num_cached)
    src, pushes, done = list(range(100, 100 + total)), [], num_cached
    for step in steps:
        done += step
        push = transfer.offer(src[:done], False)
        if push:
            pushes.append(push)
    last = transfer.offer(src, True)
    pushes += [last] if last else []
    assert [b for p in pushes for b in p.src] == src[num_cached:]
    assert [b for p in pushes for b in p.dst] == list(range(10, 10 + total - num_cached))
    random.shuffle(pushes)
    for push in pushes:
        transfer.pushed(push.first, len(push.src), True)
    assert transfer.status is OutgoingStatus.SENT


def test_tables_name_every_status_and_closed_is_final() -> None:
    assert set(INCOMING_MOVES) == set(IncomingStatus)
    assert set(OUTGOING_MOVES) == set(OutgoingStatus)
    assert not INCOMING_MOVES[IncomingStatus.CLOSED]
    assert not OUTGOING_MOVES[OutgoingStatus.CLOSED]
    with pytest.raises(TransferError, match="cannot become reserved"):
        incoming()._move(IncomingStatus.RESERVED)
    with pytest.raises(TransferError, match="cannot become waiting"):
        outgoing()._move(OutgoingStatus.WAITING)
