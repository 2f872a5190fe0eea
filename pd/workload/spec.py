"""A workload as a user describes it: a file or distributions, and how fast, how long, how much."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pd.errors import WorkloadError
from pd.workload.arrival import Workload
from pd.workload.lengths import Constant, Lengths
from pd.workload.load import load_workload
from pd.workload.synthetic import (
    SharedPrefixes,
    Turns,
    conversations,
    independent,
    with_shared_prefixes,
)
from pd.workload.times import fixed_times, gamma_times, poisson_times

Process = Literal["poisson", "gamma", "fixed"]
_DEFAULT_REQUESTS = 100
_DEFAULT_RATE = 1.0


@dataclass(frozen=True)
class WorkloadSpec:
    """With a `file`, its requests; else made-up ones of `prompts` and `outputs` tokens that
    arrive by `process` (`cv` is gamma's), share beginnings or are turns of conversations.

    `rate` is requests a second: a file's times are scaled to it, and left alone if it is None.
    `num_requests` and `duration_s` each bound the workload, after scaling. `longest` leaves
    out requests of more tokens, prompt and output together.
    """

    file: Path | None = None
    spread: bool = True
    process: Process = "poisson"
    cv: float = 2.0
    prompts: Lengths = field(default_factory=lambda: Constant(512))
    outputs: Lengths = field(default_factory=lambda: Constant(64))
    shared: SharedPrefixes | None = None
    turns: Turns | None = None
    rate: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    scale_time: float = 1.0
    scale_length: float = 1.0
    scale_output: float | None = None  # None: as `scale_length`
    longest: int | None = None
    seed: int = 0

    def at_rate(self, rate: float) -> WorkloadSpec:
        return replace(self, rate=rate)

    def make(self) -> Workload:
        """The workload; the same spec gives the same one. WorkloadError if it has no requests."""
        if self.file is None:
            workload = self._made_up()
        else:
            workload = load_workload(self.file, spread=self.spread, seed=self.seed)
        try:
            workload = workload.scaled(self.scale_time, self.scale_length, self.scale_output)
            if self.longest is not None:
                workload = self._fitting(workload, self.longest)
            if self.file is not None and self.rate is not None:
                if self.num_requests is not None:  # the rate is that of those that are sent
                    workload = workload.first(self.num_requests)
                workload = workload.at_rate(self.rate)
        except ValueError as error:
            raise WorkloadError(f"cannot scale the workload: {error}") from None
        workload = workload.window(0.0, math.inf if self.duration_s is None else self.duration_s)
        if self.num_requests is not None:
            workload = workload.first(self.num_requests)
        if not workload.arrivals:
            raise WorkloadError(f"workload {workload.name} has no requests within its bounds")
        return workload

    def num_too_long(self, tokens: int) -> tuple[int, int]:
        """(requests of more than `tokens` tokens, all requests) before any is left out.
        Conversations have none: they end before."""
        if self.file is None and self.turns is not None:
            return 0, self.num_requests or 0
        workload = replace(self, longest=None).make()
        return len(workload) - len(workload.fitting(tokens)), len(workload)

    def _fitting(self, workload: Workload, tokens: int) -> Workload:
        fitting = workload.fitting(tokens)
        if workload.arrivals and not fitting.arrivals:
            raise WorkloadError(
                f"every request of workload {workload.name} has more than {tokens} tokens, prompt "
                "and output together"
            )
        return fitting

    def _made_up(self) -> Workload:
        rate = _DEFAULT_RATE if self.rate is None else self.rate
        rng = random.Random(self.seed)
        times: Iterator[float]
        if self.process == "poisson":
            times = poisson_times(rate, rng)
        elif self.process == "gamma":
            times = gamma_times(rate, self.cv, rng)
        else:
            times = fixed_times(rate)
        number = self._number(rate)
        try:
            if self.turns is not None:
                # `rate` is that of all turns, not of conversations.
                sessions = (each * self._turns_each() for each in times)
                return conversations(
                    sessions, number, self.prompts, self.outputs, self.turns, self.shared,
                    most_tokens=self.longest or 131_072, seed=self.seed,
                )  # fmt: skip
            if self.shared is not None:
                return with_shared_prefixes(
                    times, number, self.prompts, self.outputs, self.shared, seed=self.seed
                )
            return independent(times, number, self.prompts, self.outputs, seed=self.seed)
        except ValueError as error:
            raise WorkloadError(f"cannot make the workload: {error}") from None

    def _number(self, rate: float) -> int:
        """Enough requests for the duration, which then cuts them off."""
        if self.duration_s is None:
            return _DEFAULT_REQUESTS if self.num_requests is None else self.num_requests
        expected = self.duration_s / self.scale_time * rate
        enough = math.ceil(expected + 10 * max(1.0, self.cv) * math.sqrt(expected) + 10)
        return enough if self.num_requests is None else min(enough, self.num_requests)

    def _turns_each(self) -> float:
        """Mean turns of a conversation, by trial."""
        assert self.turns is not None
        rng = random.Random(0)
        return sum(self.turns.count.draw(rng) for _ in range(1000)) / 1000
