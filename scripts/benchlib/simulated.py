"""What the simulated experiments share: cells, made-up load, and how a run is counted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pd.config import Config
from pd.cost.model import CostModel
from pd.sim.build import Hardware, cell_spec
from pd.sim.simulate import simulate
from pd.sim.spec import CellSpec
from pd.types import SLO
from pd.workload.arrival import Workload
from pd.workload.lengths import Lengths, LogNormal
from pd.workload.outcome import Outcome, Spread
from pd.workload.synthetic import independent
from pd.workload.times import poisson_times

COST = "llama-3.1-70b-h100-tp4"
BLOCK_SIZE = 64
# Means and spreads of the prompts and answers of Azure's published conversation trace.
PROMPTS = LogNormal(1155, 0.95, 8000)
OUTPUTS = LogNormal(211, 0.8, 1500)


def cell_of(cost: CostModel, slo: SLO, **options: Any) -> CellSpec:
    """A cell without pools; `options` are those of the configuration."""
    targets = {
        "ttft_ms": slo.ttft_s and slo.ttft_s * 1e3,
        "tpot_ms": slo.tpot_s and slo.tpot_s * 1e3,
    }
    config = Config.from_dict(
        None, **{"block_size": BLOCK_SIZE, "pool_dram_gib": 0, **targets, **options}
    )
    return cell_spec(config, Hardware(cost))


def steady(
    rate: float,
    seconds: float,
    seed: int = 0,
    prompts: Lengths = PROMPTS,
    outputs: Lengths = OUTPUTS,
) -> Workload:
    """Independent requests, Poisson arrivals."""
    count = max(2, round(rate * seconds))
    times = poisson_times(rate, random.Random(f"times {seed}"))
    return independent(times, count, prompts, outputs, seed=seed, name=f"{rate:g} a second")


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that arrived from `start_s` on and before `end_s`: the cell fills up before, and
    what arrives after may not have ended when a run is cut off."""

    start_s: float
    end_s: float

    def holds(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s


@dataclass(frozen=True, slots=True)
class Counted:
    """The requests of a window; those without an outcome had not ended and met nothing."""

    arrived: int
    ok: int
    rejected: int
    met: int
    goodput: float  # requests that met both targets, a second of the window
    goodput_prompt_tokens: float  # of these requests
    ttft_s: Spread
    tpot_s: Spread

    @property
    def attainment(self) -> float:
        return self.met / self.arrived if self.arrived else 1.0

    @property
    def rejected_share(self) -> float:
        return self.rejected / self.arrived if self.arrived else 0.0


def count(workload: Workload, outcomes: Iterable[Outcome], slo: SLO, window: Window) -> Counted:
    inside = [each for each in outcomes if window.holds(each.arrival.time_s)]
    ok = [each for each in inside if each.status == "ok"]
    met = [each.arrival.num_prompt for each in ok if each.meets(slo)]
    length_s = window.end_s - window.start_s
    return Counted(
        arrived=sum(window.holds(each.time_s) for each in workload),
        ok=len(ok),
        rejected=sum(each.status == "rejected" for each in inside),
        met=len(met),
        goodput=len(met) / length_s,
        goodput_prompt_tokens=sum(met) / length_s,
        ttft_s=Spread.of(each.ttft_s for each in ok if each.ttft_s is not None),
        tpot_s=Spread.of(each.tpot_s for each in ok if each.tpot_s is not None),
    )


@dataclass
class Run:
    """One simulation, cut off `tail_s` after the window's end."""

    spec: CellSpec
    slo: SLO
    window: Window
    tail_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.retry_after_s: list[float] = []
        self.changes: list[tuple[float, str, str]] = []  # when, what, why
        self.outcomes: tuple[Outcome, ...] = ()
        self.end_s = 0.0

    def of(self, workload: Workload) -> Counted:
        over_s = self.window.end_s + self.tail_s
        result = simulate(
            self.spec, workload, seed=self.seed, on_note=self._heard,
            stop=lambda outcome: outcome.end_s > over_s,
        )  # fmt: skip
        self.outcomes, self.end_s = result.outcomes, result.duration_s
        return count(workload, result.outcomes, self.slo, self.window)

    def _heard(self, now: float, kind: str, about: str, more: Mapping[str, Any]) -> None:
        if kind == "rejected":
            self.retry_after_s.append(more["retry_after_s"])
        elif kind == "decided":
            self.changes.append((now, about, str(more["reason"])))


def figures(counted: Counted) -> dict[str, Any]:
    """As plain data; None where nothing was measured."""

    def of(spread: Spread) -> dict[str, float | None]:
        parts = {"p50": spread.p50, "p90": spread.p90, "p99": spread.p99, "mean": spread.mean}
        return {name: value if math.isfinite(value) else None for name, value in parts.items()}

    return {
        "arrived": counted.arrived,
        "ok": counted.ok,
        "rejected": counted.rejected,
        "rejected_share": counted.rejected_share,
        "met": counted.met,
        "attainment": counted.attainment,
        "goodput": counted.goodput,
        "goodput_prompt_tokens": counted.goodput_prompt_tokens,
        "ttft_s": of(counted.ttft_s),
        "tpot_s": of(counted.tpot_s),
    }


def seconds(value: float | None) -> str:
    """For a table."""
    return "-" if value is None else f"{value:.3g} s"
