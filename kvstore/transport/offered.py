"""Blocks that are offered over ZeroMQ and travel another way, once their receiver is ready.

    sender                                             receiver
    DEALER  --- Blocks: which, and their digest ---->  ROUTER    checks whether they are granted
    DEALER  <-- Ready -------------------------------  ROUTER
    courier ... the bytes, by whatever way ..........> courier, or straight into the pages
    DEALER  <-- Landed ------------------------------  ROUTER    when they were verified

So nothing is sent that the receiver has not agreed to, and both ends do the same things in the
same order, which is what some ways need.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from typing import Generic

import zmq

from kvstore.transport.base import LocalNode
from kvstore.transport.channel import ChannelTransport
from kvstore.transport.courier import Courier, Way
from kvstore.transport.inbox import CODEC, Ready
from kvstore.transport.lane import Lane, Line, Piece

log = logging.getLogger(__name__)

_JOIN_S = 1.0


class OfferedTransport(ChannelTransport, Generic[Way]):
    """A courier per peer carries what is sent. Pieces come back when it has let go of them."""

    def __init__(self, node: LocalNode, *, message_bytes: int) -> None:
        self._couriers: dict[str, Courier[Way]] = {}  # to peers; the thread's alone
        super().__init__(node, message_bytes=message_bytes, inbox_messages=1000, payload_bytes=0)

    @abstractmethod
    def _make_courier(self, lane: Lane) -> Courier[Way]:
        """A courier to a peer. What fails it goes to `_courier_failed`."""

    @abstractmethod
    def _carry(self, way: Way, lane: Lane, line: Line, sequence: int, piece: Piece) -> None:
        """Bring the bytes of a piece to its receiver; in the courier's thread."""

    def close(self) -> None:
        super().close()
        for courier in self._couriers.values():
            courier.join(_JOIN_S)

    # ------------------------------------------------------------------ the thread
    def _heard(self, lane: Lane, line: Line, message: object) -> bool:
        if not isinstance(message, Ready):
            return False
        piece, lost = line.let_in(message.sequence, time.monotonic())
        self._lost(lane, lost)
        if piece is not None:

            def carry(way: Way, piece: Piece = piece) -> None:
                self._carry(way, lane, line, message.sequence, piece)

            errand = self._courier(lane).submit(carry)
            if piece.payload is None:  # else it is a copy, which nobody else needs
                piece.tracker = errand
        return True

    def _courier(self, lane: Lane) -> Courier[Way]:
        courier = self._couriers.get(lane.peer.id)
        if courier is None:
            courier = self._couriers[lane.peer.id] = self._make_courier(lane)
        return courier

    def _hung_up(self, lane: Lane) -> None:
        courier = self._couriers.pop(lane.peer.id, None)
        if courier is not None:
            courier.close()

    def _courier_failed(self, lane: Lane, courier: Courier[Way], error: Exception) -> None:
        if self._couriers.get(lane.peer.id) is not courier:
            return
        first_line = str(error).split("\n")[0]
        log.warning("%s to %s failed: %s", self.name, lane.peer.id, first_line)
        if not courier.opened:
            self.node.unusable.add((self.name, lane.peer.id, lane.peer.epoch))
        self._restart(lane)

    def _tell(self, lane: Lane, line: Line, message: object) -> None:
        """Say something to a receiver that is not of blocks."""
        node = self.node
        if line not in lane.lines:
            return
        (frame,) = CODEC.encode(
            message, cluster_id=node.cluster_id, sender=node.id, sender_epoch=node.epoch,
            receiver_epoch=lane.peer.epoch,
        )  # fmt: skip
        try:
            line.socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("%s cannot be told anything: %s", lane.peer.id, error)
            self._restart(lane)

    def _end(self) -> None:
        couriers = list(self._couriers.values())
        super()._end()
        self._couriers = {str(i): courier for i, courier in enumerate(couriers)}  # to be joined
