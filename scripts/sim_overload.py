#!/usr/bin/env python3
"""Overload, simulated: what each kind of admission saves of a cell's goodput.

    python scripts/sim_overload.py [--factors 0.5 1 2 5 10] [--seconds 60]

Independent requests arrive at a multiple of each cell's capacity, which is the highest rate at
which 90 % of them meet both targets when nothing is rejected. Nodes are as Llama 3.1 70B on 4 H100
each. Each run begins with 10 s at half the capacity, so that the cell has measured itself; counted
are the requests that arrive from 10 s after that on. `of peak` is the goodput against the highest
that the same cell reached with any admission at any of the rates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchlib.cells import say
from benchlib.environment import ROOT, environment
from benchlib.report import options_of, percentile, show_table, write_json
from benchlib.simulated import COST, Run, Window, cell_of, figures, seconds, steady

from pd.bench.search import RateSearch
from pd.cost import library
from pd.cost.model import CostModel
from pd.report.chart import Line, Panel, write_chart
from pd.types import SLO
from pd.workload.arrival import Workload
from pd.workload.synthetic import BLOCK_TOKENS

CELLS: dict[str, dict[str, int]] = {
    "2P2D": {"prefill": 2, "decode": 2},
    "mixed x 4": {"prefill": 0, "decode": 0, "mixed": 4},
}
ADMISSIONS = ("none", "queue", "predicted")
TAIL_S = 30.0  # in which what arrived last may still end
COLOURS = {"none": "#94a3b8", "queue": "#dc2626", "predicted": "#059669"}
WARM_S, RAMP_S = 10.0, 20.0  # half of the capacity until the one, counted from the other on


def capacity(
    cost: CostModel, slo: SLO, cell: dict[str, int], length_s: float, start: float
) -> float:
    """The highest rate at which 90 % meet both targets, nothing rejected."""
    plan = RateSearch(start, goal=0.9, tolerance=0.04, repeats=1)
    while (rate := plan.next_rate()) is not None:
        run = Run(
            cell_of(cost, slo, admission="none", **cell), slo, Window(RAMP_S, length_s), TAIL_S
        )
        counted = run.of(load(rate / 2, rate, length_s))
        plan.add(rate, counted.met, counted.arrived, gave_up=False, all_at_once=False)
    if plan.best is None:
        raise SystemExit(f"no rate meets the targets {slo} with {cell}: set later ones")
    return plan.best.rate


def load(warm_rate: float, rate: float, length_s: float) -> Workload:
    """A quiet beginning, then `rate` up to `length_s`."""
    quiet = [each for each in steady(warm_rate, 2 * WARM_S, seed=1) if each.time_s < WARM_S]
    busy = (replace(each, time_s=each.time_s + WARM_S) for each in steady(rate, length_s))
    arrivals = [*quiet, *(each for each in busy if each.time_s < length_s)]
    return Workload(f"{rate:g} a second", arrivals, BLOCK_TOKENS)


def overloaded(
    cost: CostModel,
    slo: SLO,
    cell: dict[str, int],
    admission: str,
    capacity: float,
    factor: float,
    length_s: float,
) -> dict[str, Any]:
    """One rate and one kind of admission."""
    window = Window(RAMP_S, length_s)
    # What is let in at the window's end still has to meet its targets.
    run = Run(cell_of(cost, slo, admission=admission, **cell), slo, window, TAIL_S)
    rate = factor * capacity
    counted = run.of(load(capacity / 2, rate, length_s))
    waits = run.retry_after_s
    return {
        "admission": admission,
        "factor": factor,
        "capacity": capacity,
        "rate": rate,
        **figures(counted),
        "retry_after_s": {
            "p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99),
            "least": min(waits), "most": max(waits), "missing": sum(not each for each in waits),
        } if waits else None,
    }  # fmt: skip


def with_shares(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one cell, with their goodput as a share of the best of all of them."""
    peak = max((row["goodput"] for row in rows), default=0.0)
    return [{**row, "of_peak": row["goodput"] / peak if peak else 0.0} for row in rows]


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Goodput by load, a panel for each cell."""
    panels = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        lines = []
        for admission in dict.fromkeys(row["admission"] for row in rows):
            points = sorted(
                (row["factor"], 100 * row["of_peak"]) for row in rows
                if (row["cell"], row["admission"]) == (cell, admission)
            )  # fmt: skip
            lines.append(Line(admission, points, COLOURS[admission]))
        panels.append(Panel(cell, "load / capacity", "goodput, % of peak", lines=lines, y_top=100))
    write_chart(path, "Goodput under overload, simulated", panels, columns=2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cost", default=COST, help="cost model: a file or a shipped one's name")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--admissions", nargs="+", default=list(ADMISSIONS), choices=ADMISSIONS)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0, 5.0, 10.0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in each run")
    parser.add_argument("--start", type=float, default=8.0, help="requests a second tried first")
    parser.add_argument("--ttft-ms", type=float, default=1000.0)
    parser.add_argument("--tpot-ms", type=float, default=40.0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "sim_overload.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "sim_overload.svg")
    args = parser.parse_args()
    cost, slo = library.find(args.cost), SLO(args.ttft_ms / 1e3, args.tpot_ms / 1e3)
    rows: list[dict[str, Any]] = []
    for name in args.cells:
        rate = capacity(cost, slo, CELLS[name], args.seconds, args.start)
        say(f"{name}: capacity {rate:.3g} requests/s")
        found = []
        for admission in args.admissions:
            for factor in args.factors:
                row = overloaded(cost, slo, CELLS[name], admission, rate, factor, args.seconds)
                found.append({"cell": name, **row})
                say(f"  {admission}, {factor:g}x: goodput {row['goodput']:.3g}")
        rows += with_shares(found)
    show_table(
        f"Overload, simulated: TTFT {args.ttft_ms:g} ms, TPOT {args.tpot_ms:g} ms",
        ("cell, admission", "load", "req/s", "goodput", "of peak", "rejected", "TTFT p50", "p99",
         "TPOT p99", "retry after p50", "most"),
        [
            (
                f"{row['cell']}, {row['admission']}", f"{row['factor']:g}x", f"{row['rate']:.1f}",
                f"{row['goodput']:.2f}", f"{row['of_peak']:.0%}", f"{row['rejected_share']:.0%}",
                seconds(row["ttft_s"]["p50"]), seconds(row["ttft_s"]["p99"]),
                seconds(row["tpot_s"]["p99"]), seconds((row["retry_after_s"] or {}).get("p50")),
                seconds((row["retry_after_s"] or {}).get("most")),
            )
            for row in rows
        ],
    )  # fmt: skip
    options = options_of(args, "picture")
    write_json(args.json, {"environment": environment(), "options": options, "rows": rows})
    picture(rows, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
