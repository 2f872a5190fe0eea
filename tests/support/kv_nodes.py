"""Two nodes with arenas and transports, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport.base import TransportSettings
from kvstore.transport.events import Arrived, Pushed, TransferEvent
from kvstore.transport.hub import TransportHub
from pd.types import Peer

LAYOUT = KVLayout("float32", 2, 1, 8, 4, "model")  # blocks of 512 bytes
CLUSTER = 99


class Node:
    """A hub, its arena full of random bytes, and every event it ever reported."""

    def __init__(
        self,
        node_id: str,
        transports: Sequence[str],
        *,
        epoch: int = 1,
        num_blocks: int = 64,
        layout: KVLayout = LAYOUT,
        cluster_id: int = CLUSTER,
        **settings: object,
    ) -> None:
        self.arena = KVArena(layout, num_blocks, shared=True)
        noise = np.random.default_rng(len(node_id) + epoch)
        self.arena.blocks[:] = noise.integers(0, 256, self.arena.blocks.shape, np.uint8)
        self.woken = threading.Event()
        self.events: list[TransferEvent] = []
        self.id = node_id
        self.hub = TransportHub(
            node_id,
            cluster_id,
            self.arena,
            transports=transports,
            settings=TransportSettings(**settings),
            on_event=self.woken.set,
        )
        self.hub.epoch = epoch

    @property
    def peer(self) -> Peer:
        return Peer(self.id, self.hub.epoch, self.hub.endpoints())

    def push(
        self,
        to: Node | Peer,
        transfer_id: int,
        src: Sequence[int],
        dst: Sequence[int],
        first: int = 0,
    ) -> Push:
        peer = to.peer if isinstance(to, Node) else to
        job = Push(transfer_id, peer.id, peer.epoch, first, tuple(src), tuple(dst))
        self.hub.push(job)
        return job

    def collect(self) -> list[TransferEvent]:
        self.events += self.hub.poll()
        return self.events

    def pushed(self, transfer_id: int) -> list[Pushed]:
        return [
            event
            for event in self.collect()
            if isinstance(event, Pushed) and event.transfer_id == transfer_id
        ]

    def arrived(self, transfer_id: int) -> list[Arrived]:
        return [
            event
            for event in self.collect()
            if isinstance(event, Arrived) and event.transfer_id == transfer_id
        ]

    def wait_pushed(self, transfer_id: int, count: int = 1) -> list[Pushed]:
        wait_until(lambda: len(self.pushed(transfer_id)) >= count, "pushes to come back")
        return self.pushed(transfer_id)

    def close(self) -> None:
        self.hub.close()
        self.collect()
        self.arena.close()


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.001)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


RECEIVER = """
import sys
from kv_nodes import Node
node = Node("child", [sys.argv[1]], epoch=7, num_blocks=int(sys.argv[2]))
node.hub.expect(1, "a", 1, range(node.arena.num_blocks))
print(node.hub.endpoints()[sys.argv[1]], flush=True)
sys.stdin.read()
"""


class ChildReceiver:
    """A receiver in a process of its own, which expects transfer 1 from `a`."""

    def __init__(self, transport: str, num_blocks: int) -> None:
        here = Path(__file__).parent
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", RECEIVER, transport, str(num_blocks)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout
        self.peer = Peer("child", 7, {transport: self.process.stdout.readline().strip()})

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
