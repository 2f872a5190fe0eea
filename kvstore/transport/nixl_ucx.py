"""Blocks by NIXL with its UCX backend: written straight into the pages of their receiver.

UCX takes the fastest way there is (shared memory, RDMA, TCP). It neither encrypts nor asks who
is there, so it is for networks that are trusted; it listens on the interface of the bind address.
Optional: pip install nixl.
"""

from __future__ import annotations

import base64
import fcntl
import logging
import os
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from threading import Condition, Lock
from typing import Any, ClassVar

import zmq

from kvstore.transport import copying
from kvstore.transport.base import LocalNode, layout_of, start_thread
from kvstore.transport.courier import Courier
from kvstore.transport.inbox import Landing, Ready, Written
from kvstore.transport.lane import Lane, Line, Piece
from kvstore.transport.offered import OfferedTransport
from pd.errors import ConfigError, TransferError
from pd.sockets import bind_host, is_loopback
from pd.types import Peer
from pd.wire import Header

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.0001
_SIOCGIFADDR = 0x8915


class Agent:
    """NIXL's agent of this process for one arena, one call at a time."""

    def __init__(self, address: int, num_bytes: int, interface: str) -> None:
        try:
            from nixl._api import nixl_agent, nixl_agent_config
        except ImportError as error:
            raise ConfigError(f"nixl cannot be used ({error}): pip install nixl") from None
        logging.getLogger("nixl").setLevel(logging.WARNING)  # it says hello on standard output
        self._lock = Lock()
        self._known: Counter[str] = Counter()  # how often each was added and not removed
        self._closing = False
        self.address = address
        try:
            # A name of its own for every process that ever ran: NIXL knows peers by name only.
            # Its progress thread would keep a core busy for ever; `attend` is instead of it.
            config = nixl_agent_config(enable_prog_thread=False, backends=[])
            # UCX would listen on every interface; this is what it goes by. A user's choice stays.
            os.environ.setdefault("UCX_NET_DEVICES", interface)
            self._agent: Any = nixl_agent(secrets.token_hex(16), config)
            self._agent.create_backend("UCX")
            self._memory = self._agent.register_memory([(address, num_bytes, 0, "")], "DRAM")
        except Exception as error:  # the library raises whatever its C++ half does
            raise ConfigError(f"nixl cannot be started: {error}") from error
        self._awaited = Condition()
        self._attend_until = 0.0
        self._thread = start_thread(self._attend, "nixl")

    def describe(self) -> str:
        """What `add` of another agent needs to write into our arena."""
        metadata = base64.b64encode(self._agent.get_agent_metadata()).decode()
        return f"{self.address:x} {metadata}"

    def add(self, described: str) -> tuple[str, int]:
        """Learn another agent: (its name, the address of its arena). TransferError if it cannot
        be reached."""
        try:
            address, metadata = described.split()
            with self._lock:
                added = self._agent.add_remote_agent(base64.b64decode(metadata, validate=True))
                name = added if isinstance(added, str) else added.decode()
                self._known[name] += 1
            return name, int(address, 16)
        except Exception as error:
            raise TransferError(f"no nixl agent can be reached: {error}") from None

    def remove(self, name: str) -> None:
        """Forget an agent; one that was added again meanwhile stays."""
        with self._lock, suppress(Exception):
            self._known[name] -= 1
            if not self._known[name]:
                self._agent.remove_remote_agent(name)

    def write(self, to: str, pairs: Sequence[tuple[int, int, int]], timeout_s: float) -> None:
        """Copy (our address, theirs, bytes) into another agent's memory; TransferError if that
        fails. Afterwards nothing is read or written any more."""
        agent = self._agent
        with self._lock:
            ours = agent.get_xfer_descs([(ours, size, 0) for ours, _, size in pairs], "DRAM")
            theirs = agent.get_xfer_descs([(theirs, size, 0) for _, theirs, size in pairs], "DRAM")
            handle = agent.initialize_xfer("WRITE", ours, theirs, to)
            state = agent.transfer(handle)
        deadline = time.monotonic() + timeout_s
        try:
            while state == "PROC" and time.monotonic() < deadline and not self._closing:
                time.sleep(_LOOK_EVERY_S)
                with self._lock:
                    state = agent.check_xfer_state(handle)
        finally:
            with self._lock:
                agent.release_xfer_handle(handle)  # which also ends what has not ended
        if state != "DONE":
            raise TransferError(f"nixl did not bring it there within {timeout_s:g} s ({state})")

    def attend(self, until: float) -> None:
        """Do our part in what others write here, until this time: some ways need it."""
        with self._awaited:
            self._attend_until = until
            self._awaited.notify()

    def _attend(self) -> None:
        while not self._closing:
            with self._awaited:
                while time.monotonic() >= self._attend_until and not self._closing:
                    self._awaited.wait()
            with self._lock:
                self._agent.get_new_notifs()
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """End what is being written."""
        self._closing = True
        self.attend(0.0)
        self._thread.join()

    def close(self) -> None:
        with self._lock, suppress(Exception):
            self._agent.deregister_memory(self._memory)
        self._agent = None


class NixlTransport(OfferedTransport[Agent]):
    """The sender writes where it was told to, once the receiver is ready; the receiver hashes.

    For nodes of one KV layout: what has to be converted takes another transport.
    """

    name: ClassVar[str] = "nixl"

    def __init__(self, node: LocalNode) -> None:
        arena = node.arena
        self._agent = Agent(
            arena.blocks.ctypes.data, arena.num_bytes, _interface(bind_host(node.settings.bind))
        )
        self._remote: dict[str, tuple[str, int]] = {}  # peers' agents; the thread's alone
        self._pending: dict[tuple[bytes, int], Landing] = {}  # by sender's socket and sequence
        try:
            super().__init__(node, message_bytes=4 << 20)
        except BaseException:
            self._agent.stop()
            self._agent.close()
            raise
        self.endpoint = f"{self.endpoint} {self._agent.describe()}"

    def connect(self, peer: Peer) -> None:
        if layout_of(peer, self.node) != self.node.arena.layout:
            raise TransferError("nixl moves blocks as they are, and the KV layouts differ")
        address, _, described = peer.endpoints[self.name].partition(" ")
        remote = self._agent.add(described)
        endpoints = {**peer.endpoints, self.name: address}
        super().connect(Peer(peer.id, peer.epoch, endpoints))
        self._do(lambda: self._remote.update({peer.id: remote}))

    def close(self) -> None:
        self._agent.stop()
        super().close()
        self._agent.close()

    def _lane_closed(self, peer_id: str) -> None:
        remote = self._remote.pop(peer_id, None)
        if remote is not None:
            self._agent.remove(remote[0])

    # ------------------------------------------------------------------ sending
    def _make_courier(self, lane: Lane) -> Courier[Agent]:
        courier: Courier[Agent] = Courier(
            f"{self.node.id}-nixl-to-{lane.peer.id}",
            lambda: self._agent,
            lambda error: self._do(lambda: self._courier_failed(lane, courier, error)),
        )
        return courier

    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        if not self.node.settings.verify:
            return 0, ()
        return copying.digest(self.node.arena.blocks, piece.src), ()

    def _carry(self, way: Agent, lane: Lane, line: Line, sequence: int, piece: Piece) -> None:
        remote = self._remote.get(lane.peer.id)
        if remote is None:
            return
        name, base = remote
        size = lane.payload.block_bytes
        pairs = [
            (way.address + piece.src[at] * size, base + piece.dst[at] * size, (end - at) * size)
            for at, end in copying.runs(piece.src, piece.dst)
        ]
        way.write(name, pairs, self.node.settings.stall_timeout_s)
        self._do(lambda: self._tell(lane, line, Written(sequence)))

    # ------------------------------------------------------------------ receiving
    def _land(self, landing: Landing, payload: Sequence[zmq.Frame]) -> bool | None:
        if payload or landing.layout != self.node.arena.layout:
            return False
        self._pending[landing.identity, landing.header.sequence] = landing
        self._agent.attend(time.monotonic() + self.node.settings.stall_timeout_s)
        self._inbox.say(landing.identity, landing.header, Ready(landing.header.sequence))
        return None

    def _hear(self, identity: bytes, header: Header, message: object) -> bool:
        if not isinstance(message, Written):
            return False
        landing = self._pending.pop((identity, message.sequence), None)
        if landing is None:
            return False
        if not self._pending:
            self._agent.attend(0.0)
        verify, blocks = self.node.settings.verify, self.node.arena.blocks
        digest = copying.digest(blocks, landing.pages) if verify else landing.message.digest
        self._inbox.finish(landing, digest == landing.message.digest)
        return True


def _interface(host: str) -> str:
    """The network interface with this address; a name of one is itself. ConfigError if none."""
    if is_loopback(host):
        return "lo"
    names = [name for _, name in socket.if_nameindex()]
    if host in names:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
                if socket.inet_ntoa(found) == host:
                    return name
    raise ConfigError(f"no network interface of this host has the address {host}")
