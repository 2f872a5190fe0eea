"""What the search's best of each family do at other rates, and under other targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pd.tune.candidate import Candidate, Family
from pd.tune.portrait import Portrait, portray
from pd.tune.problem import Problem
from pd.tune.search import Ranked, Searched
from pd.tune.trial import run
from pd.tune.workers import Workers
from pd.types import SLO
from pd.workload.outcome import Outcome

# Of a candidate's own best rate, the most telling ones first: time may not suffice for all.
_RATES = (1.0, 0.5, 1.25, 0.25, 0.8, 1.6, 0.9, 1.1, 0.65, 0.1)
_WANTED = 6  # of these
_LEAST = 100  # requests of a run
_WHOLE = 1.5  # times the work of a run that ends when it is decided
_TTFT = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the target
_TPOT = (0.5, 0.7, 1.0, 1.5, 2.5)


@dataclass(frozen=True)
class Measured:
    """One whole run: (TTFT, TPOT) of requests that were served, seconds, and how many were not."""

    candidate: Candidate
    rate: float
    served: tuple[tuple[float, float | None], ...]
    lost: int

    @classmethod
    def of(cls, candidate: Candidate, rate: float, outcomes: Sequence[Outcome]) -> Measured:
        served = tuple(
            (each.ttft_s, each.tpot_s)
            for each in outcomes
            if each.status == "ok" and each.ttft_s is not None
        )
        return cls(candidate, rate, served, len(outcomes) - len(served))

    def shares(self, slo: SLO) -> dict[str, float]:
        """Of all requests: those within both targets, and why the others were not."""
        late = slow = both = 0
        for ttft_s, tpot_s in self.served:
            is_late = slo.ttft_s is not None and ttft_s > slo.ttft_s
            is_slow = slo.tpot_s is not None and tpot_s is not None and tpot_s > slo.tpot_s
            late += is_late and not is_slow
            slow += is_slow and not is_late
            both += is_late and is_slow
        count = max(1, len(self.served) + self.lost)
        met = len(self.served) - late - slow - both
        return {
            "met": met / count, "TTFT": late / count, "TPOT": slow / count,
            "both": both / count, "rejected": self.lost / count,
        }  # fmt: skip


@dataclass(frozen=True)
class Study:
    """`curves` has the whole runs of each family's best, by rate; `portraits` one run of each at
    the winner's rate."""

    best: dict[Family, Ranked]
    curves: dict[Family, list[Measured]]
    portraits: dict[Family, Portrait]
    requests: int


def measure(problem: Problem, asked: tuple[Candidate, int, float, float]) -> Measured | None:
    """A whole run of so many requests at a rate, None where it is not over by the deadline."""
    candidate, requests, rate, deadline = asked
    outcomes = run(problem, candidate, requests, rate, deadline).outcomes
    if len(outcomes) < min(requests, len(problem.workload)):
        return None
    return Measured.of(candidate, rate, outcomes)


def study(
    problem: Problem,
    workers: Workers,
    searched: Searched,
    deadline: float,
    progress: Callable[[str, int, int], None] = lambda stage, done, count: None,
) -> Study:
    """Runs for the report: portraits first, then curves until `deadline` (of time.monotonic)."""
    best = {
        family: ranked
        for family in problem.families
        if (ranked := searched.best_of(family)) is not None
    }
    rate, stage = searched.best.rate, "report"
    left_s = max(0.0, deadline - time.monotonic())
    possible = left_s * workers.jobs * searched.speed / (_WHOLE * len(best) * (1 + _WANTED))
    requests = max(_LEAST, min(searched.final_requests, round(possible)))
    late = max(deadline, time.monotonic() + left_s)
    asked = [(each.candidate, requests, rate) for each in best.values()]
    points = [
        (each.candidate, requests, each.rate * share, late)
        for share in _RATES
        for each in best.values()
        if each.rate * share != rate  # that one is a portrait
    ]
    count = len(asked) + len(points)
    portraits = dict(zip(best, workers.all(portray, asked)))
    progress(stage, len(asked), count)
    families = {each.candidate: family for family, each in best.items()}
    done = [
        Measured.of(portrait.candidate, rate, portrait.result.outcomes)
        for portrait in portraits.values()
    ]
    while points and time.monotonic() < deadline:
        batch, points = points[: workers.jobs], points[workers.jobs :]
        done += [each for each in workers.all(measure, batch) if each is not None]
        progress(stage, count - len(points), count)
    curves: dict[Family, list[Measured]] = {family: [] for family in best}
    for each in sorted(done, key=lambda each: each.rate):
        curves[families[each.candidate]].append(each)
    return Study(best, curves, portraits, requests)


def held(curve: Sequence[Measured], slo: SLO, goal: float) -> float:
    """The rate up to which a curve stays at the goal, drawn straight between its points; 0 where
    it begins below, and its last point's where it never falls below."""
    last = 0.0
    reached = 1.0
    for each in curve:
        share = each.shares(slo)["met"]
        if share < goal:
            if not last:
                return 0.0
            return last + (each.rate - last) * (reached - goal) / max(1e-9, reached - share)
        last, reached = each.rate, share
    return last


def targets_around(slo: SLO) -> tuple[list[float | None], list[float | None]]:
    """TTFT and TPOT targets, in seconds, around those that were asked for."""
    ttft = [None] if slo.ttft_s is None else [slo.ttft_s * each for each in _TTFT]
    tpot = [None] if slo.tpot_s is None else [slo.tpot_s * each for each in _TPOT]
    return list(ttft), list(tpot)
