"""One hand-off of blocks between two arenas, as the two state machines at its ends.

    sender                          messages                     receiver
    OutgoingTransfer                                             IncomingTransfer
    WAITING      <------------------ Granted ------------------  RESERVED
    SENDING      ------------------- blocks ------------------>  RECEIVING
    SENT         ----------------- PrefillDone --------------->  COMPLETE
    CLOSED                                                       CLOSED

and when it goes wrong

    DRAINING     <--------------- AbortTransfer ---------------  DRAINING
    CLOSED       ------------------ Stopped ------------------>  CLOSED

The one rule behind it: a page into which a write may still be in flight is not reused. The
sender writes (through shared memory even without the receiver's help), so only the sender
can say that it has stopped, or its death can. Both ends are plain objects: events go in,
states and pushes come out, and `now` is given where time matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pd.errors import TransferError


@dataclass(frozen=True, slots=True)
class Push:
    """Copy blocks `src` of this node into blocks `dst` of the receiver.

    `first` is the place of the run in the list of blocks that the receiver granted.
    """

    transfer_id: int
    receiver: str
    receiver_epoch: int
    first: int
    src: tuple[int, ...]
    dst: tuple[int, ...]


class IncomingStatus(Enum):
    RESERVED = "reserved"  # pages are held, nothing has arrived
    RECEIVING = "receiving"
    COMPLETE = "complete"  # every block arrived and was verified
    DRAINING = "draining"  # given up, but the sender may still be writing
    CLOSED = "closed"


class OutgoingStatus(Enum):
    WAITING = "waiting"  # the receiver has no room yet
    SENDING = "sending"
    SENT = "sent"  # the transport is done with every block
    DRAINING = "draining"  # given up, but the transport still reads some blocks
    CLOSED = "closed"


_I, _O = IncomingStatus, OutgoingStatus

INCOMING_MOVES: Mapping[IncomingStatus, frozenset[IncomingStatus]] = {
    _I.RESERVED: frozenset({_I.RECEIVING, _I.COMPLETE, _I.DRAINING, _I.CLOSED}),
    _I.RECEIVING: frozenset({_I.COMPLETE, _I.DRAINING, _I.CLOSED}),
    _I.COMPLETE: frozenset({_I.CLOSED}),
    _I.DRAINING: frozenset({_I.CLOSED}),
    _I.CLOSED: frozenset(),
}
OUTGOING_MOVES: Mapping[OutgoingStatus, frozenset[OutgoingStatus]] = {
    _O.WAITING: frozenset({_O.SENDING, _O.CLOSED}),
    _O.SENDING: frozenset({_O.SENT, _O.DRAINING, _O.CLOSED}),
    _O.SENT: frozenset({_O.CLOSED}),
    _O.DRAINING: frozenset({_O.CLOSED}),
    _O.CLOSED: frozenset(),
}


class IncomingTransfer:
    """The receiver's end. `blocks` are its own pages for the missing part, in order.

    Late events are part of life: anything that arrives in DRAINING or CLOSED, a repeated
    arrival, a second `abort`, `stopped` or `sender_lost` change nothing. What raises
    TransferError is an arrival that cannot be right (outside of the granted blocks, or not
    verified) and closing a transfer that is not complete; then the owner aborts.
    """

    def __init__(
        self,
        transfer_id: int,
        sender: str,
        sender_epoch: int,
        blocks: Sequence[int],
        lease_until: float,
    ) -> None:
        self.transfer_id = transfer_id
        self.sender = sender
        self.sender_epoch = sender_epoch
        self.blocks = list(blocks)
        self.lease_until = lease_until
        self._missing = set(range(len(self.blocks)))
        self.status = IncomingStatus.RESERVED
        if not self._missing:
            self._move(IncomingStatus.COMPLETE)

    def is_from(self, peer: str, epoch: int) -> bool:
        """The sender is this process, of this epoch or an earlier one."""
        return self.sender == peer and self.sender_epoch <= epoch

    @property
    def num_missing(self) -> int:
        return len(self._missing)

    @property
    def num_leading(self) -> int:
        """Blocks from the first on that have arrived without a hole."""
        return min(self._missing, default=len(self.blocks))

    @property
    def complete(self) -> bool:
        """Every block has arrived and was verified."""
        return not self._missing

    @property
    def quiet(self) -> bool:
        """Nobody writes into the pages any more."""
        return self.status in (IncomingStatus.COMPLETE, IncomingStatus.CLOSED)

    def arrived(self, first: int, count: int, ok: bool) -> None:
        """Blocks [first, first + count) were written; `ok` if their content was verified."""
        if self.status in (IncomingStatus.DRAINING, IncomingStatus.CLOSED):
            return
        end = first + count
        if first < 0 or count < 1 or end > len(self.blocks):
            raise TransferError(
                f"{self}: blocks [{first}, {end}) arrived, but only {len(self.blocks)} were granted"
            )
        if not ok:
            raise TransferError(f"{self}: blocks [{first}, {end}) arrived damaged")
        if self.status is IncomingStatus.COMPLETE:
            return
        self._missing.difference_update(range(first, end))
        if not self._missing:
            self._move(IncomingStatus.COMPLETE)
        elif self.status is IncomingStatus.RESERVED:
            self._move(IncomingStatus.RECEIVING)

    def renew(self, until: float) -> None:
        """Extend the lease; one that already lasts longer stays."""
        self.lease_until = max(self.lease_until, until)

    def expired(self, now: float) -> bool:
        """The sender has not been heard of for too long: give up and `abort`.

        Never true while DRAINING: those pages wait for the sender's word or death, not for
        a clock.
        """
        given_up = self.status in (IncomingStatus.DRAINING, IncomingStatus.CLOSED)
        return not given_up and now >= self.lease_until

    def abort(self) -> None:
        """The blocks are not wanted. The pages are kept until nothing can write into them."""
        if self.status is IncomingStatus.COMPLETE:
            self._move(IncomingStatus.CLOSED)
        elif self.status in (IncomingStatus.RESERVED, IncomingStatus.RECEIVING):
            self._move(IncomingStatus.DRAINING)

    def stopped(self) -> None:
        """The sender writes no more. It says so when asked, or when it gives up itself."""
        if not self.quiet:
            self._move(IncomingStatus.CLOSED)

    def sender_lost(self) -> None:
        """The sender's process is gone, and its writes with it."""
        self.stopped()

    def close(self) -> None:
        """The owner took the complete blocks over."""
        if self.status is not IncomingStatus.CLOSED:
            if self.status is not IncomingStatus.COMPLETE:
                raise TransferError(f"{self}: {self.num_missing} blocks have not arrived")
            self._move(IncomingStatus.CLOSED)

    def _move(self, to: IncomingStatus) -> None:
        if to not in INCOMING_MOVES[self.status]:
            raise TransferError(f"{self} cannot become {to.value}")
        self.status = to

    def __repr__(self) -> str:
        return f"incoming transfer {self.transfer_id} from {self.sender} ({self.status.value})"


class OutgoingTransfer:
    """The sender's end: which blocks may go, which are on their way, when all is done.

    Tolerated as late or repeated: the same grant again, a grant after `abort`, a second
    `abort`, `finish` or `close`. TransferError: a second grant that differs from the first,
    more or fewer blocks than granted, a push that comes back without having gone out, and
    closing before everything is sent.
    """

    def __init__(self, transfer_id: int, receiver: str, receiver_epoch: int) -> None:
        self.transfer_id = transfer_id
        self.receiver = receiver
        self.receiver_epoch = receiver_epoch
        self.num_cached = 0
        self.failed = False
        self.status = OutgoingStatus.WAITING
        self._dst: tuple[int, ...] = ()
        self._next = 0  # blocks of `_dst` that were given to the transport
        self._finished = False
        self._in_flight: dict[int, int] = {}  # first -> count

    def is_to(self, peer: str, epoch: int) -> bool:
        """The receiver is this process, of this epoch or an earlier one."""
        return self.receiver == peer and self.receiver_epoch <= epoch

    @property
    def in_flight(self) -> int:
        """Blocks that the transport may be reading."""
        return sum(self._in_flight.values())

    @property
    def quiet(self) -> bool:
        """The transport is done with this transfer: its source blocks may be let go."""
        return self.status in (OutgoingStatus.SENT, OutgoingStatus.CLOSED)

    def granted(self, num_cached: int, dst_blocks: Sequence[int]) -> None:
        """The receiver has the first `num_cached` blocks and made room for the rest."""
        if self.status is OutgoingStatus.WAITING:
            if num_cached < 0:
                raise TransferError(f"{self}: granted with {num_cached} cached blocks")
            self.num_cached = num_cached
            self._dst = tuple(dst_blocks)
            self._move(OutgoingStatus.SENDING)
        elif self.status in (OutgoingStatus.SENDING, OutgoingStatus.SENT):
            if (num_cached, tuple(dst_blocks)) != (self.num_cached, self._dst):
                raise TransferError(f"{self}: granted twice, with different blocks")

    def offer(self, src_blocks: Sequence[int], final: bool) -> Push | None:
        """What to push next, given the prompt's blocks computed so far (all, from the first).

        With `final` no more will come. None while there is no grant (offer again after it),
        when there is nothing new, or when the transfer was given up.
        """
        if self.status is not OutgoingStatus.SENDING:
            return None
        wanted = self.num_cached + len(self._dst)
        if len(src_blocks) > wanted or (final and len(src_blocks) < wanted):
            raise TransferError(
                f"{self}: {len(src_blocks)} blocks offered, the receiver expects {wanted}"
            )
        first, end = self._next, len(src_blocks) - self.num_cached
        push = None
        if end > first:
            src = tuple(src_blocks[self.num_cached + first :])
            push = Push(
                self.transfer_id, self.receiver, self.receiver_epoch, first, src,
                self._dst[first:end],
            )  # fmt: skip
            self._in_flight[first] = end - first
            self._next = end
        if final:
            self.finish()
        return push

    def finish(self) -> None:
        """Everything was offered. TransferError if that is less than the receiver expects."""
        if self.status is not OutgoingStatus.SENDING or self._finished:
            return
        if self._next < len(self._dst):
            raise TransferError(
                f"{self}: finished after {self._next} of {len(self._dst)} granted blocks"
            )
        self._finished = True
        self._settle()

    def pushed(self, first: int, count: int, ok: bool) -> None:
        """A push came back. One that is not `ok` sets `failed` and ends the transfer."""
        if self._in_flight.get(first) != count:
            raise TransferError(f"{self}: blocks [{first}, {first + count}) were not in flight")
        del self._in_flight[first]
        if not ok:
            self.failed = True
            self.abort()
        self._settle()

    def abort(self) -> None:
        """Send nothing more. DRAINING until the pushes in flight have come back."""
        if self.status is OutgoingStatus.SENDING and self._in_flight:
            self._move(OutgoingStatus.DRAINING)
        elif self.status not in (OutgoingStatus.DRAINING, OutgoingStatus.CLOSED):
            self._move(OutgoingStatus.CLOSED)

    def close(self) -> None:
        """Forget a transfer that was sent."""
        if self.status is not OutgoingStatus.CLOSED:
            if self.status is not OutgoingStatus.SENT:
                raise TransferError(f"{self}: not everything is sent yet")
            self._move(OutgoingStatus.CLOSED)

    def _settle(self) -> None:
        if self._in_flight:
            return
        if self.status is OutgoingStatus.DRAINING:
            self._move(OutgoingStatus.CLOSED)
        elif self.status is OutgoingStatus.SENDING and self._finished:
            self._move(OutgoingStatus.SENT)

    def _move(self, to: OutgoingStatus) -> None:
        if to not in OUTGOING_MOVES[self.status]:
            raise TransferError(f"{self} cannot become {to.value}")
        self.status = to

    def __repr__(self) -> str:
        return f"outgoing transfer {self.transfer_id} to {self.receiver} ({self.status.value})"
