"""Blocks by torch.distributed: gloo between CPUs, NCCL between GPUs.

Each ordered pair of nodes has a process group of its own, of which the sender is rank 0. Its
rendezvous goes over the transport's ZeroMQ sockets, encrypted where they are: there is no other
store. The blocks themselves are not encrypted by either backend.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.distributed as dist
import zmq
from torch import Tensor

from kvstore.transport import copying, placing
from kvstore.transport.base import LocalNode
from kvstore.transport.copying import Blocks
from kvstore.transport.courier import Courier
from kvstore.transport.inbox import Landing, Ready, Rendezvous
from kvstore.transport.lane import Lane, Line, Piece
from kvstore.transport.offered import OfferedTransport
from pd.errors import ConfigError, TransferError
from pd.sockets import bind_host
from pd.types import Peer
from pd.wire import Header

log = logging.getLogger(__name__)

_MAX_SENDERS = 1024
_MAX_TAG = 1 << 30


class Group(Protocol):
    """A connection of two."""

    def send(self, blocks: Blocks, tag: int) -> None: ...

    def recv(self, blocks: Blocks, tag: int) -> None: ...


class GlooGroup:
    """Two CPUs."""

    def __init__(self, store: dist.Store, rank: int, host: str, timeout_s: float) -> None:
        gloo: Any = dist.ProcessGroupGloo  # whose stubs lack most of it
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_s)
        options._threads = 1
        self._peer = 1 - rank
        self._group = gloo(store, rank, 2, options)

    def send(self, blocks: Blocks, tag: int) -> None:
        self._group.send([torch.from_numpy(blocks)], self._peer, tag % _MAX_TAG).wait()

    def recv(self, blocks: Blocks, tag: int) -> None:
        self._group.recv([torch.from_numpy(blocks)], self._peer, tag % _MAX_TAG).wait()


class NcclGroup:
    """Two GPUs, through memory on each: the blocks come from the host's memory and go there."""

    def __init__(self, store: dist.Store, rank: int, host: str, timeout_s: float) -> None:
        nccl: Any = dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = timedelta(seconds=timeout_s)
        self._peer = 1 - rank
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._group = nccl(store, rank, 2, options)

    def send(self, blocks: Blocks, tag: int) -> None:
        on_device = torch.from_numpy(blocks).to(self._device)
        self._group.send([on_device], self._peer, tag % _MAX_TAG).wait()
        torch.cuda.current_stream(self._device).synchronize()

    def recv(self, blocks: Blocks, tag: int) -> None:
        on_device: Tensor = torch.empty(blocks.shape, dtype=torch.uint8, device=self._device)
        self._group.recv([on_device], self._peer, tag % _MAX_TAG).wait()
        torch.from_numpy(blocks).copy_(on_device)


class SharedStore(dist.Store):
    """The table by which two processes find each other: what one sets, the other is told."""

    def __init__(self, publish: Callable[[str, bytes], object], timeout_s: float) -> None:
        super().__init__()
        self._publish = publish
        self._timeout_s = timeout_s
        self._entries: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        """What the other one has set."""
        with self._changed:
            self._entries[key] = value
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # ------------------------------------------------------------------ what torch calls
    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self.put(key, data)
        self._publish(key, data)

    def get(self, key: str) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while key not in self._entries:
                left_s = deadline - time.monotonic()
                if self._closed or left_s <= 0:
                    raise TransferError(f"the other end never said {key}")
                self._changed.wait(left_s)
            return self._entries[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: Sequence[str]) -> bool:
        with self._changed:
            return all(key in self._entries for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            value = int(self._entries.get(key, b"0")) + amount
            self._entries[key] = str(value).encode()
            return value

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()


class _End:
    """One end of a process group, and the thread that uses it.

    `group` is (its sender's epoch, its number), of which a later group of that sender has more.
    """

    def __init__(self, group: tuple[int, int], store: SharedStore, courier: Courier[Group]) -> None:
        self.group = group
        self.store = store
        self.courier = courier
        self.pending: dict[int, Landing] = {}  # what is to arrive here, by sequence number

    def close(self) -> None:
        self.store.close()
        self.courier.close()


class TorchTransport(OfferedTransport[Group]):
    """Sends copies, so that no block is read any more once its push has come back.

    Who sends, and where to, is decided over ZeroMQ as with every transport; a group only carries
    bytes. A group that could not be made makes the hub take another transport.
    """

    name: ClassVar[str] = "torch"

    def __init__(self, node: LocalNode) -> None:
        self._backend = "nccl" if node.settings.device == "cuda" else "gloo"
        available = dist.is_available() and (
            dist.is_nccl_available() if self._backend == "nccl" else dist.is_gloo_available()
        )
        if not available:
            raise ConfigError(f"this build of torch has no {self._backend}")
        self._host = bind_host(node.settings.bind)
        self._numbers = itertools.count(1)  # of the groups in which we send
        self._to: dict[str, _End] = {}  # by receiver; the thread's alone
        self._from: dict[str, _End] = {}  # by sender; the thread's alone
        super().__init__(node, message_bytes=4 << 20)
        self.endpoint = f"{self._backend} {self.endpoint}"

    def connect(self, peer: Peer) -> None:
        backend, _, address = peer.endpoints[self.name].partition(" ")
        if backend != self._backend:
            raise TransferError(f"{peer.id} speaks {backend or 'nothing'}, not {self._backend}")
        super().connect(Peer(peer.id, peer.epoch, {**peer.endpoints, self.name: address}))

    def close(self) -> None:
        super().close()
        for end in self._from.values():
            end.close()
            end.courier.join(1.0)

    def _make_group(self, store: SharedStore, rank: int) -> Group:
        timeout_s = self.node.settings.stall_timeout_s
        if self._backend == "nccl":
            return NcclGroup(store, rank, self._host, timeout_s)
        return GlooGroup(store, rank, self._host, timeout_s)

    # ------------------------------------------------------------------ sending
    def _make_courier(self, lane: Lane) -> Courier[Group]:
        number, line = next(self._numbers), lane.lines[0]
        store = SharedStore(
            lambda key, value: self._do(
                lambda: self._tell(lane, line, Rendezvous(number, key, value))
            ),
            self.node.settings.stall_timeout_s,
        )
        courier: Courier[Group] = Courier(
            f"{self.node.id}-torch-to-{lane.peer.id}",
            lambda: self._make_group(store, 0),
            lambda error: self._do(lambda: self._courier_failed(lane, courier, error)),
        )
        self._to[lane.peer.id] = _End((self.node.epoch, number), store, courier)
        lane.group = number
        return courier

    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        self._courier(lane)  # the group takes its time: begin with it now
        node = self.node
        blocks, src = placing.payload_blocks(node.arena, piece.src, lane.payload)
        copy = np.empty((len(src), lane.payload.block_bytes), np.uint8)
        verify = node.settings.verify
        digest = copying.copy(blocks, src, copy, range(len(src)), verify=verify)
        piece.payload = copy.reshape(-1)
        return digest, ()

    def _carry(self, way: Group, lane: Lane, line: Line, sequence: int, piece: Piece) -> None:
        assert isinstance(piece.payload, np.ndarray)
        way.send(piece.payload, sequence)

    def _heard(self, lane: Lane, line: Line, message: object) -> bool:
        if not isinstance(message, Rendezvous):
            return super()._heard(lane, line, message)
        end = self._to.get(lane.peer.id)
        if end is not None and end.group[1] == message.group:
            end.store.put(message.key, message.value)
        return True

    def _hung_up(self, lane: Lane) -> None:
        super()._hung_up(lane)
        end = self._to.pop(lane.peer.id, None)
        if end is not None:
            end.close()

    # ------------------------------------------------------------------ receiving
    def _hear(self, identity: bytes, header: Header, message: object) -> bool:
        if not isinstance(message, Rendezvous) or header.receiver_epoch != self.node.epoch:
            return False
        if self._is_over(header, message.group):
            return True
        end = self._end_from(identity, header, message.group)
        if end is not None:
            end.store.put(message.key, message.value)
        return end is not None

    def _is_over(self, header: Header, number: int) -> bool:
        """Whether a sender has begun a later group: what it said before, on a connection of its
        own that it has closed since, may come after what it says now."""
        end = self._from.get(header.sender)
        return end is not None and (header.sender_epoch, number) < end.group

    def _end_from(self, identity: bytes, header: Header, number: int) -> _End | None:
        """Our end of a sender's group, a new one if it has a new group."""
        group = header.sender_epoch, number
        end = self._from.get(header.sender)
        if end is None or end.group != group:
            if end is not None:
                self._give_up(end)
            elif len(self._from) >= _MAX_SENDERS:
                return None
            end = self._from[header.sender] = self._join(identity, header, group)
        return end

    def _join(self, identity: bytes, header: Header, group: tuple[int, int]) -> _End:
        def publish(key: str, value: bytes) -> None:
            entry = Rendezvous(group[1], key, value)
            self._do(lambda: self._inbox.say(identity, header, entry))

        store = SharedStore(publish, self.node.settings.stall_timeout_s)
        courier: Courier[Group] = Courier(
            f"{self.node.id}-torch-from-{header.sender}",
            lambda: self._make_group(store, 1),
            lambda error: self._do(lambda: self._sender_failed(header.sender, end, error)),
        )
        end = _End(group, store, courier)
        return end

    def _land(self, landing: Landing, payload: Sequence[zmq.Frame]) -> bool | None:
        header = landing.header
        if self._is_over(header, header.flags):
            self._inbox.drop(landing)
            return None
        end = self._end_from(landing.identity, header, header.flags)
        if payload or end is None:
            return False
        end.pending[header.sequence] = landing
        end.courier.submit(lambda group: self._receive(group, end, landing))
        self._inbox.say(landing.identity, header, Ready(header.sequence))
        return None

    def _receive(self, group: Group, end: _End, landing: Landing) -> None:
        node, header = self.node, landing.header
        came = np.empty(len(landing.pages) * landing.layout.block_bytes, np.uint8)
        group.recv(came, header.sequence)
        ok = placing.land(
            [came], landing.layout, landing.message.digest, node.arena, landing.pages,
            landing.grant, node.expected.lock, verify=node.settings.verify,
        )  # fmt: skip
        self._do(lambda: self._finish(end, header.sequence, ok))

    def _finish(self, end: _End, sequence: int, ok: bool) -> None:
        landing = end.pending.pop(sequence, None)
        if landing is not None:
            self._inbox.finish(landing, ok)

    def _sender_failed(self, sender: str, end: _End, error: Exception) -> None:
        log.warning("torch from %s failed: %s", sender, str(error).split("\n")[0])
        if self._from.get(sender) is end:
            del self._from[sender]
        self._give_up(end)

    def _give_up(self, end: _End) -> None:
        end.close()
        for landing in end.pending.values():
            self._inbox.drop(landing)
        end.pending.clear()
