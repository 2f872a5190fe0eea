"""The highest rate at which a share of all requests meets its targets: which rate to try next.

Pure: rates come out, what was measured goes in. Rates double or halve until one holds and one
does not, then the bracket is halved (geometrically) until its ends are within the tolerance.
A rate is run up to `repeats` times, and holds if all its runs together reach the goal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_MOST_DOUBLINGS = 12
_MOST_HALVINGS = 6  # a start further off than that was no guess


@dataclass
class Trial:
    """The runs at one rate: of how many requests how many met their targets."""

    rate: float
    runs: list[tuple[int, int]] = field(default_factory=list)  # (met, all)
    gave_up: bool = False
    all_at_once: bool = False

    @property
    def attainment(self) -> float:
        total = sum(count for _, count in self.runs)
        return sum(met for met, _ in self.runs) / total if total else math.nan

    def holds(self, goal: float) -> bool:
        return not self.gave_up and self.attainment >= goal - 1e-12


class RateSearch:
    """Ask `next_rate`, run it, tell `add`, until `next_rate` is None.

    `tolerance` is how far apart, relatively, a rate that holds and one that does not may stay.
    """

    def __init__(
        self, start: float, *, goal: float = 0.9, tolerance: float = 0.05, repeats: int = 2
    ) -> None:
        if not (0 < start < math.inf and 0 < goal <= 1 and tolerance > 0 and repeats >= 1):
            raise ValueError(
                "a search needs a finite rate above 0, a goal in (0, 1], a tolerance above 0 and "
                f"at least one run a rate, not {start}, {goal}, {tolerance}, {repeats}"
            )
        self.goal = goal
        self.tolerance = tolerance
        self.repeats = repeats
        self.trials: list[Trial] = []
        self._next = start

    @property
    def best(self) -> Trial | None:
        """The highest rate below the lowest that does not hold; None if none holds."""
        limit = self._lowest_failing
        held = [each for each in self._judged if each.holds(self.goal) and each.rate < limit]
        return max(held, key=lambda each: each.rate, default=None)

    @property
    def bracketed(self) -> bool:
        """Whether a rate was found that does not hold: if not, the true limit is higher."""
        return self._lowest_failing < math.inf

    def next_rate(self) -> float | None:
        trial = self._open()
        if trial is not None:
            return trial.rate
        if not self.trials:
            return self._next
        best, failing = self.best, self._lowest_failing
        if best is not None and failing < math.inf:
            if failing / best.rate <= 1 + self.tolerance:
                return None
            return math.sqrt(best.rate * failing)
        if best is None:
            return failing / 2 if len(self.trials) <= _MOST_HALVINGS else None
        if best.all_at_once:
            return None  # a higher rate would be the same load
        return best.rate * 2 if len(self.trials) <= _MOST_DOUBLINGS else None

    def add(
        self,
        rate: float,
        met: int,
        count: int,
        *,
        gave_up: bool = False,
        all_at_once: bool = False,
    ) -> None:
        """A run at `next_rate()`. One that was given up decides its rate. `all_at_once` says that
        nearly all requests were there before the first had ended: too few to tell rates apart."""
        trial = self._open()
        if trial is None:
            trial = Trial(rate)
            self.trials.append(trial)
        if trial.rate != rate:
            raise ValueError(f"a run at {rate}, where {trial.rate} was asked for")
        trial.runs.append((met, count))
        trial.gave_up = trial.gave_up or gave_up
        trial.all_at_once = trial.all_at_once or all_at_once

    def _open(self) -> Trial | None:
        """The last rate, if it needs another run."""
        if not self.trials or self._decided(self.trials[-1]):
            return None
        return self.trials[-1]

    def _decided(self, trial: Trial) -> bool:
        """No run that is left could change the verdict, each being as large as those so far."""
        left = self.repeats - len(trial.runs)
        if trial.gave_up or left <= 0:
            return True
        met = sum(each for each, _ in trial.runs)
        count = sum(each for _, each in trial.runs)
        more = count / len(trial.runs) * left
        needed = self.goal * (count + more) - 1e-9
        return met >= needed or met + more < needed

    @property
    def _judged(self) -> list[Trial]:
        return [each for each in self.trials if self._decided(each)]

    @property
    def _lowest_failing(self) -> float:
        failing = (each.rate for each in self._judged if not each.holds(self.goal))
        return min(failing, default=math.inf)
