"""How long outputs are lately. Pure."""

from __future__ import annotations

import math

_WINDOW_S = 10.0
_MEMORY = 24  # that are remembered however few come


class RecentMean:
    """Of what came within about a window of time, or of the last few if fewer came in it."""

    __slots__ = ("_window_s", "_keep", "_weight", "_sum", "_at_s")

    def __init__(self, window_s: float = _WINDOW_S, memory: int = _MEMORY) -> None:
        self._window_s = window_s
        self._keep = 1.0 - 1.0 / memory
        self._weight = self._sum = self._at_s = 0.0

    def add(self, value: float, now: float) -> None:
        keep = max(math.exp((self._at_s - now) / self._window_s), self._keep)
        self._weight = self._weight * keep + 1.0
        self._sum = self._sum * keep + value
        self._at_s = now

    @property
    def known(self) -> bool:
        return self._weight > 0.0

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else 0.0


class OutputLengths:
    """`asked` for every request, `ended` for every output that is complete."""

    __slots__ = ("_allowed", "_used", "_used_of")

    def __init__(self) -> None:
        self._allowed = RecentMean()  # tokens that an output may have
        self._used = RecentMean()  # those that outputs ended with
        self._used_of = RecentMean()  # what they might have had

    def asked(self, max_tokens: int, now: float) -> None:
        self._allowed.add(max_tokens, now)

    def ended(self, num_tokens: int, max_tokens: int, now: float) -> None:
        if num_tokens > 0 and max_tokens > 0:
            self._used.add(num_tokens, now)
            self._used_of.add(max_tokens, now)

    @property
    def mean(self) -> float | None:
        """Tokens that an output of what is asked for now will have; None before any request.

        What is asked for changes before its ends do, and few outputs are as long as they may be.
        """
        if not self._allowed.known:
            return None
        used = self._used.value / self._used_of.value if self._used.known else 1.0
        return max(1.0, used * self._allowed.value)
