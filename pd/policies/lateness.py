"""How far first tokens come after what was predicted for them. Pure.

Admission is to keep the 99th percentile of admitted requests within the target, so what counts is
not the mean error of predictions but what 99 of 100 stay below: a quantile that is followed by
steps up and down, after Robbins and Monro (1951), in the logarithm.
"""

from __future__ import annotations

import math

_SHARE = 0.99
_STEP = 0.05
_HIGHEST = 2.0  # further off, it is not the prediction that is wrong
_NEAR = 0.7  # of the target: what was not nearly turned away says nothing of where to turn away


class Lateness:
    """Of one node: observed over predicted TTFT."""

    __slots__ = ("_log",)

    def __init__(self) -> None:
        self._log = 0.0

    @property
    def factor(self) -> float:
        """What 99 of 100 first tokens come within, as a multiple of the prediction: 1 to 2."""
        return math.exp(self._log)

    def observe(self, predicted_s: float, observed_s: float, target_s: float) -> None:
        """A first token of a request that had this target. Only those count that were nearly not
        let in, by what was held to be late then: short waits are predicted by their fixed costs,
        and nothing hangs on them. So the factor comes down again, too: the higher it is, the
        shorter the waits that are near the target with it."""
        expected_s = predicted_s * self.factor
        if not (expected_s >= _NEAR * target_s > 0.0 and observed_s > 0.0):
            return
        late = observed_s > expected_s
        self._log += _STEP * (_SHARE if late else _SHARE - 1.0)
        self._log = min(max(self._log, 0.0), math.log(_HIGHEST))
