"""The sender's side of the line to one peer: what waits, and what was sent and not answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from kvstore.transport.base import PushState
from pd.types import Peer

_MAX_PIECE_BLOCKS = 256  # each may be a frame of its own


@dataclass(slots=True, eq=False)
class Piece:
    """A run of blocks that travels as one message."""

    push: PushState
    first: int
    src: tuple[int, ...]
    dst: tuple[int, ...]
    num_bytes: int
    tracker: zmq.MessageTracker | None = None  # done when ZeroMQ no longer reads our memory

    @property
    def readable_by_zmq(self) -> bool:
        return self.tracker is not None and not self.tracker.done


def split(push: PushState, block_bytes: int, message_bytes: int) -> list[Piece]:
    """The pieces of a push, each of at most `message_bytes` and at least one block."""
    job = push.job
    size = min(_MAX_PIECE_BLOCKS, max(1, message_bytes // block_bytes))
    pieces = [
        Piece(push, job.first + at, src, job.dst[at : at + size], len(src) * block_bytes)
        for at in range(0, len(job.src), size)
        if (src := job.src[at : at + size])
    ]
    push.pieces = len(pieces)
    return pieces


class Lane:
    """Pieces for one peer: at most a window of them on the way, the others in line.

    The window is what slows a sender down to the pace of its receiver, and what bounds the
    memory that unanswered messages take at either end.
    """

    MAX_SENT = 256  # below the sockets' high-water mark, so that sending never fails on it

    def __init__(
        self, peer: Peer, open_socket: Callable[[], zmq.Socket[bytes]], window_bytes: int
    ) -> None:
        self.peer = peer
        self.socket = open_socket()
        self._open_socket = open_socket
        self._window_bytes = window_bytes
        self._sent_bytes = 0
        self._next_sequence = 0
        self.waiting: deque[Piece] = deque()
        self.sent: dict[int, Piece] = {}
        self.progress_at = 0.0  # when the peer last answered, or had nothing to answer

    @property
    def can_send(self) -> bool:
        if not self.waiting or len(self.sent) >= self.MAX_SENT:
            return False
        return not self.sent or (self._sent_bytes + self.waiting[0].num_bytes <= self._window_bytes)

    def next(self, now: float) -> tuple[int, Piece]:
        """Take the next piece onto the way: (its sequence number, the piece)."""
        if not self.sent:
            self.progress_at = now
        piece = self.waiting.popleft()
        sequence = self._next_sequence
        self._next_sequence += 1
        self.sent[sequence] = piece
        self._sent_bytes += piece.num_bytes
        return sequence, piece

    def answered(self, sequence: int, now: float) -> tuple[Piece | None, list[Piece]]:
        """(the piece that was answered, those before it that never will be), off the way.

        Answers come in the order of the pieces, so one that is passed over was lost: a
        connection broke and came back. An answer to nothing gives (None, []).
        """
        if sequence not in self.sent:
            return None, []
        lost = []
        for earlier in list(self.sent):
            piece = self.sent.pop(earlier)
            self._sent_bytes -= piece.num_bytes
            if earlier == sequence:
                break
            lost.append(piece)
        self.progress_at = now
        return piece, lost

    def unsent(self, sequence: int) -> None:
        """Take back a piece that could not be sent."""
        self._sent_bytes -= self.sent.pop(sequence).num_bytes

    def stalled(self, now: float, timeout_s: float) -> bool:
        return bool(self.sent) and now - self.progress_at >= timeout_s

    def cancel(self, transfer_id: int) -> list[Piece]:
        """Take what waits of a transfer out of the line."""
        dropped = [piece for piece in self.waiting if piece.push.job.transfer_id == transfer_id]
        if dropped:
            self.waiting = deque(
                piece for piece in self.waiting if piece.push.job.transfer_id != transfer_id
            )
        return dropped

    def clear(self) -> list[Piece]:
        """Take everything out, waiting or on the way, and hang up."""
        self.socket.close()
        pieces = [*self.sent.values(), *self.waiting]
        self.sent.clear()
        self.waiting.clear()
        self._sent_bytes = 0
        return pieces

    def reopen(self) -> None:
        """A fresh connection: nothing sent before can be answered on it."""
        self.socket = self._open_socket()
