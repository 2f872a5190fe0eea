"""When things happened to a request, and what follows from it: TTFT, TPOT, the SLO verdict.

Times are seconds of one clock, the gateway's. Pure data: whoever has the clock writes it in.
"""

from __future__ import annotations

from pd.types import SLO


class SequenceClock:
    """When the tokens of one sequence arrived at the gateway."""

    __slots__ = ("first_s", "last_s", "tokens")

    def __init__(self) -> None:
        self.first_s = 0.0
        self.last_s = 0.0
        self.tokens = 0

    def arrived(self, now: float, count: int = 1) -> None:
        """`count` tokens came at once."""
        if self.tokens == 0:
            self.first_s = now
        self.last_s = now
        self.tokens += count

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (tokens - 1); None before there are two tokens."""
        if self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


class Timeline:
    """The life of one request: its arrival, and a clock for each of its sequences."""

    __slots__ = ("arrival_s", "clocks", "end_s")

    def __init__(self, arrival_s: float, num_sequences: int) -> None:
        self.arrival_s = arrival_s
        self.clocks = [SequenceClock() for _ in range(num_sequences)]
        self.end_s = 0.0

    @property
    def ttft_s(self) -> float | None:
        """Arrival to the first token of any sequence."""
        firsts = [clock.first_s for clock in self.clocks if clock.tokens]
        return min(firsts) - self.arrival_s if firsts else None

    @property
    def tpot_s(self) -> float | None:
        """Mean over its sequences of two tokens or more."""
        values = [tpot for clock in self.clocks if (tpot := clock.tpot_s) is not None]
        return sum(values) / len(values) if values else None

    def meets(self, slo: SLO) -> bool:
        """Whether a finished request met its targets: all of them, and each sequence TPOT's."""
        ttft = self.ttft_s
        if slo.ttft_s is not None and (ttft is None or ttft > slo.ttft_s):
            return False
        return slo.tpot_s is None or all(
            (clock.tpot_s or 0.0) <= slo.tpot_s for clock in self.clocks
        )
