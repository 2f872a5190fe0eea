"""A small search: nodes with round figures, a fleet of three, and 240 requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim_cells import COST, random_workload

from pd.config import Config
from pd.cost.model import CostModel
from pd.tune.fleet import Fleet, NodeKind
from pd.tune.problem import Problem
from pd.types import SLO

SMALL: CostModel = replace(
    COST,
    about={"gpus": 1, "hardware": "g", "kv_bytes_per_token": 65536, "kv_tokens": 16000},
)
TWICE: CostModel = replace(
    COST,
    overhead_s=0.006,
    about={"gpus": 2, "hardware": "g", "kv_bytes_per_token": 65536, "kv_tokens": 40000},
)


def make_fleet(gpus: int = 3, *, both: bool = False) -> Fleet:
    kinds = [NodeKind.of("small", SMALL)]
    if both:
        kinds.append(NodeKind.of("twice", TWICE))
    return Fleet(tuple(kinds), {"g": gpus})


def make_problem(gpus: int = 3, *, both: bool = False, **more: Any) -> Problem:
    given: dict[str, Any] = {
        "slo": SLO(0.5, 0.06),
        "fleet": make_fleet(gpus, both=both),
        "workload": random_workload(3, count=240),
        "base": Config.from_dict(None, pool_dram_gib=0),
    }
    return Problem.of(**(given | more))
