"""Simulated runs of candidates: does a rate hold, and what is the highest that does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pd.errors import PDError
from pd.sim.result import SimResult
from pd.sim.simulate import simulate
from pd.tune.candidate import Candidate
from pd.tune.problem import Problem
from pd.types import SLO
from pd.workload.outcome import Outcome

_STEP = 1.5  # between rates until the highest one is enclosed
_MOST_PROBES = 16


@dataclass(frozen=True)
class Probe:
    """One run: of how many requests that had ended how many met their targets, until the run
    was decided. `holds` is None of a run that was broken off for want of time."""

    rate: float
    requests: int
    ended: int
    met: int
    holds: bool | None


@dataclass(frozen=True)
class Task:
    """Find a candidate's highest rate with the first `requests` of the workload, beginning at
    `start` and until what holds and what does not are `tolerance` apart. A run has more of them
    where they would all arrive within `span_s`: a cell that has not filled up yet holds any rate.

    One that does not hold `floor` is not looked at further. Nothing begins after `deadline`
    (of `time.monotonic`), and what runs then is broken off.
    """

    candidate: Candidate
    requests: int
    start: float
    tolerance: float
    floor: float = 0.0
    deadline: float = float("inf")
    span_s: float = 0.0


@dataclass(frozen=True)
class Found:
    """`rate` holds and `limit` does not; 0 where none was seen to hold, infinite where all did.
    `finished` is false where time ran out before they were close enough, and `too_few` says that
    the workload has too few requests for a higher rate."""

    candidate: Candidate
    requests: int
    rate: float
    limit: float
    finished: bool
    probes: tuple[Probe, ...] = ()
    wall_s: float = 0.0
    error: str = ""
    too_few: bool = False

    @property
    def simulated(self) -> int:
        return sum(probe.ended for probe in self.probes)


@dataclass
class _Verdict:
    """Counts ended requests until no other could change whether the goal is reached."""

    goal: float
    requests: int
    slo: SLO
    deadline: float
    ended: int = 0
    met: int = 0
    late: bool = False
    holds: bool | None = field(default=None, init=False)

    def __call__(self, outcome: Outcome) -> bool:
        self.ended += 1
        self.met += outcome.meets(self.slo)
        needed = self.goal * self.requests - 1e-9
        if self.met >= needed:
            self.holds = True
        elif self.met + self.requests - self.ended < needed:
            self.holds = False
        elif self.ended % 16 == 0 and time.monotonic() > self.deadline:
            self.late = True
        return self.late or self.holds is not None


def probe(
    problem: Problem, candidate: Candidate, requests: int, rate: float, deadline: float
) -> Probe:
    """Whether the candidate holds this rate."""
    workload = problem.workload.first(requests).at_rate(rate)
    verdict = _Verdict(problem.goal, len(workload), problem.slo, deadline)
    spec = candidate.spec(problem.base, problem.fleet)
    try:
        simulate(spec, workload, seed=problem.seed, stop=verdict)
    except PDError:  # some requests never end: too large for any node
        verdict.holds = False
    return Probe(rate, len(workload), verdict.ended, verdict.met, verdict.holds)


def run(
    problem: Problem, candidate: Candidate, requests: int, rate: float, deadline: float = math.inf
) -> SimResult:
    """A whole run, to be looked at; broken off at the deadline."""
    workload = problem.workload.first(requests).at_rate(rate)
    spec = candidate.spec(problem.base, problem.fleet)
    return simulate(spec, workload, seed=problem.seed, stop=lambda _: time.monotonic() > deadline)


def find_rate(problem: Problem, task: Task) -> Found:
    """The same task gives the same rates, if time does not run out."""
    began = time.monotonic()
    probes: list[Probe] = []
    error = ""
    too_few = False

    def holds(rate: float) -> bool | None:
        nonlocal too_few
        if time.monotonic() > task.deadline:
            return None
        requests = max(task.requests, math.ceil(rate * task.span_s))
        if requests > max(task.requests, len(problem.workload)):
            too_few = True
            return False
        made = probe(problem, task.candidate, requests, rate, task.deadline)
        probes.append(made)
        return made.holds

    finished = True
    try:
        if task.floor and not holds(task.floor):
            finished = bool(probes) and probes[-1].holds is not None
        else:
            finished = _search(task, holds)
    except PDError as reason:
        error = str(reason)
    return Found(
        task.candidate, task.requests,
        max((each.rate for each in probes if each.holds), default=0.0),
        min((each.rate for each in probes if each.holds is False), default=float("inf")),
        finished, tuple(probes), time.monotonic() - began,
        error,
        too_few,
    )  # fmt: skip


def _search(task: Task, holds: Callable[[float], bool | None]) -> bool:
    """Whether it came to an end: rates a step apart until one holds and one does not, then
    halvings of what is between."""
    low, high, rate = task.floor, math.inf, max(task.start, task.floor * _STEP)
    for _ in range(_MOST_PROBES):
        verdict = holds(rate)
        if verdict is None:
            return False
        low, high = (rate, high) if verdict else (low, rate)
        if high < math.inf and low:
            if high / low <= 1 + task.tolerance:
                return True
            rate = math.sqrt(low * high)
        else:
            rate = rate * _STEP if verdict else rate / _STEP
    return low > 0
