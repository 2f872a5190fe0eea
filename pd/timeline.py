"""When things happened to a request, and what follows from it: TTFT, TPOT, the SLO verdict.

Times are seconds of one clock, the gateway's. Pure data: whoever has the clock writes it in.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pd.types import SLO

Stage = Literal["queue", "fetch", "compute", "transfer", "first_step"]
Target = Literal["ttft", "tpot"]
Part = Literal["admit", "queue", "fetch", "compute", "transfer", "first_step", "decode"]

_MAX_INTERRUPTIONS = 16  # kept with their reasons


class Span(NamedTuple):
    """A part of a request's life, from when to when."""

    name: Part
    start_s: float
    end_s: float


class Interruption(NamedTuple):
    """When work of a request was lost and submitted again, and why."""

    at_s: float
    reason: str


class SequenceClock:
    """When the tokens of one sequence arrived at the gateway."""

    __slots__ = ("first_s", "second_s", "last_s", "tokens")

    def __init__(self) -> None:
        self.first_s = 0.0
        self.second_s = 0.0
        self.last_s = 0.0
        self.tokens = 0

    def arrived(self, now: float, count: int = 1) -> None:
        """`count` tokens came at once."""
        if self.tokens < 2:
            if self.tokens == 0:
                self.first_s = now
            self.second_s = now
        self.last_s = now
        self.tokens += count

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (tokens - 1); None before there are two tokens."""
        if self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


class Timeline:
    """The life of one request: its arrival, and a clock for each of its sequences.

    `fetch_s` and `compute_s` are what the prefill node measured for the prompt, `transfer_s` what
    the decode node waited for its KV after the first token; None until they said so.
    `admitted_s` is when the coordinator's answer came, None before.
    """

    __slots__ = (
        "arrival_s", "clocks", "end_s", "fetch_s", "compute_s", "transfer_s", "admitted_s",
        "interruptions",
    )  # fmt: skip

    def __init__(self, arrival_s: float, num_sequences: int) -> None:
        self.arrival_s = arrival_s
        self.clocks = [SequenceClock() for _ in range(num_sequences)]
        self.end_s = 0.0
        self.fetch_s: float | None = None
        self.compute_s: float | None = None
        self.transfer_s: float | None = None
        self.admitted_s: float | None = None
        self.interruptions: list[Interruption] = []

    def admitted(self, now: float) -> None:
        """The coordinator has placed it; later placements are those of resumed work."""
        if self.admitted_s is None:
            self.admitted_s = now

    def interrupted(self, now: float, reason: str) -> None:
        """Some of its work was lost, and is submitted again."""
        if len(self.interruptions) < _MAX_INTERRUPTIONS:
            self.interruptions.append(Interruption(now, reason))

    def prefilled(self, fetch_s: float, compute_s: float) -> None:
        """The first token is here, or comes at once: what its node spent on the prompt."""
        if self.compute_s is None:
            self.fetch_s, self.compute_s = fetch_s, compute_s

    def moved(self, wait_s: float) -> None:
        """A sequence begins to decode, so long after its first token."""
        if self.transfer_s is None:
            self.transfer_s = wait_s

    @property
    def stages(self) -> dict[Stage, float]:
        """Seconds of each stage that is known, each a part of what the client waited.

        TTFT is queue (everything that is not one of the next two) + fetch + compute. From the
        first token to the second it is transfer + first_step: here the first token does not
        wait for the hand-off, so the second does.
        """
        stages: dict[Stage, float] = {}
        ttft = self.ttft_s
        if ttft is None:
            return stages
        if self.fetch_s is not None and self.compute_s is not None:
            # Another host's clock may run a little faster than ours.
            fetch = min(self.fetch_s, ttft)
            compute = min(self.compute_s, ttft - fetch)
            stages["queue"] = ttft - fetch - compute
            stages["fetch"], stages["compute"] = fetch, compute
        second = min((c for c in self.clocks if c.tokens > 1), key=_second, default=None)
        if second is not None:
            gap = second.second_s - second.first_s
            transfer = min(self.transfer_s or 0.0, gap)
            stages["transfer"], stages["first_step"] = transfer, gap - transfer
        return stages

    def spans(self, now: float) -> list[Span]:
        """What it was doing when, one part after another, none of them empty.

        They cover its life from arrival to end, or to `now` while it goes on. A request that was
        interrupted has the spans of its first way through, and a longer last one.
        """
        end = self.end_s or now
        marks: list[tuple[Part, float]] = []
        admitted = end if self.admitted_s is None else self.admitted_s
        stages, ttft = self.stages, self.ttft_s
        if ttft is None:
            marks = [("admit", admitted), ("queue", end)]
        else:
            first = self.arrival_s + ttft
            begun = first - stages.get("fetch", 0.0) - stages.get("compute", 0.0)
            marks = [("admit", min(admitted, begun)), ("queue", begun)]
            marks += [("fetch", begun + stages.get("fetch", 0.0)), ("compute", first)]
            if "first_step" in stages:
                decoding = min(c.second_s for c in self.clocks if c.tokens > 1)
                marks += [("transfer", decoding - stages["first_step"]), ("first_step", decoding)]
                marks.append(("decode", end))
            elif not self.end_s:
                marks.append(("transfer", end))
        spans: list[Span] = []
        start = self.arrival_s
        for name, until in marks:
            if until > start:
                spans.append(Span(name, start, until))
                start = until
        return spans

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
        return not self.missed(slo)

    def missed(self, slo: SLO) -> tuple[Target, ...]:
        """Which targets a finished request missed."""
        ttft = self.ttft_s
        missed: list[Target] = []
        if slo.ttft_s is not None and (ttft is None or ttft > slo.ttft_s):
            missed.append("ttft")
        if slo.tpot_s is not None and any(
            (clock.tpot_s or 0.0) > slo.tpot_s for clock in self.clocks
        ):
            missed.append("tpot")
        return tuple(missed)


def _second(clock: SequenceClock) -> float:
    return clock.second_s
