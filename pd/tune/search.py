"""The search: from thousands of candidates on paper to a few that were simulated at length.

1. Every candidate is estimated; the best of each family go on.
2. A short simulation of each finds its highest rate; the better third goes on to a longer one.
3. Of the best, one option after another is changed, and what helps is kept.
4. The best of all and of each family are simulated at length.

How many are tried and how long the runs are follows from the time there is and from how fast the
simulation is here. Every run by itself is deterministic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import median

from pd.errors import ConfigError
from pd.tune.candidate import Candidate, Family
from pd.tune.demand import Demand
from pd.tune.estimate import Estimator
from pd.tune.problem import Problem
from pd.tune.space import moves, starting_points
from pd.tune.trial import Found, Task, find_rate, probe
from pd.tune.workers import Workers

Progress = Callable[[str, int, int], None]  # stage, done, of how many

# When each stage has to be over, as shares of the time; what is left is for the report.
_LEADERS, _FIRST, _SECOND, _OPTIONS, _FINAL = 0.15, 0.28, 0.42, 0.62, 0.80
_WIDTH = 18  # candidates that are simulated at all
_LEAST_EACH = 4  # of each family
_SIZES = 2  # of a step, for a layout
_KEPT = 4  # for longer runs, and the best of each family
_ROUNDS = 3  # of changes of options
_PROBES = 4.5  # runs that a search for a rate takes, about
_CALIBRATION = 60  # requests
_FLOOR = 0.65  # of the family's best rate: below that a candidate is not looked at further
_BETTER = 1.02  # what a change of an option has to bring
_LEAST, _SHORT, _LONG = 100, 400, 20_000
_LIVES = 2.0  # a short run is at most so many times as long as a request is in the system
_USUAL_TPOT_S = 0.05
_EASIER = (0.8, 0.65, 0.5, 0.3, 0.1)  # goals to estimate by where the real one seems too high
_TOO_FEW = (
    "the workload has too few requests for rates as high as some candidates may hold: give it more"
)


@dataclass(frozen=True)
class Ranked:
    """A candidate and what is known of it; `found` is of the longest runs of it."""

    candidate: Candidate
    estimate: float
    found: Found | None = None
    rung: int = 0

    @property
    def rate(self) -> float:
        return self.found.rate if self.found else 0.0


@dataclass
class Searched:
    """The end of a search: candidates that were simulated, best first; those of the highest
    `rung` were simulated at length. `speed` is requests a second of simulating, in one process;
    `notes` say what time did not suffice for."""

    ranked: list[Ranked]
    num_candidates: int
    num_runs: int
    num_requests: int
    final_requests: int
    wall_s: float
    speed: float
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    def best_of(self, family: Family) -> Ranked | None:
        """The best of those that were simulated at length."""
        return next(
            (each for each in self.ranked if each.candidate.family == family and each.rate), None
        )


class Search:
    """One search. `seconds` is about how long it may take, the report's runs included."""

    def __init__(
        self,
        problem: Problem,
        workers: Workers,
        seconds: float,
        progress: Progress = lambda stage, done, count: None,
    ) -> None:
        self.problem = problem
        self.workers = workers
        self.seconds = seconds
        self.began = time.monotonic()
        self.demand = Demand.of(problem.workload, problem.slo)
        self._progress = progress
        self._ratios: dict[Family, list[float]] = {}
        self._runs: list[Found] = []
        self._notes: list[str] = []
        self._simulated, self._busy_s = 0, 0.0
        self._idle_goal = problem.goal
        slo = problem.slo
        tpot_s = slo.tpot_s if slo.tpot_s is not None else _USUAL_TPOT_S
        # That of a request which takes what its targets allow.
        self._life_s = (slo.ttft_s or 0.0) / 2 + self.demand.output * tpot_s
        self._defaults = {
            key: value
            for section in problem.base.to_dict().values()
            for key, value in section.items()
        }

    def run(self) -> Searched:
        """ConfigError where nothing could meet the targets."""
        candidates = self._estimated()
        chosen = self._choose(candidates)
        self._calibrate(chosen[0])
        chosen, length = self._affordable(chosen)
        first = self._first(chosen, length)
        kept = self._keep(first, _KEPT)
        if not kept and any(not each.finished for each in self._runs):
            raise ConfigError(
                f"no search for a rate came to its end in {_FIRST * self.seconds:.0f} s, a run has "
                f"{length} requests: give it more --minutes, or fewer kinds of nodes"
            )
        if not kept:
            raise ConfigError(self._hopeless())
        length = self._length(len(kept) + 10, _OPTIONS, length, 4 * length)
        second = self._simulate("longer runs", kept, length, 0.08, _SECOND, rung=2)
        improved = self._improve(second or kept, length)
        finalists = self._keep([*second, *improved] or kept, 2)
        length = self._length(len(finalists), _FINAL, length, _LONG)
        final = self._simulate("runs at length", finalists, length, 0.03, _FINAL, rung=3)
        return Searched(
            _merged([*first, *second, *improved, *final]), len(candidates),
            sum(len(each.probes) for each in self._runs), self._simulated, length,
            time.monotonic() - self.began, self._simulated / self._busy_s, self._notes,
        )  # fmt: skip

    # -------------------------------------------------------------- stages
    def _estimated(self) -> list[Ranked]:
        """All there is, best first; of nothing that seems to reach the goal, what comes nearest."""
        problem = self.problem
        mean_prompt = problem.workload.num_prompt_tokens / len(problem.workload)
        points = starting_points(problem.fleet, problem.families, problem.fixed, mean_prompt)
        if not points:
            raise ConfigError(
                "no layout of these families fits the GPUs: allow more GPUs, smaller nodes or "
                "other families"
            )
        for goal in (problem.goal, *(each for each in _EASIER if each < problem.goal)):
            estimator = Estimator(problem.fleet, problem.base, self.demand, goal)
            rated = []
            for number, candidate in enumerate(points):
                rated.append(Ranked(candidate, estimator.rate(candidate)))
                self._progress("estimates", number + 1, len(points))
            if any(each.estimate for each in rated):
                self._idle_goal = goal
                return sorted(rated, key=lambda each: -each.estimate)
        self._idle_goal = 0.0
        raise ConfigError(self._hopeless())

    def _choose(self, candidates: Sequence[Ranked]) -> list[Ranked]:
        """The best by estimate, some of each family and each with no more than two sizes of a
        step, those of which most is expected first; the mixed layout that is expected to be best
        with every size, since nothing weighs more for nodes that do both."""
        sizes: dict[object, int] = {}
        likely = []
        every = next((one.candidate.groups for one in candidates
                      if one.estimate and one.candidate.family == "mixed"), None)  # fmt: skip
        for each in candidates:
            groups = each.candidate.groups
            sizes[groups] = sizes.get(groups, 0) + 1
            if each.estimate and (groups == every or sizes[groups] <= _SIZES):
                likely.append(each)
        chosen = likely[:_WIDTH]
        for family in self.problem.families:
            own = [each for each in likely if each.candidate.family == family]
            chosen += [each for each in own[:_LEAST_EACH] if each not in chosen]
        chosen += [each for each in likely if each.candidate.groups == every and each not in chosen]
        # By turns, so that no family goes without where time does not suffice for all.
        families = [
            [each for each in chosen if each.candidate.family == name]
            for name in self.problem.families
        ]
        return [each for turn in zip_longest(*families) for each in turn if each is not None]

    def _calibrate(self, ranked: Ranked) -> None:
        """How fast the simulation is here, from one run that counts for nothing else."""
        began = time.monotonic()
        made = probe(self.problem, ranked.candidate, _CALIBRATION, ranked.estimate, math.inf)
        self._simulated += made.ended
        self._busy_s += max(1e-3, time.monotonic() - began)

    def _first(self, chosen: Sequence[Ranked], length: int) -> list[Ranked]:
        """Two of each family, then the rest, if they get near the better of those."""
        stage = "short runs"
        leaders: list[Ranked] = []
        rest: list[Ranked] = []
        for each in chosen:
            same = [one for one in leaders if one.candidate.family == each.candidate.family]
            (leaders if len(same) < 2 else rest).append(each)
        done = self._simulate(stage, leaders, length, 0.15, _LEADERS, rung=1)
        best: dict[Family, float] = {}
        for each in done:
            family = each.candidate.family
            best[family] = max(best.get(family, 0.0), each.rate)
        floors = [_FLOOR * best.get(each.candidate.family, 0.0) for each in rest]
        return done + self._simulate(stage, rest, length, 0.15, _FIRST, rung=1, floors=floors)

    def _improve(self, ranked: Sequence[Ranked], length: int) -> list[Ranked]:
        """The best of each family with other options, where those help."""
        best = self._keep(ranked, 1)
        found: list[Ranked] = []
        helped: set[str] = set()
        for number in range(_ROUNDS):
            tried = {each.candidate for each in (*ranked, *found)}
            options = [
                [
                    (each, candidate)
                    for candidate in moves(
                        each.candidate, self._defaults, self.problem.fixed, self.problem.slo
                    )
                    # What did not help alone is not tried again.
                    if candidate not in tried
                    and (not number or _changed(each.candidate, candidate) in helped)
                ]
                for each in best
            ]
            # In turn, so that no family goes without where time does not suffice for all.
            new = [pair for turn in zip_longest(*options) for pair in turn if pair is not None]
            if not new:
                break
            better = self._simulate(
                "options", [replace(each, candidate=one, found=each.found) for each, one in new],
                length, 0.04, _OPTIONS, rung=2, floors=[_BETTER * each.rate for each, _ in new],
            )  # fmt: skip
            better = [each for each in better if each.rate]
            if not better:
                break
            before = {one: each.candidate for each, one in new}
            helped |= {_changed(before[each.candidate], each.candidate) for each in better}
            found += better
            best = self._keep([*best, *better], 1)
        return found

    # -------------------------------------------------------------- runs
    def _simulate(
        self,
        stage: str,
        ranked: Sequence[Ranked],
        length: int,
        tolerance: float,
        share: float,
        *,
        rung: int,
        floors: Sequence[float] = (),
    ) -> list[Ranked]:
        """Those of which something was found before the stage's time was over."""
        deadline = self.began + share * self.seconds
        tasks = [
            Task(one.candidate, length, self._start(one), tolerance, floor, deadline, self._life_s)
            for one, floor in zip(ranked, floors or [0.0] * len(ranked))
        ]
        by_candidate = {each.candidate: each for each in ranked}
        done = []
        self._progress(stage, 0, len(tasks))
        for number, found in enumerate(self.workers.each(find_rate, tasks)):
            self._progress(stage, number + 1, len(tasks))
            self._runs.append(found)
            self._simulated += found.simulated
            self._busy_s += found.wall_s
            known = by_candidate[found.candidate]
            if found.too_few and _TOO_FEW not in self._notes:
                self._notes.append(_TOO_FEW)
            if found.error:
                self._notes.append(
                    f"{found.candidate.layout(self.problem.fleet)} cannot be simulated: "
                    f"{found.error}"
                )
            elif found.probes and (found.finished or found.rate):
                done.append(Ranked(found.candidate, known.estimate, found, rung))
                if found.rate and not rung > 1:
                    ratio = found.rate / known.estimate
                    self._ratios.setdefault(found.candidate.family, []).append(ratio)
        cut = len(tasks) - len(done)
        if cut:
            self._notes.append(f"{stage}: no time for {cut} of {len(tasks)} candidates")
        # In the order they were asked for, which does not depend on who was faster.
        order = {task.candidate: place for place, task in enumerate(tasks)}
        return sorted(done, key=lambda each: order[each.candidate])

    def _start(self, ranked: Ranked) -> float:
        """Where to look first."""
        if ranked.rate:
            return ranked.rate
        ratios = self._ratios.get(ranked.candidate.family)
        return ranked.estimate * (median(ratios) if ratios else 1.0)

    def _affordable(self, chosen: list[Ranked]) -> tuple[list[Ranked], int]:
        """As many of them as there is time for in runs that let a cell fill up, and the length
        of those runs; runs that are shorter say little."""
        fill = self._fill(chosen)
        most = max(_SHORT, round(_LIVES * fill))
        length = self._length(len(chosen), _FIRST, _LEAST, most)
        fewest = 2 * len(self.problem.families)
        while length < fill and len(chosen) > fewest:
            families = [each.candidate.family for each in chosen]
            spare = [i for i, family in enumerate(families) if families[:i].count(family) > 1]
            if not spare:
                break
            del chosen[max(spare, key=lambda i: -chosen[i].estimate)]
            length = self._length(len(chosen), _FIRST, _LEAST, most)
        return chosen, max(length, fill)

    def _fill(self, chosen: Sequence[Ranked]) -> int:
        """Requests that arrive while one is in the system, if it takes what its targets allow."""
        rate = max(each.estimate for each in chosen)
        return min(len(self.problem.workload), math.ceil(rate * self._life_s))

    def _length(self, count: int, share: float, least: int, most: int) -> int:
        """Requests a run that there is time for, if so many candidates are to be searched until
        then. In steps of a quarter, so that a little more or less time changes nothing."""
        left_s = max(0.0, self.began + share * self.seconds - time.monotonic())
        speed = self._simulated / self._busy_s
        possible = left_s * self.workers.jobs * speed / (count * _PROBES)
        wanted = min(most, max(least, possible), len(self.problem.workload))
        steps = math.floor(math.log(max(1.0, wanted / _LEAST), 1.25))
        return min(len(self.problem.workload), max(least, round(_LEAST * 1.25**steps)))

    def _keep(self, ranked: Iterable[Ranked], count: int) -> list[Ranked]:
        """The best, and the best of every family. None without a rate."""
        ordered = sorted((each for each in ranked if each.rate), key=lambda each: -each.rate)
        kept = ordered[:count]
        for family in self.problem.families:
            own = [each for each in ordered if each.candidate.family == family]
            kept += [each for each in own[:1] if each not in kept]
        return kept

    def _hopeless(self) -> str:
        share = f"for about {self._idle_goal:.0%} of its requests" if self._idle_goal else ""
        return (
            f"no configuration meets the targets for {self.problem.goal:.0%} of the requests, not "
            f"even at a low rate{'; the best may ' + share if share else ''}: set later targets, "
            "a lower --goal, leave out the longest requests (--longest), or allow other hardware"
        )


def _changed(before: Candidate, after: Candidate) -> str:
    """The option that one move changed."""
    return next(iter(set(after.options) - set(before.options)))[0]


def _merged(ranked: Iterable[Ranked]) -> list[Ranked]:
    """Each candidate once, by its longest runs; those of the longest first, then by rate, and
    last those that hold no rate."""
    best: dict[Candidate, Ranked] = {}
    for each in ranked:
        known = best.get(each.candidate)
        if known is None or each.rung >= known.rung:
            best[each.candidate] = each
    return sorted(best.values(), key=lambda each: (not each.rate, -each.rung, -each.rate))
