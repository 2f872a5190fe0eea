"""What requests are like lately: how many come, how long they are, and what they are promised.
Pure."""

from __future__ import annotations

from pd.policies.goodput import Demand
from pd.policies.lengths import OutputLengths, RecentMean
from pd.policies.pace import EventRate
from pd.types import SLO

_WINDOW_S = 10.0
_LEAST = 8  # requests, before anything is said of them
# The same for their targets: lengths differ from one to the next and have to be averaged, targets
# are the same for all until somebody wants others.
_TARGETS_WINDOW_S = 4.0
_TARGETS_MEMORY = 6
_MOST_SPREAD = 4.0


class DemandWatch:
    """`asked` for every request that comes, let in or not; `lengths` are of their outputs."""

    def __init__(self, lengths: OutputLengths) -> None:
        self._rate = EventRate(_WINDOW_S)
        self._num_asked = 0
        self._prompt = RecentMean()
        self._prompt_squared = RecentMean()
        self._context = RecentMean()  # of a prompt, cached or not
        self._outputs = RecentMean()
        self._lengths = lengths
        self._ttft_s = RecentMean(_TARGETS_WINDOW_S, _TARGETS_MEMORY)
        self._tpot_s = RecentMean(_TARGETS_WINDOW_S, _TARGETS_MEMORY)

    def asked(self, num_tokens: int, num_computed: int, outputs: int, slo: SLO, now: float) -> None:
        """A prompt of so many tokens came, of which some have to be computed."""
        self._num_asked += 1
        self._rate.count(now)
        self._prompt.add(num_computed, now)
        self._prompt_squared.add(float(num_computed) ** 2, now)
        self._context.add(num_tokens, now)
        self._outputs.add(outputs, now)
        if slo.ttft_s is not None:
            self._ttft_s.add(slo.ttft_s, now)
        if slo.tpot_s is not None:
            self._tpot_s.add(slo.tpot_s, now)

    def demand(self, now: float, ttft_s: float, tpot_s: float) -> Demand | None:
        """None before a few requests were seen. The targets are those of requests without any."""
        if self._num_asked < _LEAST:
            return None
        prompt = max(1.0, self._prompt.value)
        spread = max(0.0, self._prompt_squared.value / prompt**2 - 1.0)
        tokens = self._lengths.mean or 1.0
        return Demand(
            per_s=self._rate.per_s(now),
            prompt_tokens=prompt,
            prompt_spread=min(_MOST_SPREAD, spread),
            outputs=max(1.0, self._outputs.value),
            output_tokens=tokens,
            context=self._context.value + tokens / 2.0,
            ttft_s=self._ttft_s.value if self._ttft_s.known else ttft_s,
            tpot_s=self._tpot_s.value if self._tpot_s.known else tpot_s,
        )
