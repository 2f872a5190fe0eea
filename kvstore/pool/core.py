"""A pool node's brain: blocks come by `Put`, and go to whoever asks by `Fetch`. Pure.

A block is findable once it has arrived and was verified. One that a fetch wants from the disk
is read into a page first, and sent when it is there; blocks are sent in order, so that what a
fetch has brought when it ends early is a prefix that can be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from kvstore.blocklog import BlockLog
from kvstore.eviction import DEFAULT_EVICTION
from kvstore.pool.effects import DiskOutcome, PoolEffect
from kvstore.pool.tiers import Tiers
from kvstore.prefix import unpack_keys
from kvstore.transfer import IncomingStatus, IncomingTransfer, OutgoingStatus, OutgoingTransfer
from kvstore.transport.events import Arrived, Pushed, TransferEvent
from pd.errors import TransferError
from pd.messages import (
    AbortTransfer,
    Fetch,
    Heartbeat,
    Message,
    PeerLost,
    Put,
    PutGranted,
    Stopped,
    SyncBlocks,
    UsePool,
)
from pd.outbox import CancelPush, Expect, Forget, Outbox
from pd.reporter import Reporter
from pd.types import NodeSnapshot, Role


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Sizes of the tiers in blocks, bounds on disk work under way, and times in seconds."""

    num_pages: int
    num_slots: int = 0
    eviction: str = DEFAULT_EVICTION
    max_disk_writes: int = 32
    max_disk_reads: int = 64
    lease_s: float = 10.0
    heartbeat_s: float = 0.5
    snapshot_s: float = 0.05


@dataclass(slots=True, eq=False)
class Receiving:
    """A put under way: the pages it fills, in the order of its transfer, and their keys."""

    transfer: IncomingTransfer
    keys: list[bytes]
    stored: int = 0
    asked_to_stop: float = 0.0


@dataclass(slots=True, eq=False)
class Serving:
    """A fetch under way: the blocks it gets, all pinned, and those still read from the disk.
    `whole` says that it gets all that it asked for."""

    outgoing: OutgoingTransfer
    keys: list[bytes]
    whole: bool
    offered: int = 0
    reading: set[bytes] = field(default_factory=set)
    failed: bool = False


class PoolCore:
    """Both tiers of one pool node and every put and fetch under way."""

    def __init__(self, node_id: str, limits: PoolLimits) -> None:
        self.node_id = node_id
        self.role: Role = "pool"
        self.limits = limits
        self.epoch = 0
        self.outbox = Outbox(node_id)
        self.counters: Counter[str] = Counter()
        self._log = BlockLog()
        self._reporter = Reporter(self.outbox, limits.heartbeat_s, limits.snapshot_s, self._log)
        self.tiers = Tiers(
            limits.num_pages, limits.num_slots, self._log, self.counters,
            eviction=limits.eviction, max_writes=limits.max_disk_writes,
            max_reads=limits.max_disk_reads,
        )  # fmt: skip
        self.receiving: dict[int, Receiving] = {}
        self._coming: set[bytes] = set()
        self.serving: dict[int, Serving] = {}
        self._readers: dict[bytes, list[int]] = {}  # key to the fetches that wait for it

    # -------------------------------------------------------------- events in
    def recovered(self, slots: Iterable[tuple[int, bytes]]) -> None:
        """What the disk of an earlier process still holds, oldest first."""
        self.counters["recovered"] = self.tiers.recovered(slots)

    def on_message(self, sender: str, message: Message, now: float) -> None:
        if isinstance(message, Heartbeat):
            return
        self._reporter.changed()
        if isinstance(message, Put):
            self._put(sender, message, now)
        elif isinstance(message, Fetch):
            self._fetch(sender, message)
        elif isinstance(message, Stopped):
            self._put_stopped(sender, message.transfer_id)
        elif isinstance(message, AbortTransfer):
            self._fetch_aborted(sender, message.transfer_id)
        elif isinstance(message, PeerLost):
            self._peer_lost(message.id, message.epoch)
        elif isinstance(message, SyncBlocks):
            self._log.resync(self.tiers.inventory())
        elif not isinstance(message, UsePool):
            raise TypeError(f"a pool has no use for {type(message).__name__} from {sender}")

    def on_transfer(self, event: TransferEvent, now: float) -> None:
        self._reporter.changed()
        if isinstance(event, Arrived):
            self._arrived(event, now)
        elif isinstance(event, Pushed):
            self._pushed(event)

    def on_disk(self, done: DiskOutcome) -> None:
        self._reporter.changed()
        self.tiers.done(done)
        if done.kind == "read":
            for transfer_id in self._readers.pop(done.key, ()):
                serving = self.serving.get(transfer_id)
                if serving is not None:
                    serving.reading.discard(done.key)
                    serving.failed |= not done.ok
                    self._offer(serving)

    def tick(self, now: float) -> None:
        """Leases, disk work, events and heartbeats; on every turn of the loop."""
        self._end_leases(now)
        self.tiers.work()
        if self.epoch and self._reporter.due(now):
            self._reporter.report(self.snapshot(), now)

    def next_tick(self) -> float:
        """When `tick` has something to do at the latest."""
        return self._reporter.next

    @property
    def at_rest(self) -> bool:
        """Nothing is under way and nothing is left to report."""
        busy = self.receiving or self.serving or not self.tiers.idle
        return not (busy or self._reporter.has_news)

    def drain(self) -> list[PoolEffect]:
        disk, self.tiers.effects = self.tiers.effects, []
        return [*disk, *self.outbox.drain()]

    def snapshot(self) -> NodeSnapshot:
        count, tiers = self.counters, self.tiers
        return NodeSnapshot(
            node_id=self.node_id,
            role=self.role,
            epoch=self.epoch,
            num_reserving=len(self.receiving),
            num_running=len(self.serving),
            num_blocks=tiers.num_pages,
            free_blocks=tiers.num_free_pages,
            cached_blocks=tiers.num_in_dram,
            num_disk_blocks=tiers.num_slots,
            disk_blocks=tiers.num_on_disk,
            stored_blocks=count["stored"],
            served_blocks=count["served"],
            served_disk_blocks=count["read"],
            dropped_blocks=count["dropped"] + count["no_room"] + count["disk_errors"],
        )

    # -------------------------------------------------------------- puts
    def _put(self, sender: str, message: Put, now: float) -> None:
        transfer_id = message.transfer_id
        if transfer_id in self.receiving:
            return
        keys = unpack_keys(message.keys)
        places: list[int] = []
        pages: list[int] = []
        for place, key in enumerate(keys):
            if key in self.tiers or key in self._coming:
                continue
            page = self.tiers.take_page()
            if page is None:
                self.counters["no_room"] += len(keys) - place
                break
            self._coming.add(key)
            places.append(place)
            pages.append(page)
        if pages:
            transfer = IncomingTransfer(
                transfer_id, sender, message.epoch, pages, now + self.limits.lease_s
            )
            wanted = [keys[place] for place in places]
            self.receiving[transfer_id] = Receiving(transfer, wanted)
            self.outbox.add(Expect(transfer_id, sender, message.epoch, tuple(pages)))
        self.outbox.send(sender, PutGranted(transfer_id, tuple(places), tuple(pages)))

    def _arrived(self, event: Arrived, now: float) -> None:
        receiving = self.receiving.get(event.transfer_id)
        if receiving is None:
            return
        transfer = receiving.transfer
        try:
            transfer.arrived(event.first, event.count, event.ok)
        except TransferError as error:
            self.counters["damaged"] += event.count
            self._give_up(receiving, str(error))
            return
        transfer.renew(now + self.limits.lease_s)
        for i in range(receiving.stored, transfer.num_leading):
            self._coming.discard(receiving.keys[i])
            self.tiers.store(receiving.keys[i], transfer.blocks[i])
            self.counters["stored"] += 1
        receiving.stored = transfer.num_leading
        if transfer.complete:
            self._close_put(receiving)

    def _put_stopped(self, sender: str, transfer_id: int) -> None:
        receiving = self.receiving.get(transfer_id)
        if receiving is not None and receiving.transfer.sender == sender:
            self._close_put(receiving)

    def _give_up(self, receiving: Receiving, reason: str) -> None:
        transfer = receiving.transfer
        transfer.abort()
        self.outbox.add(Forget(transfer.transfer_id))
        self.outbox.send(transfer.sender, AbortTransfer(transfer.transfer_id, reason))

    def _close_put(self, receiving: Receiving) -> None:
        """Nobody writes into its pages any more: those that were not filled are free."""
        transfer = receiving.transfer
        transfer.stopped()
        del self.receiving[transfer.transfer_id]
        self.outbox.add(Forget(transfer.transfer_id))
        self.tiers.settle(receiving.keys[: receiving.stored])
        self._coming.difference_update(receiving.keys[receiving.stored :])
        self.tiers.give_back(transfer.blocks[receiving.stored :])

    def _end_leases(self, now: float) -> None:
        for receiving in list(self.receiving.values()):
            transfer = receiving.transfer
            if transfer.expired(now):
                self._give_up(receiving, f"nothing came for {self.limits.lease_s:g} s")
                receiving.asked_to_stop = now + self.limits.lease_s
            elif transfer.status is IncomingStatus.DRAINING and now >= receiving.asked_to_stop:
                receiving.asked_to_stop = now + self.limits.lease_s
                stop = AbortTransfer(transfer.transfer_id, "given up by the pool")
                self.outbox.send(transfer.sender, stop)

    # -------------------------------------------------------------- fetches
    def _fetch(self, sender: str, message: Fetch) -> None:
        transfer_id, tiers = message.transfer_id, self.tiers
        if transfer_id in self.serving:
            return
        keys: list[bytes] = []
        for key in unpack_keys(message.keys)[: len(message.blocks)]:
            if key not in tiers:
                break
            tiers.pin(key)
            keys.append(key)
        tiers.touch(keys)
        reading: set[bytes] = set()
        for i, key in enumerate(keys):
            if tiers.page_of(key) is None:
                if not tiers.want_from_disk(key):
                    self.counters["no_room"] += len(keys) - i
                    tiers.unpin(keys[i:])
                    del keys[i:]
                    break
                reading.add(key)
        if not keys:
            self.outbox.send(sender, Stopped(transfer_id))
            return
        outgoing = OutgoingTransfer(transfer_id, sender, message.epoch)
        outgoing.granted(0, message.blocks[: len(keys)])
        whole = len(keys) == len(message.blocks)
        serving = self.serving[transfer_id] = Serving(outgoing, keys, whole, reading=reading)
        for key in reading:
            self._readers.setdefault(key, []).append(transfer_id)
        self._offer(serving)

    def _offer(self, serving: Serving) -> None:
        """Push what is in pages, from the first on without a hole."""
        outgoing = serving.outgoing
        pages = []
        for key in serving.keys:
            page = self.tiers.page_of(key)
            if page is None:
                break
            pages.append(page)
        if outgoing.status is OutgoingStatus.SENDING and len(pages) > serving.offered:
            serving.offered = len(pages)
            push = outgoing.offer(pages, final=len(pages) == len(serving.keys))
            if push is not None:
                self.outbox.add(push)
        if serving.failed and not serving.reading:
            outgoing.abort()
        self._settle(serving)

    def _pushed(self, event: Pushed) -> None:
        serving = self.serving.get(event.transfer_id)
        if serving is None:
            return
        serving.outgoing.pushed(event.first, event.count, event.ok)
        if event.ok:
            self.counters["served"] += event.count
        self._settle(serving)

    def _fetch_aborted(self, sender: str, transfer_id: int) -> None:
        serving = self.serving.get(transfer_id)
        if serving is None:
            self.outbox.send(sender, Stopped(transfer_id))
        elif serving.outgoing.receiver == sender:
            self._cancel(serving)

    def _cancel(self, serving: Serving) -> None:
        if serving.outgoing.in_flight:
            self.outbox.add(CancelPush(serving.outgoing.transfer_id))
        serving.outgoing.abort()
        self._settle(serving)

    def _settle(self, serving: Serving) -> None:
        """Let go of the blocks once no push reads them."""
        outgoing = serving.outgoing
        if not outgoing.quiet:
            return
        del self.serving[outgoing.transfer_id]
        self.tiers.unpin(serving.keys)
        if not serving.whole or outgoing.status is not OutgoingStatus.SENT:
            self.outbox.send(outgoing.receiver, Stopped(outgoing.transfer_id))

    # -------------------------------------------------------------- losses
    def _peer_lost(self, peer: str, epoch: int) -> None:
        for receiving in list(self.receiving.values()):
            transfer = receiving.transfer
            if transfer.is_from(peer, epoch):
                self._close_put(receiving)
        for serving in list(self.serving.values()):
            outgoing = serving.outgoing
            if outgoing.is_to(peer, epoch):
                self._cancel(serving)

    def check(self) -> None:
        """Assert every invariant, in O(blocks). For tests and post-mortems."""
        pins = Counter(key for serving in self.serving.values() for key in serving.keys)
        taken: list[int] = []
        for receiving in self.receiving.values():
            taken += receiving.transfer.blocks[receiving.stored :]
        self.tiers.check(pins, taken)

    def check_idle(self) -> None:
        """Assert that nothing is under way."""
        assert not self.receiving and not self.serving, (self.receiving, self.serving)
        assert self.tiers.idle and not self._coming and not self._readers
        self.check()
