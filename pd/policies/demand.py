"""What requests are like lately: how many come, how long they are, and what they are promised.

Where admission rejects what would be late, the longest prompts are what is rejected, and a cell
that serves nine in ten in time need not compute the tenth: roles are then chosen for the others.
Of Mooncake's conversations that tenth has 41 % of all tokens. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from pd.policies.goodput import LATE, Demand
from pd.policies.lengths import OutputLengths, RecentMean
from pd.policies.pace import EventRate
from pd.types import SLO

_WINDOW_S = 10.0
_SAMPLE_S = 20.0  # of prompts, or
_SAMPLE = 48  # the last so many if fewer came in it, and of very many
_MOST_SAMPLE = 1024  # the last so many
_LEAST = 8  # requests, before anything is said of them
# The same for their targets: lengths differ from one to the next and have to be averaged, targets
# are the same for all until somebody wants others.
_TARGETS_WINDOW_S = 4.0
_TARGETS_MEMORY = 6
_MOST_SPREAD = 4.0


class DemandWatch:
    """`asked` for every request that comes, let in or not; `lengths` are of their outputs. It
    `sheds` if what is predicted to be late is rejected."""

    def __init__(self, lengths: OutputLengths, *, sheds: bool) -> None:
        self._kept = 1.0 - LATE if sheds else 1.0
        self._rate = EventRate(_WINDOW_S)
        self._prompts: deque[tuple[float, int, int]] = deque(maxlen=_MOST_SAMPLE)
        self._outputs = RecentMean()
        self._lengths = lengths
        self._ttft_s = RecentMean(_TARGETS_WINDOW_S, _TARGETS_MEMORY)
        self._tpot_s = RecentMean(_TARGETS_WINDOW_S, _TARGETS_MEMORY)

    def asked(self, num_tokens: int, num_computed: int, outputs: int, slo: SLO, now: float) -> None:
        """A prompt of so many tokens came, of which some have to be computed."""
        self._rate.count(now)
        self._prompts.append((now, num_computed, num_tokens))
        while len(self._prompts) > _SAMPLE and self._prompts[0][0] < now - _SAMPLE_S:
            self._prompts.popleft()
        self._outputs.add(outputs, now)
        if slo.ttft_s is not None:
            self._ttft_s.add(slo.ttft_s, now)
        if slo.tpot_s is not None:
            self._tpot_s.add(slo.tpot_s, now)

    def demand(self, now: float, ttft_s: float, tpot_s: float) -> Demand | None:
        """None before a few requests were seen. The targets are those of requests without any."""
        if len(self._prompts) < _LEAST:
            return None
        computed = self._to_compute()
        prompts = [num_tokens for _, _, num_tokens in self._prompts]
        tokens = self._lengths.mean or 1.0
        return Demand(
            per_s=self._rate.per_s(now),
            prompt_tokens=max(1.0, fmean(computed)),
            prompt_spread=_spread(computed),
            outputs=max(1.0, self._outputs.value),
            output_tokens=tokens,
            context=fmean(prompts) + tokens / 2.0,
            context_spread=_spread(prompts),
            ttft_s=self._ttft_s.value if self._ttft_s.known else ttft_s,
            tpot_s=self._tpot_s.value if self._tpot_s.known else tpot_s,
        )

    def _to_compute(self) -> list[int]:
        """The tokens of those that are to be served, the fewest first."""
        ordered = sorted(computed for _, computed, _ in self._prompts)
        return ordered[: max(1, round(self._kept * len(ordered)))]


def _spread(values: Sequence[float]) -> float:
    mean = max(1.0, fmean(values))
    return min(_MOST_SPREAD, max(0.0, fmean(each * each for each in values) / mean**2 - 1.0))
