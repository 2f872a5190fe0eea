"""An open loop: every request goes out at its time, whatever became of those before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from pd.bench.endpoint import Endpoint, num_running
from pd.bench.sending import Sending, sleep_until
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome

_CHECK_S = 0.1
_LEAD_S = 0.05  # from when all is ready to the workload's time 0
_SETTLE_S = 30.0  # the longest wait for a server to finish what was cancelled
_POLL_S = 0.2


@dataclass
class Run:
    """What came of a workload. `stopped_s` is when it was given up, None if it ran to its end;
    then `outcomes` are those of the requests sent and decided until then."""

    workload: Workload
    outcomes: list[Outcome] = field(default_factory=list)
    stopped_s: float | None = None


async def run_workload(
    http: httpx.AsyncClient,
    endpoint: Endpoint,
    workload: Workload,
    *,
    slo: SLO | None = None,
    salt: int = 0,
    goal: float | None = None,
    ramp_s: float = 0.0,
    progress: Callable[[int, int], None] = lambda sent, ended: None,
) -> Run:
    """Send a workload and wait for every end.

    `salt` makes prompts that no other run had. With a `goal`, the share of requests that shall
    meet their targets, the run is given up as soon as it cannot be reached any more; those that
    arrive before `ramp_s` do not count.
    `progress` is called with the requests sent and ended so far.
    """
    arrivals = workload.arrivals
    # Made beforehand: a long prompt takes milliseconds, and those would be another's latency.
    bodies = [endpoint.body(each, workload.block_tokens, salt) for each in arrivals]
    start_s = time.monotonic() + _LEAD_S
    loop = _OpenLoop(http, endpoint, slo, start_s, ramp_s, progress)
    counted = sum(each.time_s >= ramp_s for each in arrivals)
    allowed = None if goal is None else int((1 - goal) * counted + 1e-9)
    sender = asyncio.create_task(loop.send(arrivals, bodies))
    watcher = asyncio.create_task(loop.watch(allowed)) if allowed is not None else None
    try:
        tasks = [sender] if watcher is None else [sender, watcher]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        stopped = None if sender in done else time.monotonic() - start_s
    finally:
        await _end(sender, watcher, *loop.tasks)
    run = Run(workload, loop.outcomes, stopped)
    run.outcomes.sort(key=lambda each: each.arrival.time_s)
    return run


async def settle(http: httpx.AsyncClient, endpoint: Endpoint) -> None:
    """Wait until the server has nothing left to do, as far as it tells."""
    deadline_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline_s:
        running = await num_running(http, endpoint)
        await asyncio.sleep(_POLL_S if running else 2 * _POLL_S)
        if not running:
            return


class _OpenLoop:
    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoint: Endpoint,
        slo: SLO | None,
        start_s: float,
        ramp_s: float,
        progress: Callable[[int, int], None],
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._http = http
        self._endpoint = endpoint
        self._slo = slo
        self._start_s = start_s
        self._ramp_s = ramp_s
        self._progress = progress
        self._running: set[int] = set()
        self._sendings: list[Sending] = []
        self._missed = 0

    async def send(self, arrivals: Sequence[Arrival], bodies: list[bytes]) -> None:
        for arrival, body in zip(arrivals, bodies, strict=True):
            await sleep_until(self._start_s + arrival.time_s)
            self._sendings.append(Sending(arrival, body, self._start_s))
            task = asyncio.create_task(self._run(len(self._sendings) - 1))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        while self.tasks:
            # A task that fails is a bug here: it must not be waited over.
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def watch(self, allowed: int) -> None:
        """Returns when more requests have missed their targets than may."""
        while True:
            now_s = time.monotonic() - self._start_s
            overdue = [
                each for each in self._running if self._sendings[each].missed_by(now_s, self._slo)
            ]
            missing = sum(self._counts(self._sendings[each].arrival) for each in overdue)
            if self._missed + missing > allowed:
                self.outcomes += [self._sendings[each].cancelled() for each in overdue]
                self._running.difference_update(overdue)
                return
            await asyncio.sleep(_CHECK_S)

    async def _run(self, number: int) -> None:
        self._running.add(number)
        self._tell()
        sending = self._sendings[number]
        slo = sending.arrival.slo or self._slo
        outcome = await sending.run(self._http, self._endpoint.headers(slo))
        if number in self._running:
            self._running.discard(number)
            self.outcomes.append(outcome)
            self._missed += self._counts(sending.arrival) and not outcome.meets(self._slo)
        self._tell()

    def _counts(self, arrival: Arrival) -> bool:
        return arrival.time_s >= self._ramp_s

    def _tell(self) -> None:
        self._progress(len(self._sendings), len(self.outcomes))


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
