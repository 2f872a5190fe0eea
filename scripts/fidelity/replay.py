"""A workload served by a live cell, and the same one by a simulated cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import httpx

from fidelity.agreement import Times
from fidelity.stages import Notes
from pd.bench.endpoint import Endpoint
from pd.bench.load import run_workload, settle
from pd.sim.simulate import simulate
from pd.sim.spec import CellSpec
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome

ALONE = tuple(Arrival(0.0, 16 + i, 12) for i in range(7))
_WARM_PROMPT, _WARM_OUTPUT = 460, 4
_WARM = 1.15  # times a node's KV memory: all of it is touched
_AHEAD_S = 120.0  # of virtual time for the warm-up


def warm_up(kv_tokens: int, num_nodes: int) -> Workload:
    """Prompts, all at once, that fill the KV memory of this many nodes once: memory that was never
    touched costs its first user as much as computing half of what it is for."""
    count = math.ceil(_WARM * kv_tokens * num_nodes / _WARM_PROMPT)
    # Of different lengths, as they are different prompts.
    arrivals = [Arrival(0.0, _WARM_PROMPT - count // 2 + i, _WARM_OUTPUT) for i in range(count)]
    return Workload("warm-up", arrivals)


async def alone(http: httpx.AsyncClient, endpoint: Endpoint, salt: int) -> list[Times]:
    """Short requests, one after another: what each takes beside its steps."""
    found: list[Times] = []
    for number, each in enumerate(ALONE):
        found += await serve(http, endpoint, Workload("alone", [each]), salt + number)
    return found


def front_s(spec: CellSpec, measured: Sequence[Times]) -> float:
    """What a request takes on its way that the simulator does not have: HTTP and the client."""
    simulated = [time for each in ALONE for time in predict(spec, Workload("alone", [each]))]
    of = [statistics.median(each.ttft_s or 0.0 for each in run) for run in (measured, simulated)]
    return max(0.0, of[0] - of[1])


async def serve(
    http: httpx.AsyncClient, endpoint: Endpoint, workload: Workload, salt: int
) -> list[Times]:
    """Through the live cell, in order of arrival."""
    run = await run_workload(http, endpoint, workload, salt=salt)
    await settle(http, endpoint)
    _all_served(run.outcomes)
    return sorted(map(Times.of, run.outcomes), key=lambda each: each.time_s)


def predict(
    spec: CellSpec,
    workload: Workload,
    warm: Workload | None = None,
    front_s: float = 0.0,
    stages: dict[str, float] | None = None,
) -> list[Times]:
    """Through a simulated cell that has served `warm` before, in order of arrival; `front_s` is
    added to every TTFT. The means of its stages go into `stages`."""
    ahead_s = _AHEAD_S if warm is not None else 0.0
    then = [replace(each, time_s=each.time_s + ahead_s) for each in workload]
    whole = Workload(workload.name, [*(warm or ()), *then], workload.block_tokens)
    notes = Notes(ahead_s)
    outcomes = simulate(spec, whole, on_note=notes).outcomes
    if stages is not None:
        stages.update(notes.means())
    _all_served(outcomes)
    found = [Times.of(each) for each in outcomes if each.arrival.time_s >= ahead_s]
    back = [
        replace(each, time_s=each.time_s - ahead_s, ttft_s=(each.ttft_s or 0.0) + front_s)
        for each in found
    ]
    return sorted(back, key=lambda each: each.time_s)


def _all_served(outcomes: Sequence[Outcome]) -> None:
    failed = [each for each in outcomes if each.status != "ok"]
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(outcomes)} requests failed, the first with: {failed[0].detail}"
        )
