"""Blocks between hosts: ZeroMQ over TCP, many blocks a message, sent from where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import zmq

from kvstore.transport import copying
from kvstore.transport.base import LocalNode
from kvstore.transport.channel import ChannelTransport
from kvstore.transport.expected import Grant
from kvstore.transport.lane import Lane, Piece


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
            # Measured: longer messages leave the cache between ZeroMQ's copy and ours.
            message_bytes=1 << 20,
            # More than the senders' window, which is what bounds it: a lower mark stops ZeroMQ's
            # thread from reading whenever ours has to wait for the GIL.
            inbox_messages=64,
            payload_bytes=limit,
        )

    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        blocks = self.node.arena.blocks
        digest = copying.digest(blocks, piece.src) if self.node.settings.verify else 0
        frames = [
            zmq.Frame(view.data, track=True, copy=False)
            for view in copying.views(blocks, piece.src)
        ]
        return digest, frames

    def _land(
        self, grant: Grant, pages: tuple[int, ...], digest: int, payload: Sequence[zmq.Frame]
    ) -> bool:
        expected, arena = self.node.expected, self.node.arena
        block_bytes = arena.layout.block_bytes
        sizes = [len(frame.buffer) for frame in payload]
        if sum(sizes) != len(pages) * block_bytes or any(size % block_bytes for size in sizes):
            return False
        state = copying.new_digest() if self.node.settings.verify else None
        page = iter(pages)
        for frame in payload:
            for block in np.frombuffer(frame.buffer, np.uint8).reshape(-1, block_bytes):
                # Held for one block at a time: the owner may want to forget the transfer.
                with expected.lock:
                    if not grant.open:
                        return False
                    copying.copy_bytes(block, arena.blocks[next(page)], state)
        return state is None or state.intdigest() == digest
