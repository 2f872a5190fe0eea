"""What every transport has in common."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport.events import Pushed, TransferEvent
from kvstore.transport.expected import Expected
from pd.sockets import LOOPBACK, CurveKeys
from pd.types import Peer

LAYOUT = "layout"  # among a peer's endpoints: the description of its KV layout


class EventQueue:
    """Events on their way from transport threads to the node's loop."""

    def __init__(self, on_event: Callable[[], None] | None = None) -> None:
        self.on_event = on_event
        self._events: deque[TransferEvent] = deque()

    def put(self, event: TransferEvent) -> None:
        self._events.append(event)
        # With more than one there, the call for the first has not led to a `drain` yet.
        if self.on_event is not None and len(self._events) == 1:
            self.on_event()

    def drain(self) -> list[TransferEvent]:
        events: list[TransferEvent] = []
        while self._events:
            events.append(self._events.popleft())
        return events


@dataclass(frozen=True)
class TransportSettings:
    """How transports work; the same for every node of a cell.

    `verify` False saves the checksums, and their detection of damage. Blocks travel in
    messages of up to `message_bytes` (always at least one block), at most `window_bytes`
    of them unacknowledged per peer. A peer that acknowledges nothing for
    `stall_timeout_s` has failed. `wire_dtype` is a KV dtype to send in between hosts where
    that takes fewer bytes than the dtypes of both ends; int8 and fp8 lose precision. Between
    hosts each pair of nodes has `connections` TCP connections, each with a thread of ZeroMQ.
    """

    bind: str = LOOPBACK
    keys: CurveKeys | None = None
    verify: bool = True
    message_bytes: int = 4 << 20
    window_bytes: int = 32 << 20
    stall_timeout_s: float = 10.0
    max_queued_pushes: int = 1 << 16
    wire_dtype: str | None = None
    device: str = "cpu"  # "cuda": KV is on a GPU, which transports between GPUs may use
    connections: int = field(default_factory=lambda: max(1, min(4, (os.cpu_count() or 1) // 4)))


@dataclass(eq=False)
class LocalNode:
    """The node that the transports of a hub work for."""

    id: str
    cluster_id: int
    arena: KVArena
    settings: TransportSettings
    events: EventQueue
    epoch: int = 0
    expected: Expected = field(default_factory=Expected)
    counters: Counter[str] = field(default_factory=Counter)
    # (transport, peer, its epoch) that turned out not to work, for the hub to take another.
    unusable: set[tuple[str, str, int]] = field(default_factory=set)


class PushState:
    """A push under way: it comes back once, when the last of its pieces has."""

    __slots__ = ("job", "num_bytes", "ok", "pieces", "started")

    def __init__(self, job: Push, pieces: int, num_bytes: int, started: float) -> None:
        self.job = job
        self.pieces = pieces
        self.num_bytes = num_bytes
        self.started = started
        self.ok = True

    def piece_done(self, ok: bool, now: float) -> Pushed | None:
        """Take a piece back; the event to report if it was the last."""
        self.ok &= ok
        self.pieces -= 1
        if self.pieces:
            return None
        job = self.job
        moved = self.num_bytes if self.ok else 0
        return Pushed(job.transfer_id, job.first, len(job.src), self.ok, now - self.started, moved)


class Transport(ABC):
    """Moves blocks from this node's arena into the arenas of peers, and takes theirs in.

    Nothing here blocks: the work happens in the transport's own thread, and its outcome
    comes as events. Every `push` comes back as exactly one `Pushed`, which is `ok` if the
    receiver has acknowledged the blocks; afterwards their source is no longer read. What
    arrives is checked against the node's `expected` and reported as `Arrived`.
    """

    name: ClassVar[str]
    endpoint: str  # for the peers' `connect`

    def __init__(self, node: LocalNode) -> None:
        self.node = node

    @abstractmethod
    def connect(self, peer: Peer) -> None:
        """Learn a peer or its successor. TransferError if this transport cannot reach it."""

    @abstractmethod
    def forget_peer(self, peer_id: str) -> None:
        """Stop sending to a peer; whatever is on its way to it comes back not ok."""

    @abstractmethod
    def push(self, job: Push) -> None:
        """Queue a push to a connected peer."""

    @abstractmethod
    def cancel(self, transfer_id: int) -> None:
        """Drop what is queued of a transfer: it comes back not ok."""

    @abstractmethod
    def close(self) -> None:
        """End the thread and give everything back; pushes under way come back not ok."""

    def _refuse(self, job: Push) -> None:
        self.node.events.put(Pushed(job.transfer_id, job.first, len(job.src), False))


def layout_of(peer: Peer, node: LocalNode) -> KVLayout:
    """The layout of a peer's KV, as it described it; one that did not has that of the node."""
    described = peer.endpoints.get(LAYOUT)
    return node.arena.layout if described is None else KVLayout.parse(described)


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    # A daemon: a node that ends without `close` must not be kept alive by its transports.
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
