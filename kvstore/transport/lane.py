"""The sender's side of the line to one peer: what waits, and what was sent and not answered."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import zmq

from kvstore.layout import KVLayout
from kvstore.transport.base import PushState
from pd.types import Peer

_MAX_PIECE_BLOCKS = 256  # each may be a frame of its own


class Tracker(Protocol):
    """Such as zmq.MessageTracker."""

    @property
    def done(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Piece:
    """A run of blocks that travels as one message."""

    push: PushState
    first: int
    src: tuple[int, ...]
    dst: tuple[int, ...]
    num_bytes: int
    tracker: Tracker | None = None  # done when nobody reads our memory any more
    let_in: bool = False  # its receiver was asked first, and is ready for it
    payload: object = None  # what the transport wants to keep of it

    @property
    def still_read(self) -> bool:
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

        One that is passed over was lost: the connection broke and came back. Pieces that were
        let in are answered later than those that were refused, each in order. An answer to
        nothing gives (None, []).
        """
        piece = self.sent.get(sequence)
        if piece is None:
            return None, []
        lost = self._passed_over(sequence, piece.let_in)
        self.remove(sequence)
        self.progress_at = now
        return piece, lost

    def let_in(self, sequence: int, now: float) -> tuple[Piece | None, list[Piece]]:
        """(the piece that its receiver is ready for, those before it that were lost)."""
        piece = self.sent.get(sequence)
        if piece is None or piece.let_in:
            return None, []
        lost = self._passed_over(sequence, False)
        piece.let_in = True
        self.progress_at = now
        return piece, lost

    def _passed_over(self, sequence: int, let_in: bool) -> list[Piece]:
        earlier = itertools.takewhile(lambda known: known != sequence, list(self.sent))
        return [self.remove(known) for known in earlier if self.sent[known].let_in == let_in]

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
        self.group = 0  # goes with every message, where the bytes take a connection of their own
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
