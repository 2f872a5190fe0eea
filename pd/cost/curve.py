"""`Curve`: a non-decreasing, piecewise linear function through measured points."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

from pd.errors import ConfigError


class Curve:
    """Seconds by a count. 0 at 0; up to the first point constant, as what is small costs a
    floor; past the last point it goes on as steep as between the last two.

    `points` are (count > 0, seconds >= 0), counts ascending, seconds never falling.
    """

    __slots__ = ("points", "_counts", "_seconds", "_slopes")

    def __init__(self, points: Iterable[tuple[float, float]] = ()) -> None:
        self.points = tuple((float(count), float(seconds)) for count, seconds in points)
        self._counts = [count for count, _ in self.points]
        self._seconds = [seconds for _, seconds in self.points]
        self._slopes = []
        last_count, last_seconds = 0.0, 0.0
        for place, (count, seconds) in enumerate(self.points):
            if not last_count < count < float("inf"):
                raise ConfigError(f"a curve's counts must be positive and ascending, not {count:g}")
            if not last_seconds <= seconds < float("inf"):
                raise ConfigError(f"a curve's seconds must not fall, but do at {count:g}")
            if place:
                self._slopes.append((seconds - last_seconds) / (count - last_count))
            last_count, last_seconds = count, seconds
        if self.points:
            # One point alone: what it says a unit costs.
            self._slopes.append(self._slopes[-1] if self._slopes else last_seconds / last_count)

    def __call__(self, count: float) -> float:
        if count <= 0.0 or not self._counts:
            return 0.0
        place = bisect_right(self._counts, count) - 1
        if place < 0:
            return self._seconds[0]
        return self._seconds[place] + (count - self._counts[place]) * self._slopes[place]

    def sum(self, start: float, step: float, count: int) -> float:
        """curve(start) + curve(start + step) + ... of `count` terms, start and step above 0, in
        time that grows with the curve's points only."""
        total, done = 0.0, 0
        while done < count and self._counts:
            x = start + done * step
            place = bisect_right(self._counts, x) - 1
            terms = count - done
            if place + 1 < len(self._counts):
                until = (self._counts[place + 1] - x) / step
                if until < terms:
                    terms = max(1, math.ceil(until))
            slope = self._slopes[place] if place >= 0 else 0.0
            total += terms * self(x) + slope * step * terms * (terms - 1) / 2
            done += terms
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)

    def __repr__(self) -> str:
        return f"Curve({list(self.points)})"
