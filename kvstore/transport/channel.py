"""Blocks over a ZeroMQ connection: the part that shared memory and TCP have in common.

    sender                                  receiver
    DEALER  --- Blocks (and their bytes) -->  ROUTER    checks, then reports Arrived
    DEALER  <-- Landed ---------------------  ROUTER

Every message is answered, so a push is known to be done, refused, or lost. One thread does
all of a node's sending and receiving; it is woken through a pipe.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

from kvstore.convert import payload_layout
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport.base import LocalNode, PushState, Transport, layout_of, start_thread
from kvstore.transport.inbox import CODEC, MAX_BODY, Blocks, Inbox, Landed, Landing
from kvstore.transport.lane import Lane, Line, Piece, split
from pd import sockets
from pd.errors import TransferError, WireError
from pd.types import Peer
from pd.waker import Waker
from pd.wire import Header

log = logging.getLogger(__name__)

_ROOM = 1024  # messages; above Lane.MAX_SENT
_LOOK_EVERY_S = 0.001  # at what arrives, while there is more to send


class ChannelTransport(Transport):
    """What differs is how bytes leave (`_emit`) and how they are taken in (`_land`)."""

    def __init__(
        self, node: LocalNode, *, message_bytes: int, inbox_messages: int, payload_bytes: int,
        connections: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(node)
        self._connections = connections  # to each peer
        self._message_bytes = min(message_bytes, node.settings.message_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=connections)
        try:
            socket = sockets.bind(
                self._context, zmq.ROUTER, node.settings.bind, high_water_mark=_ROOM,
                max_message_bytes=max(payload_bytes, 1 << 16), keys=node.settings.keys,
                inbox_messages=inbox_messages,
            )  # fmt: skip
        except BaseException:
            self._context.term()
            raise
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._inbox = Inbox(node, self.name, socket, self._land, payload_bytes, self._hear)
        self._lanes: dict[str, Lane] = {}
        self._settling: list[tuple[Piece, bool]] = []  # answered, but ZeroMQ still reads them
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # of _commands against the end of the thread
        self._closing = False
        self._ended = False
        self._thread = start_thread(self._run, f"{node.id}-{self.name}")

    # ------------------------------------------------------------------ any thread
    def connect(self, peer: Peer) -> None:
        ours, theirs = self.node.arena.layout, layout_of(peer, self.node)
        payload = payload_layout(ours, theirs)
        if wire_dtype := self.node.settings.wire_dtype:
            smaller = payload_layout(ours, theirs, wire_dtype)
            payload = min(payload, smaller, key=lambda layout: layout.block_bytes)
        self._do(lambda: self._set_lane(peer, payload, peer.endpoints[self.name]))

    def forget_peer(self, peer_id: str) -> None:
        self._do(lambda: self._drop_lane(peer_id))

    def push(self, job: Push) -> None:
        if not self._do(lambda: self._queue(job)):
            self._refuse(job)

    def cancel(self, transfer_id: int) -> None:
        self._do(lambda: self._cancel(transfer_id))

    def close(self) -> None:
        self._closing = True
        self._waker.wake()
        self._thread.join()

    def _do(self, command: Callable[[], None]) -> bool:
        with self._lock:
            if self._ended or self._closing:
                return False
            self._commands.append(command)
        self._waker.wake()
        return True

    # ------------------------------------------------------------------ to be filled in
    @abstractmethod
    def _emit(self, lane: Lane, piece: Piece) -> tuple[int, Sequence[zmq.Frame]]:
        """Send a piece on its way: (digest, payload frames). TransferError if impossible."""

    @abstractmethod
    def _land(self, landing: Landing, payload: Sequence[zmq.Frame]) -> bool | None:
        """Take in the bytes of the pages; whether they are what the sender sent. None if that
        is yet to be seen: then the inbox has to `finish` it."""

    def _lane_closed(self, peer_id: str) -> None:
        """A lane is gone: let go of what belongs to its peer."""

    def _hung_up(self, lane: Lane) -> None:
        """The connections to a peer are closed; perhaps they will be opened again."""

    def _hear(self, identity: bytes, header: Header, message: object) -> bool:
        """A sender says something that is not of blocks; whether that is understood."""
        return False

    def _heard(self, lane: Lane, line: Line, message: object) -> bool:
        """A receiver says something that is no answer; whether that is understood."""
        return False

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        idle_s = min(1.0, self.node.settings.stall_timeout_s / 4)
        looked_at = 0.0
        try:
            while not self._closing:
                while self._commands:
                    self._commands.popleft()()
                now = time.monotonic()
                sending = self._send(now)
                if sending and now - looked_at < _LOOK_EVERY_S:
                    continue
                looked_at = now
                self._settle()
                self._check_stalls(now)
                self._poll(0.0 if sending else 0.001 if self._settling else idle_s)
        except Exception:
            log.exception("%s transport of %s ended", self.name, self.node.id)
        finally:
            self._end()

    def _poll(self, timeout_s: float) -> None:
        if self._closing or self._commands:
            timeout_s = 0.0
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        if self._waker.fileno() in ready:
            self._waker.drain()
        if self._inbox.socket in ready:
            self._inbox.receive()
        for lane in list(self._lanes.values()):
            for line in lane.lines:
                if line.socket in ready:
                    self._answers(lane, line)

    # sending
    def _send(self, now: float) -> bool:
        """One piece for every peer that has room; whether there is more to send."""
        more = False
        for lane in list(self._lanes.values()):
            if lane.can_send:
                self._send_piece(lane, now)
                more |= lane.can_send
        return more

    def _send_piece(self, lane: Lane, now: float) -> None:
        line, sequence, piece = lane.next(now)
        job, node, layout = piece.push.job, self.node, lane.payload
        try:
            digest, payload = self._emit(lane, piece)
            (head, *_) = CODEC.encode(
                Blocks(
                    piece.first, len(piece.src), digest,
                    layout.dtype, layout.kv_head_start, layout.num_kv_heads,
                ),
                cluster_id=node.cluster_id, sender=node.id, sender_epoch=node.epoch,
                receiver_epoch=job.receiver_epoch, transfer_id=job.transfer_id,
                layout=layout.fingerprint, sequence=sequence, flags=lane.group,
                payload=[frame.buffer for frame in payload],
            )  # fmt: skip
            if payload:
                piece.tracker = zmq.MessageTracker(*payload)
            line.socket.send_multipart([head, *payload], zmq.NOBLOCK, copy=False)
        except (TransferError, zmq.ZMQError) as error:
            log.warning("blocks to %s not sent: %s", lane.peer.id, error)
            self._piece_done(line.remove(sequence), False)

    def _answers(self, lane: Lane, line: Line) -> None:
        with suppress(zmq.Again):
            while True:
                frames = line.socket.recv_multipart(zmq.NOBLOCK)
                try:
                    header, message = CODEC.decode(
                        frames, cluster_id=self.node.cluster_id, max_body=MAX_BODY
                    )
                except WireError as error:
                    self._inbox.refused(error)
                    continue
                known = header.sender == lane.peer.id
                if known and self._heard(lane, line, message):
                    continue
                if not isinstance(message, Landed) or not known:
                    self._inbox.refused(f"{message} from {header.sender}")
                    continue
                piece, lost = line.answered(message.sequence, time.monotonic())
                self._lost(lane, lost)
                if piece is not None:
                    if not message.ok:
                        job = piece.push.job
                        log.warning(
                            "%s refused blocks of transfer %d: %s",
                            lane.peer.id, job.transfer_id, message.reason,
                        )  # fmt: skip
                    self._piece_done(piece, message.ok)

    def _lost(self, lane: Lane, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            log.warning("blocks on their way to %s were lost", lane.peer.id)
            self._piece_done(piece, False)

    def _piece_done(self, piece: Piece, ok: bool) -> None:
        if piece.still_read:
            self._settling.append((piece, ok))
            return
        event = piece.push.piece_done(ok, time.monotonic())
        if event is not None:
            self.node.events.put(event)

    def _settle(self) -> None:
        if self._settling:
            settling, self._settling = self._settling, []
            for piece, ok in settling:
                self._piece_done(piece, ok)

    def _check_stalls(self, now: float) -> None:
        timeout_s = self.node.settings.stall_timeout_s
        for lane in self._lanes.values():
            if lane.stalled(now, timeout_s):
                log.warning("%s answered nothing for %g s: hanging up", lane.peer.id, timeout_s)
                self._restart(lane)

    def _restart(self, lane: Lane) -> None:
        """Give up what is on its way to a peer or waits for it, and connect to it anew."""
        self._hang_up(lane)
        lane.reopen(self._connections)
        self._watch(lane)

    # commands
    def _set_lane(self, peer: Peer, payload: KVLayout, address: str) -> None:
        self._drop_lane(peer.id)

        def open_socket() -> zmq.Socket[bytes]:
            return sockets.connect(
                self._context, zmq.DEALER, address,
                high_water_mark=_ROOM, keys=self.node.settings.keys,
            )  # fmt: skip

        try:
            lane = Lane(
                peer, payload, open_socket, self.node.settings.window_bytes, self._connections
            )
        except WireError as error:
            log.warning("no lane to %s: %s", peer.id, error)
            return
        self._lanes[peer.id] = lane
        self._watch(lane)

    def _watch(self, lane: Lane) -> None:
        for line in lane.lines:
            self._poller.register(line.socket, zmq.POLLIN)

    def _drop_lane(self, peer_id: str) -> None:
        lane = self._lanes.pop(peer_id, None)
        if lane is not None:
            self._hang_up(lane)
            self._lane_closed(peer_id)

    def _hang_up(self, lane: Lane) -> None:
        for line in lane.lines:
            self._poller.unregister(line.socket)
        self._hung_up(lane)
        for piece in lane.clear():
            self._piece_done(piece, False)

    def _queue(self, job: Push) -> None:
        lane = self._lanes.get(job.receiver)
        room = lane is not None and len(lane.waiting) < self.node.settings.max_queued_pushes
        if lane is None or not room or lane.peer.epoch != job.receiver_epoch:
            self._refuse(job)
            return
        block_bytes = lane.payload.block_bytes
        push = PushState(job, 1, len(job.src) * block_bytes, time.monotonic())
        lane.waiting.extend(split(push, block_bytes, self._message_bytes))

    def _cancel(self, transfer_id: int) -> None:
        for lane in self._lanes.values():
            for piece in lane.cancel(transfer_id):
                self._piece_done(piece, False)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
        while self._commands:  # pushes among them must come back, too
            self._commands.popleft()()
        for peer_id in list(self._lanes):
            self._drop_lane(peer_id)
        self._inbox.socket.close()
        self._context.term()
        deadline = time.monotonic() + 1.0
        while self._settling and time.monotonic() < deadline:
            time.sleep(0.001)
            self._settle()
        self._waker.close()
