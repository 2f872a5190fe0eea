"""Bringing cached blocks from where they are: the two ends of a fetch. Pure.

    node                                   holder (the pool, or another node)
    Fetch(keys, blocks) ---------------->  holds what it has of them, from the first on
                        <----------------  blocks
                        <----------------  Stopped, if that was not all

A fetch is a transfer that its receiver asked for, and keeps the same rule: a page into which
a write may still be in flight is not reused. A node fetches into its prefix cache: what has
arrived is registered, and found there when the prompt is started.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from kvstore.blocks import BlockPool
from kvstore.prefix import pack_keys, unpack_keys
from kvstore.transfer import IncomingStatus, IncomingTransfer, OutgoingStatus, OutgoingTransfer
from kvstore.transport.events import Arrived, Pushed
from pd.errors import TransferError
from pd.messages import AbortTransfer, Fetch, Stopped
from pd.outbox import CancelPush, Expect, Forget, Outbox
from pd.types import Source

Done = Callable[[float], None]  # is told the time


@dataclass(slots=True, eq=False)
class Fetching:
    """One fetch under way. `waiting` hear of its end; empty again once they have.

    `ended` says that the holder writes no more. Blocks that it wrote before may still wait in
    the queue of transfer events, so the fetch is closed by the next `tick`.
    """

    transfer: IncomingTransfer
    keys: list[bytes]
    num_slow: int
    started: float
    until: float
    waiting: list[Done]
    registered: int = 0
    ended: bool = False


class Fetcher:
    """The fetches of one node into its own pool. A block is fetched once at a time, however
    many prompts wait for it; `costs` learns what fetches take."""

    def __init__(
        self, pool: BlockPool, outbox: Outbox, new_id: Callable[[], int], *, timeout_s: float
    ) -> None:
        self._pool = pool
        self._outbox = outbox
        self._new_id = new_id
        self._timeout_s = timeout_s
        self._fetches: dict[int, Fetching] = {}
        self._by_key: dict[bytes, Fetching] = {}
        self.costs = FetchCosts()
        self.epoch = 0  # of this node
        self.num_blocks = 0  # fetched so far

    def __len__(self) -> int:
        return len(self._fetches)

    def __contains__(self, transfer_id: int) -> bool:
        return transfer_id in self._fetches

    def find(self, key: bytes) -> Fetching | None:
        """The fetch that is bringing this block."""
        return self._by_key.get(key)

    def start(self, source: Source, keys: Seq[bytes], num_slow: int, now: float) -> Fetching | None:
        """Fetch blocks of which none is here or on its way; None if there is no room."""
        if not self._pool.can_allocate(len(keys)):
            return None
        blocks = self._pool.allocate(len(keys))
        transfer_id = self._new_id()
        until = now + self._timeout_s
        transfer = IncomingTransfer(transfer_id, source.holder, source.epoch, blocks, until)
        fetching = Fetching(transfer, list(keys), num_slow, now, until, [])
        self._fetches[transfer_id] = fetching
        for key in keys:
            self._by_key[key] = fetching
        outbox = self._outbox
        outbox.add(Expect(transfer_id, source.holder, source.epoch, tuple(blocks)))
        fetch = Fetch(transfer_id, self.epoch, pack_keys(keys), tuple(blocks))
        outbox.send(source.holder, fetch)
        return fetching

    def arrived(self, event: Arrived, now: float) -> None:
        fetching = self._fetches.get(event.transfer_id)
        if fetching is None:
            return
        transfer = fetching.transfer
        try:
            transfer.arrived(event.first, event.count, event.ok)
        except TransferError as error:
            self._give_up(fetching, str(error), now)
            return
        self._register(fetching)
        if transfer.complete:
            fast = len(fetching.keys) - fetching.num_slow
            self.costs.learn(fast, fetching.num_slow, now - fetching.started, now)
            self._close(fetching, now)
        else:
            fetching.until = now + self._timeout_s  # of a holder that goes on sending

    def stopped(self, sender: str, message: Stopped) -> None:
        fetching = self._fetches.get(message.transfer_id)
        if fetching is not None and fetching.transfer.sender == sender:
            fetching.ended = True

    def peer_lost(self, peer: str, epoch: int) -> None:
        for fetching in list(self._fetches.values()):
            transfer = fetching.transfer
            if transfer.is_from(peer, epoch):
                fetching.ended = True

    def tick(self, now: float) -> None:
        """Close what has ended; stop waiting for holders that have gone silent."""
        for fetching in list(self._fetches.values()):
            if fetching.ended:
                fetching.transfer.stopped()
                self._close(fetching, now)
            elif now >= fetching.until:
                fetching.until = now + self._timeout_s
                if fetching.transfer.status is not IncomingStatus.DRAINING:
                    self.costs.failed(now)
                self._give_up(fetching, f"nothing came for {self._timeout_s:g} s", now)

    def _register(self, fetching: Fetching) -> None:
        blocks, end = fetching.transfer.blocks, fetching.transfer.num_leading
        for i in range(fetching.registered, end):
            self._pool.register(blocks[i], fetching.keys[i])
        self.num_blocks += end - fetching.registered
        fetching.registered = end

    def _give_up(self, fetching: Fetching, reason: str, now: float) -> None:
        """Those who wait go on without; the pages wait for the holder's word."""
        transfer = fetching.transfer
        transfer.abort()
        self._outbox.add(Forget(transfer.transfer_id))
        self._outbox.send(transfer.sender, AbortTransfer(transfer.transfer_id, reason))
        self._tell(fetching, now)

    def _close(self, fetching: Fetching, now: float) -> None:
        """Nothing writes into the pages any more: what is registered stays as cache."""
        transfer = fetching.transfer
        del self._fetches[transfer.transfer_id]
        self._outbox.add(Forget(transfer.transfer_id))
        self._pool.release(transfer.blocks)
        self._tell(fetching, now)

    def _tell(self, fetching: Fetching, now: float) -> None:
        for key in fetching.keys:
            if self._by_key.get(key) is fetching:
                del self._by_key[key]
        waiting, fetching.waiting = fetching.waiting, []
        for done in waiting:
            done(now)


class FetchCosts:
    """What fetching a block takes, as measured: smoothed seconds, of fast and of slow ones.

    A figure that nothing has confirmed for a while is forgotten, so that a holder that was
    slow once is tried again.
    """

    def __init__(self, *, smoothing: float = 0.3, forget_s: float = 30.0) -> None:
        self.fast = 0.0
        self.slow = 0.0
        self._smoothing = smoothing
        self._forget_s = forget_s
        self._learned = float("-inf")

    def learn(self, num_fast: int, num_slow: int, seconds: float, now: float) -> None:
        self._learned = now
        if num_slow:
            rest = max(0.0, seconds - num_fast * self.fast)
            self.slow = self._blend(self.slow, rest / num_slow)
        elif num_fast:
            self.fast = self._blend(self.fast, seconds / num_fast)

    def failed(self, now: float) -> None:
        """A holder did not answer: fetching costs twice of what it was thought to."""
        self._learned = now
        self.fast *= 2
        self.slow *= 2

    def expected(self, num_fast: int, num_slow: int, now: float) -> float:
        """Seconds that a fetch will take; 0, an invitation to try, while nothing is known."""
        if now - self._learned > self._forget_s:
            return 0.0
        return num_fast * self.fast + num_slow * (self.slow or self.fast)

    def _blend(self, old: float, new: float) -> float:
        return old + self._smoothing * (new - old) if old else new


class BlockServer:
    """The other end: what a node holds in its own cache, given to those who ask."""

    def __init__(self, pool: BlockPool, outbox: Outbox) -> None:
        self._pool = pool
        self._outbox = outbox
        self._serving: dict[int, tuple[OutgoingTransfer, list[int], bool]] = {}
        self.num_blocks = 0

    def __len__(self) -> int:
        return len(self._serving)

    def __contains__(self, transfer_id: int) -> bool:
        return transfer_id in self._serving

    def fetch(self, sender: str, message: Fetch) -> None:
        transfer_id = message.transfer_id
        if transfer_id in self._serving:
            return
        blocks = self._pool.match(unpack_keys(message.keys)[: len(message.blocks)])
        if not blocks:
            self._outbox.send(sender, Stopped(transfer_id))
            return
        outgoing = OutgoingTransfer(transfer_id, sender, message.epoch)
        outgoing.granted(0, message.blocks[: len(blocks)])
        whole = len(blocks) == len(message.blocks)
        self._serving[transfer_id] = outgoing, blocks, whole
        push = outgoing.offer(blocks, final=True)
        if push is not None:
            self._outbox.add(push)

    def pushed(self, event: Pushed) -> None:
        serving = self._serving.get(event.transfer_id)
        if serving is None:
            return
        outgoing, blocks, whole = serving
        outgoing.pushed(event.first, event.count, event.ok)
        if event.ok:
            self.num_blocks += event.count
        if not outgoing.quiet:
            return
        del self._serving[event.transfer_id]
        self._pool.release(blocks)
        if not whole or outgoing.status is not OutgoingStatus.SENT:
            self._outbox.send(outgoing.receiver, Stopped(event.transfer_id))

    def abort_transfer(self, sender: str, message: AbortTransfer) -> None:
        """The receiver does not wait for it any longer; what is not served has stopped."""
        serving = self._serving.get(message.transfer_id)
        if serving is None:
            self._outbox.send(sender, Stopped(message.transfer_id))
        elif serving[0].receiver == sender:
            self._cancel(message.transfer_id, serving[0])

    def peer_lost(self, peer: str, epoch: int) -> None:
        for transfer_id, (outgoing, _, _) in list(self._serving.items()):
            if outgoing.is_to(peer, epoch):
                self._cancel(transfer_id, outgoing)

    def _cancel(self, transfer_id: int, outgoing: OutgoingTransfer) -> None:
        outgoing.abort()
        self._outbox.add(CancelPush(transfer_id))
