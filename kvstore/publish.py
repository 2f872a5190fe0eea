"""Giving blocks to the pool: what a node has computed outlives the requests it was for. Pure.

node                                   pool
Put(keys)          ----------------->  which of these are new?
                   <-----------------  PutGranted(places, blocks)
blocks             ----------------->  verified, then findable by everybody
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from kvstore.blocks import BlockPool
from kvstore.prefix import pack_keys
from kvstore.transfer import OutgoingTransfer
from kvstore.transport.events import Pushed
from pd.messages import AbortTransfer, Put, PutGranted, Stopped
from pd.outbox import CancelPush, Outbox


@dataclass(slots=True, eq=False)
class Offer:
    """Blocks offered to the pool, held until it has them or does not want them."""

    outgoing: OutgoingTransfer
    blocks: list[int]
    until: float
    given_up: bool = False


class Publisher:
    """The puts of one node. At most `max_blocks` are held for them at a time: of what is offered
    beyond that only the beginning is put, and the rest (`num_skipped`) is computed again if it is
    ever evicted here."""

    def __init__(
        self,
        pool: BlockPool,
        outbox: Outbox,
        new_id: Callable[[], int],
        *,
        max_blocks: int,
        timeout_s: float,
    ) -> None:
        self._pool = pool
        self._outbox = outbox
        self._new_id = new_id
        self._max_blocks = max_blocks
        self._timeout_s = timeout_s
        self._target: tuple[str, int] | None = None
        self._offers: dict[int, Offer] = {}
        self._num_held = 0
        self.epoch = 0  # of this node
        self.num_put = 0
        self.num_skipped = 0

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, transfer_id: int) -> bool:
        return transfer_id in self._offers

    def use(self, pool_id: str, epoch: int) -> None:
        """Put here from now on; an empty id means nowhere."""
        self._target = (pool_id, epoch) if pool_id else None

    def offer(self, keys: Seq[bytes], blocks: Seq[int], now: float) -> None:
        """Put these blocks, which somebody holds and whose content is complete."""
        if self._target is None:
            return
        count = min(len(keys), self._max_blocks - self._num_held)
        self.num_skipped += len(keys) - count
        if not count:
            return
        held = list(blocks[:count])
        self._pool.hold(held)
        self._num_held += len(held)
        transfer_id = self._new_id()
        outgoing = OutgoingTransfer(transfer_id, *self._target)
        self._offers[transfer_id] = Offer(outgoing, held, now + self._timeout_s)
        put = Put(transfer_id, self.epoch, pack_keys(keys[:count]))
        self._outbox.send(outgoing.receiver, put)

    def granted(self, sender: str, message: PutGranted) -> None:
        offer = self._offers.get(message.transfer_id)
        if offer is None or offer.given_up:
            if message.places:  # we gave up before it answered: its pages are free again
                self._outbox.send(sender, Stopped(message.transfer_id))
            return
        outgoing = offer.outgoing
        if outgoing.receiver != sender or outgoing.in_flight:
            return
        places, count = message.places, len(offer.blocks)
        if not places:
            self._close(message.transfer_id, offer)
            return
        if len(places) != len(message.blocks) or not all(0 <= p < count for p in places):
            self._outbox.send(sender, Stopped(message.transfer_id))
            self._close(message.transfer_id, offer)
            return
        outgoing.granted(0, message.blocks)
        push = outgoing.offer([offer.blocks[place] for place in places], final=True)
        if push is not None:
            self._outbox.add(push)

    def pushed(self, event: Pushed) -> None:
        offer = self._offers.get(event.transfer_id)
        if offer is None:
            return
        offer.outgoing.pushed(event.first, event.count, event.ok)
        if event.ok:
            self.num_put += event.count
        else:
            offer.given_up = True
        self._settle(event.transfer_id, offer)

    def abort_transfer(self, sender: str, message: AbortTransfer) -> None:
        """The pool does not wait for it any longer."""
        offer = self._offers.get(message.transfer_id)
        if offer is not None and offer.outgoing.receiver == sender:
            self._give_up(message.transfer_id, offer)

    def peer_lost(self, peer: str, epoch: int) -> None:
        if self._target is not None and self._target[0] == peer and self._target[1] <= epoch:
            self._target = None
        for transfer_id, offer in list(self._offers.items()):
            outgoing = offer.outgoing
            if outgoing.is_to(peer, epoch):
                self._give_up(transfer_id, offer)

    def tick(self, now: float) -> None:
        for transfer_id, offer in list(self._offers.items()):
            if now < offer.until:
                break  # they are in the order of their times
            if not offer.given_up:
                self._give_up(transfer_id, offer)

    def _give_up(self, transfer_id: int, offer: Offer) -> None:
        offer.given_up = True
        in_flight = bool(offer.outgoing.in_flight)
        offer.outgoing.abort()
        if in_flight:
            self._outbox.add(CancelPush(transfer_id))
        self._settle(transfer_id, offer)

    def _settle(self, transfer_id: int, offer: Offer) -> None:
        """Let go of the blocks once no push reads them."""
        if offer.outgoing.quiet:
            if offer.given_up:
                self._outbox.send(offer.outgoing.receiver, Stopped(transfer_id))
            self._close(transfer_id, offer)

    def _close(self, transfer_id: int, offer: Offer) -> None:
        del self._offers[transfer_id]
        self._num_held -= len(offer.blocks)
        self._pool.release(offer.blocks)
