"""Blocks between nodes of one host: the sender writes them into the receiver's pages."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread
from typing import ClassVar

import zmq

from kvstore.arena import KVArena
from kvstore.convert import payload_layout
from kvstore.layout import KVLayout
from kvstore.segment import host_identity
from kvstore.transport import placing
from kvstore.transport.base import LocalNode, layout_of
from kvstore.transport.channel import ChannelTransport
from kvstore.transport.inbox import Landing
from kvstore.transport.lane import Lane, Piece
from pd.errors import ConfigError, TransferError
from pd.types import Peer

_POPULATE_PAUSE_S = 0.002  # so that it takes a fraction of a core


class ShmTransport(ChannelTransport):
    """One copy, from arena to arena; only the news of it goes through a socket.

    The sender was told the receiver's pages when they were granted. The receiver believes
    nothing: it hashes the pages that it granted and compares.
    """

    name: ClassVar[str] = "shm"

    def __init__(self, node: LocalNode) -> None:
        if node.arena.name is None:
            raise ConfigError("the shm transport needs an arena in shared memory")
        self._host = host_identity()
        self._arenas: dict[str, KVArena] = {}  # of peers; the thread's alone
        super().__init__(node, message_bytes=4 << 20, inbox_messages=1000, payload_bytes=0)
        self.endpoint = f"{self._host} {node.arena.name} {self.endpoint}"

    def connect(self, peer: Peer) -> None:
        try:
            host, segment, address = peer.endpoints[self.name].split()
        except ValueError:
            raise TransferError(f"{peer.id} has no usable shm endpoint") from None
        if host != self._host:
            raise TransferError(f"{peer.id} is on another host")
        layout = layout_of(peer, self.node)
        # Nothing is gained by another dtype on the way: there is no way.
        payload = payload_layout(self.node.arena.layout, layout, layout.dtype)
        arena = KVArena.attach(layout, segment)
        if arena.populated:  # nothing is left but to enter its pages here
            Thread(
                target=arena.populate, args=(_POPULATE_PAUSE_S,), daemon=True,
                name=f"{self.node.id}-pages",
            ).start()  # fmt: skip
        if not self._do(lambda: self._set_arena(peer, payload, address, arena)):
            arena.close()

    def _set_arena(self, peer: Peer, payload: KVLayout, address: str, arena: KVArena) -> None:
        self._set_lane(peer, payload, address)
        self._arenas[peer.id] = arena

    def _lane_closed(self, peer_id: str) -> None:
        arena = self._arenas.pop(peer_id, None)
        if arena is not None:
            arena.close()

    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        arena = self._arenas[lane.peer.id]
        if max(piece.dst) >= arena.num_blocks or min(piece.dst) < 0:
            raise TransferError(f"{lane.peer.id} granted blocks outside of its arena")
        digest = placing.place(
            self.node.arena, piece.src, arena, piece.dst, lane.payload,
            verify=self.node.settings.verify,
        )  # fmt: skip
        return digest, ()

    def _land(self, landing: Landing, payload: Sequence[zmq.Frame]) -> bool:
        if not self.node.settings.verify:
            return True
        found = placing.placed_digest(self.node.arena, landing.pages, landing.layout)
        return found == landing.message.digest
