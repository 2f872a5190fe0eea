"""Times block transfers between two hubs of this host, for a cost model."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport.base import TransportSettings
from kvstore.transport.hub import TransportHub
from pd.cost.model import Link
from pd.errors import TransferError
from pd.types import Peer

# What a cost model calls them, by the transport that goes there.
PATHS = {"shm": "shm", "zmq": "tcp"}
_SIZES = (1, 4, 16, 64)
_CLUSTER = 1
_WAIT_S = 30.0


def probe_links(layout: KVLayout, rounds: int = 7) -> dict[str, Link]:
    """The links between processes of this host, by path: latency and bandwidth of a least-squares
    line through the median times of some sizes. TransferError if a transfer fails."""
    return {path: _probe(layout, name, rounds) for name, path in PATHS.items()}


def _probe(layout: KVLayout, transport: str, rounds: int) -> Link:
    with _pair(layout, transport, rounds) as push:
        times = {size: [push(size) for _ in range(rounds)][1:] for size in _SIZES}
    medians = {size * layout.block_bytes: statistics.median(t) for size, t in times.items()}
    return Link.through(medians)


@contextmanager
def _pair(layout: KVLayout, transport: str, rounds: int) -> Iterator[Callable[[int], float]]:
    """A function that pushes so many blocks and returns the seconds until they were verified."""
    count = max(_SIZES)
    ready = threading.Event()
    arenas = [KVArena(layout, count, shared=True) for _ in range(2)]
    hubs: list[TransportHub] = []
    try:
        for epoch, (name, arena) in enumerate(zip(("sender", "receiver"), arenas), start=1):
            arena.blocks[:] = epoch  # touched, as the arena of a node that has run for a while
            hub = TransportHub(
                name, _CLUSTER, arena, transports=[transport], settings=TransportSettings(),
                on_event=ready.set if epoch == 1 else lambda: None,
            )  # fmt: skip
            hub.epoch = epoch
            hubs.append(hub)
        sender, receiver = hubs
        transfers = iter(range(rounds * len(_SIZES)))
        for transfer_id in range(rounds * len(_SIZES)):
            receiver.expect(transfer_id, "sender", 1, range(count))
        sender.connect(Peer("receiver", 2, receiver.endpoints()))

        def push(size: int) -> float:
            blocks = tuple(range(size))
            begun = time.perf_counter()
            sender.push(Push(next(transfers), "receiver", 2, 0, blocks, blocks))
            while not (events := sender.poll()):
                if not ready.wait(_WAIT_S):
                    raise TransferError(f"blocks sent by {transport} did not arrive")
                ready.clear()
            taken = time.perf_counter() - begun
            if not events[0].ok:
                raise TransferError(f"blocks could not be sent by {transport}")
            receiver.poll()
            return taken

        yield push
    finally:
        for hub in hubs:
            hub.close()
        for arena in arenas:
            arena.close()
