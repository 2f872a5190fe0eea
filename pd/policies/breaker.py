"""A circuit breaker for one node: too slow for what it runs, and it gets no new work for a while.

    CLOSED  --- as many slow steps in a row as it takes --->  OPEN
    OPEN    --- its time is over ---------------------->   HALF_OPEN: a prompt at a time tries it
    HALF_OPEN --- a few steps as fast as they should be --->  CLOSED
    HALF_OPEN --- two slow ones in a row ---------------->   OPEN, for twice as long

After the pattern of M. Nygard, "Release It!" (2007). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

_SLOW_STEPS = 5  # in a row, to open
_GOOD_STEPS = 3  # without two slow ones in a row, to close
_SLOW_TRIES = 2  # in a row, to open again: any node has a slow step now and then
_LONGEST = 8  # times `retry_s`, however often it was tried in vain
_LEAST_S = 0.002  # steps shorter than this are not told apart


class Circuit(Enum):
    CLOSED = "closed"
    OPEN = "slow"
    HALF_OPEN = "trying"


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """`factor` is how many times as long as expected a slow step takes; 0 never opens. `retry_s`
    is how long a node is left alone before it is tried again."""

    factor: float = 5.0
    retry_s: float = 30.0


def expected_s(own: float | None, peers: Sequence[float]) -> float | None:
    """What a step should take: what it would on the peers, or else on the node as it was."""
    if peers:
        return max(_LEAST_S, median(peers))
    return None if own is None else max(_LEAST_S, own)


class Breaker:
    """Of one node. `observe` every step that is told of; `tick` before asking `admits`."""

    __slots__ = ("circuit", "_options", "_row", "_until", "_wait_s", "_tried", "_slow")

    def __init__(self, options: BreakerOptions) -> None:
        self.circuit = Circuit.CLOSED
        self._options = options
        self._row = 0  # steps that speak for a change
        self._slow = 0  # in a row, of those that try it
        self._until = 0.0
        self._wait_s = options.retry_s
        self._tried = False

    def tick(self, now: float) -> bool:
        """True if it is to be tried again from now on."""
        if self.circuit is Circuit.CLOSED or now < self._until:
            return False
        was, self.circuit = self.circuit, Circuit.HALF_OPEN
        self._until = now + self._options.retry_s  # nothing may come of a try
        self._tried = False
        return was is Circuit.OPEN

    @property
    def admits(self) -> bool:
        """Whether the node should be given new work."""
        if self.circuit is Circuit.HALF_OPEN:
            return not self._tried
        return self.circuit is Circuit.CLOSED

    @property
    def at_rest(self) -> bool:
        """Nothing speaks against the node: another breaker would be just like this."""
        return self.circuit is Circuit.CLOSED and not self._row

    def sent(self) -> None:
        """It was given work."""
        self._tried = True

    def observe(self, step_s: float, expected: float, now: float) -> bool:
        """One step and what it should have taken; True if that changed the circuit."""
        options = self._options
        if options.factor <= 0.0 or self.circuit is Circuit.OPEN:
            return False
        slow = step_s > options.factor * expected
        if self.circuit is Circuit.CLOSED:
            self._row = self._row + 1 if slow else 0
            if self._row < _SLOW_STEPS:
                return False
            self._open(now, options.retry_s)
        elif slow:
            self._slow += 1
            self._tried = False  # one more, to see whether it was chance
            if self._slow < _SLOW_TRIES:
                return False
            self._open(now, min(2 * self._wait_s, _LONGEST * options.retry_s))
        else:
            self._slow = 0
            self._row += 1
            self._tried = False  # so far so good: one more
            if self._row < _GOOD_STEPS:
                return False
            self.circuit, self._row = Circuit.CLOSED, 0
        return True

    def _open(self, now: float, wait_s: float) -> None:
        self.circuit, self._row, self._slow = Circuit.OPEN, 0, 0
        self._wait_s = wait_s
        self._until = now + wait_s
