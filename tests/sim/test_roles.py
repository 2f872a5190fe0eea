"""Roles in whole simulated cells: what sets of them serve of one load, and which are gone for."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from sim_cells import make_spec

from pd.config import Config
from pd.cost import library
from pd.sim.build import Hardware, cell_spec
from pd.sim.result import SimResult
from pd.sim.simulate import simulate
from pd.sim.spec import CellSpec
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.lengths import LogNormal
from pd.workload.spec import WorkloadSpec

TARGETS = SLO(15.0, 0.05)
# Few long prompts have most of the tokens; about what four nodes can take.
HEAVY = WorkloadSpec(
    prompts=LogNormal(12_000, 1.2, 120_000), outputs=LogNormal(350, 0.6, 2000), rate=4.0,
    num_requests=600,
)  # fmt: skip


def run(spec: CellSpec, workload: Workload) -> tuple[SimResult, list[str]]:
    """What became of it, and what was decided."""
    decided: list[str] = []

    def note(at: float, kind: str, about: str, more: Mapping[str, Any]) -> None:
        if kind == "decided":
            decided.append(about)

    return simulate(spec, workload, on_note=note), decided


def served(prefill: int, decode: int, mixed: int, **options: Any) -> tuple[float, list[str]]:
    """The share of them in time on nodes of 4 H100 with Llama 3.1 70B, and what was decided."""
    assert TARGETS.ttft_s is not None and TARGETS.tpot_s is not None
    config = Config.from_dict(
        None, prefill=prefill, decode=decode, mixed=mixed, block_size=64, pool_dram_gib=0,
        admission="predicted", ttft_ms=1000 * TARGETS.ttft_s, tpot_ms=1000 * TARGETS.tpot_s,
        **options,
    )  # fmt: skip
    spec = cell_spec(config, Hardware(library.find("llama-3.1-70b-h100-tp4")))
    result, decided = run(spec, HEAVY.make())
    return result.summary(TARGETS).attainment, decided


@pytest.mark.parametrize(
    ("roles", "least"),
    [((0, 0, 4), 0.94), ((2, 2, 0), 0.86), ((2, 1, 1), 0.9), ((1, 1, 2), 0.9), ((3, 1, 0), 0.9)],
)
def test_any_roles_share_what_there_is(roles: tuple[int, int, int], least: float) -> None:
    """Mixed nodes are asked as others are, not only for what no prefill node can do in time: the
    longest prompts, which are slowest beside outputs."""
    attainment, _ = served(*roles)
    assert attainment >= least


def test_roles_that_serve_most_are_left_alone() -> None:
    chosen = {"balance": True, "balance_mixed": True}
    attainment, decided = served(0, 0, 4, **chosen)
    assert not decided and attainment >= 0.94


def test_and_others_change_no_more_than_it_takes() -> None:
    chosen = {"balance": True, "balance_mixed": True}
    attainment, decided = served(3, 1, 0, **chosen)
    assert len(decided) <= 3 and attainment >= 0.88


def test_roles_follow_the_load() -> None:
    """Prompts first, then long outputs: a node goes to where it is needed, and one comes back."""
    options = {
        "balance": True, "balance_window_s": 5.0, "balance_patience_s": 2.0,
        "balance_cooldown_s": 5.0, "ttft_ms": 500.0, "tpot_ms": 14.0,
    }  # fmt: skip
    rng = Random(1)
    arrivals, now = [], 0.0
    for _ in range(800):
        prompts = now < 60.0
        now += rng.expovariate(9.0 if prompts else 3.0)
        arrivals.append(Arrival(now, 1500, 4) if prompts else Arrival(now, 30, 250))
    spec = make_spec(2, 2, num_blocks=2000, options=options)
    result, decided = run(spec, Workload("shift", arrivals))
    assert all(each.status == "ok" for each in result.outcomes)
    nodes, roles = zip(*(each.split(" becomes a ") for each in decided), strict=True)
    assert roles == ("prefill node", "decode node")
    assert nodes == ("decode-1", "decode-1")
