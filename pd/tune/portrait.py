"""A run to look at: where requests spent their time, and what the nodes did meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pd.sim.node import SimNode
from pd.sim.result import SimResult
from pd.sim.simulate import Run
from pd.tune.candidate import Candidate
from pd.tune.problem import Problem
from pd.types import Role

STAGES = ("waiting", "fetching KV", "prefill", "hand-over", "decoding")
_SAMPLES = 120


@dataclass(frozen=True)
class Moment:
    """One sample of a role's nodes together: prompts that wait or are computed, sequences that
    decode, and the share of the time since the sample before in which they computed."""

    time_s: float
    role: Role
    prompts: int
    sequences: int
    busy: float


@dataclass(frozen=True)
class Portrait:
    """`stages` are mean seconds of a request, in order of its life; `moments` in order of time."""

    candidate: Candidate
    rate: float
    result: SimResult
    stages: Mapping[str, float]
    moments: tuple[Moment, ...]


@dataclass
class _Lives:
    """What the log of events says of requests."""

    times: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def note(self, now: float, kind: str, about: str, more: Mapping[str, Any]) -> None:
        if kind in ("submit", "first token", "handed over", "end"):
            self.times[about][kind] = now
        elif kind == "prefilled":
            self.times[about].update(more)

    def stages(self) -> dict[str, float]:
        """Means over requests that got a token."""
        sums = dict.fromkeys(STAGES, 0.0)
        count = 0
        for life in self.times.values():
            if "first token" not in life or "end" not in life:
                continue
            count += 1
            fetch, compute = life.get("fetch_s", 0.0), life.get("compute_s", 0.0)
            first = life["first token"]
            moved = max(first, life.get("handed over", first))
            spent = (
                max(0.0, first - life["submit"] - fetch - compute), fetch, compute,
                moved - first, max(0.0, life["end"] - moved),
            )  # fmt: skip
            for stage, seconds in zip(STAGES, spent):
                sums[stage] += seconds
        return {stage: total / max(1, count) for stage, total in sums.items()}


class _Sampler:
    """Looks at a cell's nodes at even intervals."""

    def __init__(self, run: Run, every_s: float) -> None:
        self.moments: list[Moment] = []
        self._cell = run.cell
        self._every_s = every_s
        self._busy: dict[str, float] = {}
        self._cell.queue.at(every_s, self._look)

    def _look(self) -> None:
        cell = self._cell
        cell.catch_up()
        by_role: dict[Role, list[SimNode]] = {}
        for node in cell.nodes():
            by_role.setdefault(node.core.role, []).append(node)
        for role, nodes in sorted(by_role.items()):
            spent = sum(node.busy_s - self._busy.get(node.id, 0.0) for node in nodes)
            self.moments.append(
                Moment(
                    cell.now, role,
                    sum(len(node.core.prefill.scheduler) for node in nodes),
                    sum(len(node.core.decode.scheduler.running) for node in nodes),
                    min(1.0, spent / (self._every_s * len(nodes))),
                )
            )  # fmt: skip
        self._busy = {node.id: node.busy_s for node in cell.nodes()}
        cell.queue.at(cell.now + self._every_s, self._look)


def portray(problem: Problem, asked: tuple[Candidate, int, float]) -> Portrait:
    """Of a candidate, so many requests and a rate."""
    candidate, requests, rate = asked
    workload = problem.workload.first(requests).at_rate(rate)
    lives = _Lives()
    run = Run(candidate.spec(problem.base, problem.fleet), workload, problem.seed, lives.note)
    sampler = _Sampler(run, max(1e-3, workload.duration_s / _SAMPLES))
    result = run.result()
    return Portrait(candidate, rate, result, lives.stages(), tuple(sampler.moments))
