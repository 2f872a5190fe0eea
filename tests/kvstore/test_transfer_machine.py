"""Both ends of many hand-offs over a network that loses, repeats and reorders messages.

The transport is the worst one allowed: a push writes into the receiver's pages at any moment
until it comes back to its sender, without the receiver's help. Checked at every write: the
page is still the transfer's own. Checked in the end: no block is lost at either side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.blocks import BlockPool
from kvstore.transfer import (
    IncomingStatus,
    IncomingTransfer,
    OutgoingStatus,
    OutgoingTransfer,
    Push,
)
from pd.messages import AbortTransfer, Granted, Renew, Stopped

LEASE_S = 10.0


@dataclass
class Sending:
    transfer: OutgoingTransfer
    prompt: list[int]  # our blocks of the prompt
    num_cached: int
    computed: int = 0


@dataclass
class Flight:
    """A push under way: not yet written, written and not yet back, ..."""

    push: Push
    written: int = 0
    cancelled: bool = False


@dataclass
class Side:
    pool: BlockPool
    mail: list[Any] = field(default_factory=list)


class HandOffs(RuleBasedStateMachine):
    @initialize(sender=st.integers(2, 10), receiver=st.integers(2, 10))
    def start(self, sender: int, receiver: int) -> None:
        self.p, self.d = Side(BlockPool(sender, 4)), Side(BlockPool(receiver, 4))
        self.now, self.next_id, self.epoch = 0.0, 1, 1
        self.outgoing: dict[int, Sending] = {}
        self.incoming: dict[int, IncomingTransfer] = {}
        self.grants: dict[int, Granted] = {}
        self.flights: list[Flight] = []
        self.arrivals: list[tuple[int, int, int, bool]] = []
        self.content: dict[int, tuple[int, int]] = {}  # receiver's page -> what was written last
        self.done: list[int] = []
        self.random = Random(0)

    @rule(steps=st.integers(1, 60), seed=st.integers(0, 2**32))
    def everyday(self, steps: int, seed: int) -> None:
        """What happens all the time, in any order."""
        self.random.seed(seed)
        for _ in range(steps):
            happens = [self.hand_off]
            happens += [self.compute] * (2 if self.outgoing else 0)
            happens += [self.deliver_to_sender] * (3 if self.p.mail else 0)
            happens += [self.deliver_to_receiver] * (2 if self.d.mail else 0)
            happens += [self.write, self.write, self.come_back] * bool(self.flights)
            happens += [self.arrive] * (3 if self.arrivals else 0)
            self.random.choice(happens)()

    @rule(seed=st.integers(0, 2**32))
    def trouble(self, seed: int) -> None:
        self.random.seed(seed)
        troubles = [self.lose, self.lose]
        troubles += [self.sender_aborts] * bool(self.outgoing)
        troubles += [self.receiver_aborts] * bool(self.incoming)
        self.random.choice(troubles)()

    # -------------------------------------------------------------- new work
    def hand_off(self) -> None:
        cached, missing = self.random.randint(0, 2), self.random.randint(0, 4)
        if not self.p.pool.can_allocate(cached + missing) or not self.d.pool.can_allocate(missing):
            return
        transfer_id, self.next_id = self.next_id, self.next_id + 1
        prompt = self.p.pool.allocate(cached + missing)
        transfer = OutgoingTransfer(transfer_id, "d", 1)
        self.outgoing[transfer_id] = Sending(transfer, prompt, cached)
        pages = self.d.pool.allocate(missing)
        lease = self.now + LEASE_S
        self.incoming[transfer_id] = IncomingTransfer(transfer_id, "p", self.epoch, pages, lease)
        self.grants[transfer_id] = Granted(transfer_id, cached, tuple(pages))
        self.p.mail.append(self.grants[transfer_id])

    def compute(self) -> None:
        """The prompt gets further; what is new goes out."""
        work = self.outgoing[self.random.choice(list(self.outgoing))]
        work.computed = min(len(work.prompt), work.computed + self.random.randint(0, 3))
        self.offer(work)

    def offer(self, work: Sending) -> None:
        push = work.transfer.offer(work.prompt[: work.computed], work.computed == len(work.prompt))
        if push is not None:
            self.flights.append(Flight(push))
        self.sender_settles(work)

    # -------------------------------------------------------------- the network
    def deliver_to_sender(self) -> None:
        message = self.take(self.p.mail)
        work = self.outgoing.get(message.transfer_id)
        if isinstance(message, Granted):
            if work is not None:
                work.transfer.granted(message.num_cached, message.blocks)
                self.offer(work)
        elif work is None:
            self.d.mail.append(Stopped(message.transfer_id))
        else:
            self.give_up(work)

    def deliver_to_receiver(self) -> None:
        message = self.take(self.d.mail)
        if isinstance(message, Renew):
            for transfer_id in message.transfer_ids:
                if transfer_id in self.incoming:
                    self.incoming[transfer_id].renew(self.now + LEASE_S)
            for transfer_id in message.ungranted:
                if transfer_id in self.incoming:
                    self.p.mail.append(self.grants[transfer_id])
        elif message.transfer_id in self.incoming:
            self.incoming[message.transfer_id].stopped()
            self.receiver_settles(message.transfer_id)

    def lose(self) -> None:
        mail = self.random.choice((self.p.mail, self.d.mail))
        if mail:
            self.take(mail)

    def take(self, mail: list[Any]) -> Any:
        """Any message, in any order, and sometimes it comes again."""
        at = self.random.randrange(len(mail))
        return mail[at] if self.random.random() < 0.2 else mail.pop(at)

    # -------------------------------------------------------------- the transport
    def write(self) -> None:
        """One more page of a push is written, however late."""
        flight = self.random.choice(self.flights)
        push, at = flight.push, flight.written
        if at < len(push.src):
            page = push.dst[at]
            transfer = self.incoming.get(push.transfer_id)
            assert transfer is not None, f"page {page} was written after it was given back"
            assert transfer.blocks[push.first + at] == page and self.d.pool.holds(page) == 1
            assert self.p.pool.holds(push.src[at]), "a block was read after it was given back"
            self.content[page] = push.transfer_id, push.first + at
            flight.written += 1

    def come_back(self) -> None:
        flight = self.random.choice(self.flights)
        damaged = self.random.random() < 0.05
        push, count = flight.push, len(flight.push.src)
        if flight.written < count and not flight.cancelled:
            return
        self.flights.remove(flight)
        ok = flight.written == count and not damaged
        if flight.written == count:
            self.arrivals.append((push.transfer_id, push.first, count, ok))
        work = self.outgoing[push.transfer_id]
        work.transfer.pushed(push.first, count, ok)
        if work.transfer.failed:
            self.cancel(push.transfer_id)
        self.sender_settles(work)

    def arrive(self) -> None:
        transfer_id, first, count, ok = self.take(self.arrivals)
        transfer = self.incoming.get(transfer_id)
        if transfer is None:
            return
        if not ok and transfer.status in (IncomingStatus.RESERVED, IncomingStatus.RECEIVING):
            self.refuse(transfer_id)
            return
        transfer.arrived(first, count, ok)
        self.receiver_settles(transfer_id)

    # -------------------------------------------------------------- things going wrong
    def sender_aborts(self) -> None:
        self.give_up(self.outgoing[self.random.choice(list(self.outgoing))])

    def receiver_aborts(self) -> None:
        self.refuse(self.random.choice(list(self.incoming)))

    @rule(seconds=st.floats(0, 6))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        alive = tuple(self.outgoing)
        waiting = OutgoingStatus.WAITING
        ungranted = tuple(t for t in alive if self.outgoing[t].transfer.status is waiting)
        self.d.mail.append(Renew(alive, ungranted))
        for transfer_id, transfer in list(self.incoming.items()):
            # Asked again for as long as there is no answer, since either may be lost.
            if transfer.expired(self.now) or transfer.status is IncomingStatus.DRAINING:
                self.refuse(transfer_id)

    @rule()
    def sender_dies(self) -> None:
        """Its writes end with it; another process takes its place."""
        self.flights.clear()
        self.outgoing.clear()
        self.p = Side(BlockPool(self.p.pool.num_blocks, 4))
        self.d.mail.clear()
        self.epoch += 1
        for transfer_id, transfer in list(self.incoming.items()):
            assert transfer.sender_epoch < self.epoch
            transfer.sender_lost()
            self.receiver_settles(transfer_id)

    # -------------------------------------------------------------- what the nodes do
    def give_up(self, work: Sending) -> None:
        work.transfer.abort()
        self.cancel(work.transfer.transfer_id)
        self.sender_settles(work)

    def cancel(self, transfer_id: int) -> None:
        for flight in self.flights:
            flight.cancelled |= flight.push.transfer_id == transfer_id

    def sender_settles(self, work: Sending) -> None:
        transfer = work.transfer
        if transfer.quiet and transfer.transfer_id in self.outgoing:
            del self.outgoing[transfer.transfer_id]
            self.p.pool.release(work.prompt)
            if transfer.status is OutgoingStatus.CLOSED:
                self.d.mail.append(Stopped(transfer.transfer_id))

    def refuse(self, transfer_id: int) -> None:
        self.incoming[transfer_id].abort()
        self.p.mail.append(AbortTransfer(transfer_id, "test"))
        self.receiver_settles(transfer_id)

    def receiver_settles(self, transfer_id: int) -> None:
        transfer = self.incoming[transfer_id]
        if transfer.status is IncomingStatus.COMPLETE:
            for place, page in enumerate(transfer.blocks):
                assert self.content[page] == (transfer_id, place), "complete, but not its content"
            transfer.close()
            self.done.append(transfer_id)
        if transfer.quiet:
            del self.incoming[transfer_id]
            self.d.pool.release(transfer.blocks)

    @invariant()
    def pools_are_sound(self) -> None:
        if hasattr(self, "p"):
            self.p.pool.check()
            self.d.pool.check()

    def teardown(self) -> None:
        """The network heals, and everything ends."""
        if not hasattr(self, "p"):
            return
        for work in list(self.outgoing.values()):
            self.give_up(work)
        for flight in list(self.flights):
            self.flights.remove(flight)
            work = self.outgoing[flight.push.transfer_id]
            work.transfer.pushed(flight.push.first, len(flight.push.src), False)
            self.sender_settles(work)
        assert not self.outgoing
        for transfer_id in list(self.incoming):
            self.incoming[transfer_id].abort()  # AbortTransfer goes out, Stopped comes back
            self.incoming[transfer_id].stopped()
            self.receiver_settles(transfer_id)
        assert self.p.pool.num_free == self.p.pool.num_blocks
        assert self.d.pool.num_free == self.d.pool.num_blocks


TestHandOffs = HandOffs.TestCase
TestHandOffs.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
