"""Blocks between hosts: ZeroMQ over TCP, many blocks a message, sent from where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import zmq

from kvstore.transport import copying, placing
from kvstore.transport.base import LocalNode
from kvstore.transport.channel import ChannelTransport
from kvstore.transport.inbox import Landing
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
        node = self.node
        frames = [np.frombuffer(frame.buffer, np.uint8) for frame in payload]
        return placing.land(
            frames, landing.layout, landing.message.digest, node.arena, landing.pages,
            landing.grant, node.expected.lock, verify=node.settings.verify,
        )  # fmt: skip
