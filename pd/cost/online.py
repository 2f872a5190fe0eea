"""Corrections of a cost model from the steps a node really runs. Pure.

A profile is of another day: the machine is shared, clocks differ, the mix of lengths is not the
profile's. What stays right is the shape; so each phase has one factor, measured over predicted,
smoothed in its logarithm, that the model's seconds are multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pd.cost.load import PHASES, Phase, StepLoad
from pd.cost.model import CostModel

LOWEST, HIGHEST = 0.1, 10.0  # further off, a model is not of this hardware
_WEIGHT = 0.05  # of the newest step, once there have been more than 1 / _WEIGHT
_SURPRISE = math.log(2.0)  # the furthest a single step is taken to be from what is known


class OnlineModel:
    """A cost model with the factors learned so far. Answers as `CostModel` does.

    A phase that has not been seen has the geometric mean of the factors of those that have:
    hardware that is slower is mostly slower in everything.
    """

    def __init__(self, model: CostModel, factors: Mapping[Phase, float] | None = None) -> None:
        """`factors` are those of another that learned the same model, for a start."""
        self.model = model
        self._logs: dict[Phase, float] = {}
        self._counts: dict[Phase, int] = {}
        for phase, factor in (factors or {}).items():
            self._logs[phase] = _bounded(math.log(factor))
            self._counts[phase] = int(1 / _WEIGHT)

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took so long. Steps without work or duration say nothing."""
        predicted = self.model.step_s(load)
        if predicted <= 0.0 or not 0.0 < seconds < math.inf:
            return
        phase = load.phase
        found = _bounded(math.log(seconds / predicted))
        count = self._counts.get(phase, 0)
        old = self._logs.get(phase, found)
        # A pause of the process or a compilation is a step of many times the usual length.
        if count:
            found = min(max(found, old - _SURPRISE), old + _SURPRISE)
        self._logs[phase] = old + max(_WEIGHT, 1 / (count + 1)) * (found - old)
        self._counts[phase] = count + 1

    def factor(self, phase: Phase) -> float:
        """Measured over predicted, from LOWEST to HIGHEST; 1 before anything was observed."""
        if phase in self._logs:
            return math.exp(self._logs[phase])
        return math.exp(sum(self._logs.values()) / len(self._logs)) if self._logs else 1.0

    @property
    def factors(self) -> dict[Phase, float]:
        """Those of the phases that were observed."""
        return {phase: math.exp(self._logs[phase]) for phase in PHASES if phase in self._logs}

    def step_s(self, load: StepLoad) -> float:
        return self.factor(load.phase) * self.model.step_s(load)

    def decode_steps_s(self, num_seqs: int, context: int, num_steps: int) -> float:
        return self.factor("decode") * self.model.decode_steps_s(num_seqs, context, num_steps)

    def prefill_s(self, new: int, cached: int = 0, chunk: int | None = None) -> float:
        return self.factor("prefill") * self.model.prefill_s(new, cached, chunk)

    def transfer_s(self, num_bytes: int, path: str) -> float:
        return self.model.transfer_s(num_bytes, path)


def _bounded(log: float) -> float:
    return min(max(log, math.log(LOWEST)), math.log(HIGHEST))
