"""Blocks between hosts: ZeroMQ over TCP, many blocks a message, sent from where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import zmq

from kvstore.convert import convert
from kvstore.transport import copying, placing
from kvstore.transport.base import LocalNode
from kvstore.transport.channel import ChannelTransport
from kvstore.transport.copying import Blocks, Digest
from kvstore.transport.inbox import Landing
from kvstore.transport.lane import Lane, Piece

# Written without letting go of the lock that the owner needs to forget a transfer.
_LOCKED_BYTES = 1 << 20


class ZmqTransport(ChannelTransport):
    """The sender's blocks are frames without a copy; the receiver copies them into its pages.

    ZeroMQ reads the sender's memory until the message has left, so a push only comes back
    when it no longer does, whatever the receiver says.
    """

    name: ClassVar[str] = "zmq"

    def __init__(self, node: LocalNode) -> None:
        limit = max(64 << 20, node.settings.message_bytes, node.arena.layout.block_bytes)
        super().__init__(
            node,
            # Measured: each message costs our threads about 0.2 ms; longer ones leave the cache
            # between ZeroMQ's copy and ours.
            message_bytes=4 << 20,
            # Per sender. Measured: more that wait means that each has to be given fresh pages by
            # the kernel, and that none is in the cache any more when its turn comes.
            inbox_messages=2,
            payload_bytes=limit,
            connections=node.settings.connections,
        )

    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        blocks, src = placing.payload_blocks(self.node.arena, piece.src, lane.payload)
        views = copying.views(blocks, src)
        digest = copying.digest_of(views) if self.node.settings.verify else 0
        return digest, [zmq.Frame(view.data, track=True, copy=False) for view in views]

    def _land(self, landing: Landing, payload: Sequence[zmq.Frame]) -> bool:
        frames = [np.frombuffer(frame.buffer, np.uint8) for frame in payload]
        size = landing.layout.block_bytes
        if sum(frame.size for frame in frames) != len(landing.pages) * size:
            return False
        if any(frame.size % size for frame in frames):
            return False
        verify, at = self.node.settings.verify, 0
        as_it_is = landing.layout == self.node.arena.layout
        if verify and not as_it_is and copying.digest_of(frames) != landing.digest:
            return False
        state = copying.new_digest() if verify and as_it_is else None
        for frame in frames:
            blocks = frame.reshape(-1, size)
            if not self._write(landing, blocks, landing.pages[at : at + len(blocks)], state):
                return False
            at += len(blocks)
        return state is None or state.intdigest() == landing.digest

    def _write(
        self, landing: Landing, blocks: Blocks, pages: tuple[int, ...], state: Digest | None
    ) -> bool:
        """Write blocks into these pages while they are granted; whether they are."""
        arena, expected = self.node.arena, self.node.expected
        step = max(1, _LOCKED_BYTES // arena.layout.block_bytes)
        for at in range(0, len(blocks), step):
            part, to = blocks[at : at + step], pages[at : at + step]
            with expected.lock:
                if not landing.grant.open:
                    return False
                if landing.layout == arena.layout:
                    copying.copy_into(part, range(len(part)), arena.blocks, to, state)
                else:
                    convert(part, range(len(part)), landing.layout, arena.blocks, to, arena.layout)
        return True
