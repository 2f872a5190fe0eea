#!/usr/bin/env python3
"""Live role changes, simulated: no flapping at a boundary, and a load whose mix moves.

    python scripts/sim_balance.py [--minutes 60] [--nodes 4] [--jobs 2]

The boundary: for an hour, requests come at rates at which two splits of the nodes are about
equally good. Every role change is counted; a reversal is one that undoes the one before it.

The moving mix: long prompts with short answers and short prompts with long answers in turn, each
at a rate that one split of the nodes can take and the others cannot. Goodput with balancing is set
against that of every static split and of mixed nodes alone. Nodes are as Llama 3.1 70B on 4 H100;
what is predicted to miss its targets is rejected. `balanced` moves nodes between prefill and
decode, `any role` lets them be mixed, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchlib.cells import say
from benchlib.environment import ROOT, environment
from benchlib.report import options_of, show_table, write_json
from benchlib.simulated import COST, Run, Window, cell_of, figures, seconds, steady

from pd.cost import library
from pd.report.chart import Line, Panel, write_chart
from pd.types import SLO
from pd.workload.arrival import Workload
from pd.workload.lengths import LogNormal
from pd.workload.synthetic import BLOCK_TOKENS

TARGETS = SLO(3.0, 0.03)
BETWEEN = LogNormal(6000, 0.6, 16000), LogNormal(500, 0.6, 2000)
LONG_PROMPTS = LogNormal(8000, 0.6, 16000), LogNormal(60, 0.6, 300)
LONG_ANSWERS = LogNormal(800, 0.6, 4000), LogNormal(800, 0.6, 3000)
MAX_SEQS = 512
CHUNKS = (512, 2048, 8192)  # of mixed nodes that do not choose by themselves
BALANCING = ("balanced", "any role")
_Job = tuple[dict[str, Any], Workload, dict[str, Any]]


def splits(num_nodes: int) -> dict[str, dict[str, Any]]:
    """Every way to serve with so many nodes whose roles stay, and the one that balances."""
    fixed = {"chunk_sizes": "fixed"}
    found: dict[str, dict[str, Any]] = {
        f"{p}P{num_nodes - p}D": {
            "prefill": p, "decode": num_nodes - p, "disaggregate": "always", **fixed,
        }
        for p in range(1, num_nodes)
    }  # fmt: skip
    mixed = {"prefill": 0, "decode": 0, "mixed": num_nodes, **fixed}
    found |= {
        f"mixed x {num_nodes}, chunks of {chunk}": {**mixed, "max_num_batched_tokens": chunk}
        for chunk in CHUNKS
    }
    found[f"mixed x {num_nodes}, adaptive"] = {**mixed, "chunk_sizes": "adaptive"}
    half = num_nodes // 2
    roles = {"prefill": half, "decode": num_nodes - half, "balance": True}
    found |= {"balanced": roles, "any role": {**roles, "balance_mixed": True}}
    return found


def moving(rate: tuple[float, float], minutes: float, phases: int) -> Workload:
    """Phases in turn: long prompts at the first rate, long answers at the second."""
    each_s = 60 * minutes / phases
    arrivals = []
    for number in range(phases):
        prompts, outputs = (LONG_PROMPTS, LONG_ANSWERS)[number % 2]
        load = steady(rate[number % 2], each_s, number, prompts, outputs)
        arrivals += [
            replace(one, time_s=one.time_s + number * each_s) for one in load if one.time_s < each_s
        ]
    return Workload("moving", arrivals, BLOCK_TOKENS)


def reversals(changes: Sequence[tuple[float, str, str]]) -> int:
    """Changes that give a role back: from what was said, `NODE becomes a ROLE node`."""
    roles: dict[str, list[str]] = {}
    count, last = 0, ""
    for _, what, _ in changes:
        node, role = what.split(" becomes a ")
        known = roles.setdefault(node, [node.rsplit("-", 1)[0] + " node"])
        undoes = len(known) > 1 and known[-2] == role and node == last
        count += undoes
        known.append(role)
        last = node
    return count


def serve(cost: str, workload: Workload, options: dict[str, Any]) -> dict[str, Any]:
    """One run; counted is what arrives after the first minute."""
    window = Window(60.0, workload.duration_s - 30.0)
    spec = cell_of(
        library.find(cost), TARGETS, admission="predicted", max_num_seqs=MAX_SEQS, **options
    )
    run = Run(spec, TARGETS, window, 30.0)
    counted = run.of(workload)
    done = [each for each in run.changes if not each[1].startswith("not done")]
    return {
        **figures(counted),
        "changes": [{"at_s": at, "what": what, "why": why} for at, what, why in done],
        "reversals": reversals(done),
    }


def all_of(cost: str, jobs: Sequence[_Job], processes: int) -> list[dict[str, Any]]:
    """Every run, several at a time, with what it is called."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        runs = [pool.submit(serve, cost, workload, options) for _, workload, options in jobs]
        rows = []
        for (about, _, _), run in zip(jobs, runs, strict=True):
            rows.append({**about, **run.result()})
            say(f"{about}: goodput {rows[-1]['goodput']:.2f}, {len(rows[-1]['changes'])} changes")
    return rows


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Role changes over the hour: a line a rate."""
    colours = ("#2563eb", "#dc2626", "#059669", "#7c3aed")
    lines = []
    for row, colour in zip(rows, colours, strict=False):
        points = [(0.0, 0.0)]
        for number, change in enumerate(row["changes"]):
            at = change["at_s"] / 60
            points += [(at, float(number)), (at, number + 1.0)]
        points.append((row["minutes"], float(len(row["changes"]))))
        lines.append(Line(row["name"], points, colour, dots=False))
    panel = Panel("Role changes so far", "minutes", "changes", lines=lines, log_x=False)
    write_chart(path, "Live role changes, simulated", [panel])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cost", default=COST, help="cost model: a file or a shipped one's name")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60.0, help="at the boundary")
    parser.add_argument("--rates", type=float, nargs="+", default=[4.5])
    parser.add_argument("--moving-minutes", type=float, default=8.0)
    parser.add_argument("--phases", type=int, default=2, help="of the moving mix")
    parser.add_argument(
        "--moving-rates", type=float, nargs=2, default=[4.0, 12.0],
        help="of long prompts, and of long answers",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "sim_balance.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "sim_balance.svg")
    args = parser.parse_args()
    first, second = args.moving_rates
    mix = moving((first, second), args.moving_minutes, args.phases)
    cells = splits(args.nodes)
    jobs: list[_Job] = [
        ({"cell": name, "rate": rate}, steady(rate, 60 * args.minutes, 3, *BETWEEN), cells[name])
        for name in BALANCING
        for rate in args.rates
    ]
    jobs += [({"cell": name}, mix, options) for name, options in cells.items()]
    rows = all_of(args.cost, jobs, args.jobs)
    still, moved = rows[: -len(cells)], rows[-len(cells) :]
    show_table(
        f"{args.minutes:g} minutes at a boundary",
        ("cell", "requests/s", "changes", "reversals", "goodput", "attainment"),
        [
            (
                row["cell"], f"{row['rate']:g}", str(len(row["changes"])), str(row["reversals"]),
                f"{row['goodput']:.2f}", f"{row['attainment']:.1%}",
            )
            for row in still
        ],
    )  # fmt: skip
    show_table(
        f"{args.moving_minutes:g} minutes of a mix that moves {args.phases - 1} times",
        ("cell", "goodput", "attainment", "rejected", "TTFT p90", "TPOT p90", "changes"),
        [
            (
                row["cell"], f"{row['goodput']:.2f}", f"{row['attainment']:.1%}",
                f"{row['rejected_share']:.1%}", seconds(row["ttft_s"]["p90"]),
                seconds(row["tpot_s"]["p90"]), str(len(row["changes"])),
            )
            for row in moved
        ],
    )  # fmt: skip
    report = {"environment": environment(), "options": options_of(args, "picture")}
    write_json(args.json, {**report, "boundary": still, "moving": moved})
    drawn = [
        {**row, "name": f"{row['cell']}, boundary, {row['rate']:g}/s", "minutes": args.minutes}
        for row in still
    ]
    drawn += [
        {**row, "name": f"{row['cell']}, moving mix", "minutes": args.moving_minutes}
        for row in moved if row["cell"] in BALANCING
    ]  # fmt: skip
    picture(drawn, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
