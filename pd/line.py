"""Both ends of a conversation between two mailboxes: what was said, and what was heard of it.

A connection that breaks takes along what was on its way. The sender keeps its last messages,
the receiver asks for those that are missing; what comes after them waits until they are there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

MAX_KEPT = 1024  # messages
MAX_KEPT_BYTES = 4 << 20
# Beats of silence after which beacons are sent: soon, and again long after, because what was on
# its way for long, over a link that was cut, is lost all together.
BEACONS = frozenset(1 << i for i in range(8))
ASK_S = 0.3  # between two requests for the same messages
GIVE_UP_S = 8.0  # after which what nobody sends again is done without


@dataclass(slots=True)
class Said:
    """Messages of one connection: how many, and the last ones, to be sent again."""

    sequence: int = 0  # of the next message
    _kept: deque[bytes] = field(default_factory=deque)
    _num_bytes: int = 0
    _num_quiet_beats: int = 0
    _at_last_beat: int = 0
    _last_again: tuple[int, float] = (-1, float("-inf"))

    def add(self, frame: bytes) -> None:
        self.sequence += 1
        self._kept.append(frame)
        self._num_bytes += len(frame)
        while len(self._kept) > MAX_KEPT or (
            self._num_bytes > MAX_KEPT_BYTES and len(self._kept) > 1
        ):
            self._num_bytes -= len(self._kept.popleft())

    @property
    def oldest(self) -> int:
        """The number of the oldest message that is still kept."""
        return self.sequence - len(self._kept)

    def again(self, sequence: int, now: float) -> list[bytes]:
        """The messages from this number on, as far as they are kept.

        Nothing if they were just given: requests that waited together for a link want it once.
        """
        if self._last_again[0] == sequence and now - self._last_again[1] < ASK_S:
            return []
        self._last_again = sequence, now
        self._num_quiet_beats = 0  # these may be lost as well
        return list(self._kept)[max(0, sequence - self.oldest) :]

    def beat(self) -> bool:
        """Called at intervals: whether to tell the receiver how many messages there were.

        The next message tells it as well; a beacon is for when there is none.
        """
        if self.sequence != self._at_last_beat:
            self._at_last_beat, self._num_quiet_beats = self.sequence, 0
            return False
        self._num_quiet_beats += 1
        return self.sequence > 0 and self._num_quiet_beats in BEACONS

    def restart(self) -> None:
        """Count anew: what was said before is another conversation's."""
        self.sequence = self._num_bytes = self._num_quiet_beats = self._at_last_beat = 0
        self._kept.clear()


class Verdict(Enum):
    """What becomes of a message, by its number."""

    TAKE = "take"
    REPEATED = "repeated"  # it was taken before
    WAIT = "wait"  # others are missing before it; it will come again
    GAP = "gap"  # take it: what is missing will not come


@dataclass(slots=True)
class Heard:
    """How far the messages of one sender's connection have come."""

    epoch: int
    connection: int
    next_sequence: int = 0
    _missing_since: float | None = None
    _asked_at: float = float("-inf")

    def judge(self, sequence: int, now: float, *, can_ask: bool) -> Verdict:
        """`can_ask`: there is a way to ask the sender for what is missing."""
        if sequence < self.next_sequence:
            return Verdict.REPEATED
        if sequence > self.next_sequence:
            if can_ask and not self._gives_up(now):
                return Verdict.WAIT
            self._take(sequence)
            return Verdict.GAP
        self._take(sequence)
        return Verdict.TAKE

    def beacon(self, sequence: int, oldest: int, now: float) -> Verdict:
        """The sender says what its next number is, and which is the oldest message it keeps."""
        gone = min(sequence, oldest)
        if self.next_sequence < sequence and self._gives_up(now):
            gone = sequence
        if self.next_sequence < gone:
            self._take(gone - 1)
            return Verdict.GAP
        return Verdict.WAIT if self.next_sequence < sequence else Verdict.TAKE

    def asks(self, now: float) -> bool:
        """Whether it is time to ask, once more, for what is missing."""
        if self._missing_since is None or now - self._asked_at < ASK_S:
            return False
        if now - self._missing_since > 2 * GIVE_UP_S:
            return False
        self._asked_at = now
        return True

    def _take(self, sequence: int) -> None:
        self.next_sequence = sequence + 1
        self._missing_since = None

    def _gives_up(self, now: float) -> bool:
        if self._missing_since is None:
            self._missing_since = now
        return now - self._missing_since >= GIVE_UP_S
