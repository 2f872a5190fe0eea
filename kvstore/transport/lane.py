"""The sender's side of the line to one peer: what waits, and what was sent and not answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from kvstore.layout import KVLayout
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


class Line:
    """One connection to a peer, and what is on its way over it. Answers come in order."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.sent: dict[int, Piece] = {}
        self.sent_bytes = 0
        self.progress_at = 0.0  # when the peer last answered, or had nothing to answer
        self._next_sequence = 0

    def add(self, piece: Piece, now: float) -> int:
        """Put a piece on the way: its sequence number."""
        if not self.sent:
            self.progress_at = now
        sequence = self._next_sequence
        self._next_sequence += 1
        self.sent[sequence] = piece
        self.sent_bytes += piece.num_bytes
        return sequence

    def answered(self, sequence: int, now: float) -> tuple[Piece | None, list[Piece]]:
        """(the piece that was answered, those before it that never will be), off the way.

        One that is passed over was lost: the connection broke and came back. An answer to
        nothing gives (None, []).
        """
        if sequence not in self.sent:
            return None, []
        lost = []
        for earlier in list(self.sent):
            piece = self.remove(earlier)
            if earlier == sequence:
                break
            lost.append(piece)
        self.progress_at = now
        return piece, lost

    def remove(self, sequence: int) -> Piece:
        piece = self.sent.pop(sequence)
        self.sent_bytes -= piece.num_bytes
        return piece


class Lane:
    """Pieces for one peer: at most a window of them on the way, the others in line.

    The window is what slows a sender down to the pace of its receiver, and what bounds the
    memory that unanswered messages take at either end. Several lines share it.
    """

    MAX_SENT = 256  # of a line; below the sockets' high-water mark: sending never fails on it

    def __init__(
        self,
        peer: Peer,
        payload: KVLayout,
        open_socket: Callable[[], zmq.Socket[bytes]],
        window_bytes: int,
        connections: int = 1,
    ) -> None:
        self.peer = peer
        self.payload = payload  # the layout of what it is sent
        self.waiting: deque[Piece] = deque()
        self._open_socket = open_socket
        self._window_bytes = window_bytes // connections
        self.lines = [Line(open_socket()) for _ in range(connections)]

    @property
    def num_sent(self) -> int:
        return sum(len(line.sent) for line in self.lines)

    @property
    def can_send(self) -> bool:
        return self._line() is not None

    def next(self, now: float) -> tuple[Line, int, Piece]:
        """Take the next piece onto its way: (the line, its sequence number there, the piece).
        Only when `can_send`."""
        line = self._line()
        assert line is not None
        piece = self.waiting.popleft()
        return line, line.add(piece, now), piece

    def _line(self) -> Line | None:
        """The line with the least on its way, if it has room for the piece that is next."""
        if not self.waiting:
            return None
        line = min(self.lines, key=lambda line: line.sent_bytes)
        full = line.sent_bytes + self.waiting[0].num_bytes > self._window_bytes
        return None if line.sent and (full or len(line.sent) >= self.MAX_SENT) else line

    def stalled(self, now: float, timeout_s: float) -> bool:
        return any(line.sent and now - line.progress_at >= timeout_s for line in self.lines)

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
        pieces: list[Piece] = []
        for line in self.lines:
            line.socket.close()
            pieces += line.sent.values()
        pieces += self.waiting
        self.waiting.clear()
        self.lines = []
        return pieces

    def reopen(self, connections: int) -> None:
        """Fresh connections: nothing sent before can be answered on them."""
        self.lines = [Line(self._open_socket()) for _ in range(connections)]
