"""Runs against a server: one, a sweep of rates, a search for the best rate, two servers in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import httpx

from pd.bench.endpoint import Endpoint
from pd.bench.load import run_workload, settle
from pd.bench.search import RateSearch
from pd.errors import ClientError
from pd.types import SLO
from pd.workload.arrival import Workload
from pd.workload.outcome import Outcome, Summary, summarise
from pd.workload.spec import WorkloadSpec

_AT_ONCE = 0.1  # of a run's time, in which all its requests arrive


class Progress(Protocol):
    """Where runs are shown as they go."""

    def begin(self, what: str, num_requests: int) -> None: ...

    def update(self, sent: int, ended: int) -> None: ...

    def end(self, measured: Measured) -> None: ...


@dataclass(frozen=True)
class Measured:
    """One run. `rate` is requests a second as they were sent; `summary` is of the `counted`
    outcomes, without those of the ramp; `stopped_s` as in `Run`."""

    url: str
    rate: float
    summary: Summary
    outcomes: tuple[Outcome, ...]
    counted: tuple[Outcome, ...]
    workload: Workload
    stopped_s: float | None = None


@dataclass
class Bench:
    """A server, what is sent to it, and what is asked of it. `ramp_s` leaves requests that
    arrive before it out of the figures; `salt` makes prompts that no other bench has sent."""

    http: httpx.AsyncClient
    endpoint: Endpoint
    spec: WorkloadSpec
    slo: SLO | None
    progress: Progress
    salt: int = 0
    warmup: int = 2
    ramp_s: float = 0.0
    runs: int = field(default=0, init=False)

    async def warm_up(self) -> None:
        """A few requests of the workload one after another, in no figures. ClientError if one
        fails: then no figure would mean anything."""
        few = self.spec.make().first(self.warmup)
        for each in few:
            one = Workload("warm-up", [replace(each, time_s=0.0)], few.block_tokens)
            run = await run_workload(self.http, self.endpoint, one, salt=self._salt())
            outcome = run.outcomes[0]
            if outcome.status != "ok":
                raise ClientError(
                    f"{self.endpoint.url} fails a request of {each.num_prompt} prompt and "
                    f"{each.num_output} output tokens: {outcome.detail}"
                )

    async def run(self, rate: float | None = None, *, goal: float | None = None) -> Measured:
        """The workload once, at another rate than its own if one is given. `goal` as in
        `run_workload`."""
        workload = (self.spec if rate is None else self.spec.at_rate(rate)).make()
        rate = workload.rate if rate is None else rate
        self.progress.begin(f"{self.endpoint.url} at {rate:.4g} requests/s", len(workload))
        run = await run_workload(
            self.http, self.endpoint, workload, slo=self.slo, salt=self._salt(), goal=goal,
            ramp_s=self.ramp_s, progress=self.progress.update,
        )  # fmt: skip
        counted = tuple(each for each in run.outcomes if each.arrival.time_s >= self.ramp_s)
        measured = Measured(
            self.endpoint.url, rate, summarise(counted, self.slo), tuple(run.outcomes), counted,
            workload, run.stopped_s,
        )  # fmt: skip
        self.progress.end(measured)
        await settle(self.http, self.endpoint)
        return measured

    def _salt(self) -> int:
        self.runs += 1
        return self.salt + self.runs


async def sweep(bench: Bench, rates: Sequence[float]) -> list[Measured]:
    """A run at each rate, in ascending order."""
    return [await bench.run(rate) for rate in sorted(rates)]


async def search(
    bench: Bench, plan: RateSearch, after: Callable[[Measured], None] = lambda measured: None
) -> list[Measured]:
    """Runs at the rates that `plan` asks for; the answer is then in it."""
    runs = []
    while (rate := plan.next_rate()) is not None:
        measured = await bench.run(rate, goal=plan.goal)
        summary = measured.summary
        plan.add(
            rate, summary.num_met, summary.num_requests, gave_up=measured.stopped_s is not None,
            all_at_once=measured.workload.duration_s < _AT_ONCE * summary.duration_s,
        )  # fmt: skip
        runs.append(measured)
        after(measured)
    return runs


async def compare(first: Bench, second: Bench, rounds: int) -> list[tuple[Measured, Measured]]:
    """The same workload to both, one at a time; who begins alternates, so that what drifts
    with time weighs on both. Each pair is (first's, second's)."""
    pairs = []
    for number in range(rounds):
        if number % 2 == 0:
            a = await first.run()
            b = await second.run()
        else:
            b = await second.run()
            a = await first.run()
        pairs.append((a, b))
    return pairs
