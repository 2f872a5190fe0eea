#!/usr/bin/env python3
"""Routing policies on published traces, simulated: cache hits and time to the first token.

    python scripts/bench_sim_routing.py [--requests N] [--prefill 8 64] [--loads 0.5 0.7 0.9]
    python scripts/bench_sim_routing.py --prefill 64 --add        to what the file has already

Mooncake's conversation and synthetic traces go through cells of P prefill and P decode nodes, each
as Llama 3.1 70B on 4 H100, with caches of as many tokens as fit beside the weights and no pool. A
load of 0.7 means: with nothing cached, prompts would keep the prefill nodes computing for 70 % of
the time; a trace's times are scaled to that. Every policy gets the same arrivals and a new cell;
the coordinator, the caches and the fetches between nodes are those of the live system.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.environment import ROOT, environment
from benchlib.report import options_of, show_table, write_json
from benchlib.traces import DEFAULT_DIR

from pd.config import Config
from pd.cost import library
from pd.cost.model import CostModel
from pd.report.chart import Line, Panel, write_chart
from pd.sim.build import Hardware, cell_spec
from pd.sim.simulate import simulate
from pd.workload.arrival import Workload
from pd.workload.load import load_workload

COST = "llama-3.1-70b-h100-tp4"
TRACES = ("conversation", "synthetic")
# What is compared, and the options it means. Blocks spread over nodes by being fetched.
POLICIES: dict[str, dict[str, Any]] = {
    "cache_aware": {},
    "cache_aware, no fetch": {"fetch": False},
    "affinity": {"routing": "affinity"},
    "least_loaded": {"routing": "least_loaded"},
    "least_loaded, no fetch": {"routing": "least_loaded", "fetch": False},
    "round_robin": {"routing": "round_robin"},
}
PER_HOST = 2  # nodes of 4 GPUs
KEY = ("trace", "prefill", "load", "policy")  # by which a row is known
_COLOURS = ("#2563eb", "#93c5fd", "#16a34a", "#f59e0b", "#fcd34d", "#dc2626")
BLOCK_SIZE = 256
CHUNK = 8192


def at_load(workload: Workload, cost: CostModel, num_prefill: int, load: float) -> Workload:
    """The same arrivals in the time that makes prefill nodes without caches this busy."""
    work_s = sum(cost.prefill_s(each.num_prompt, 0, CHUNK) for each in workload)
    return workload.scaled(time=work_s / num_prefill / load / workload.duration_s)


def run_cell(workload: Workload, cost: CostModel, num_prefill: int, policy: str) -> dict[str, Any]:
    config = Config.from_dict(
        None, prefill=num_prefill, decode=num_prefill, block_size=BLOCK_SIZE,
        max_num_batched_tokens=CHUNK, max_waiting_per_node=1_000_000, pool_dram_gib=0,
        **POLICIES[policy],
    )  # fmt: skip
    result = simulate(cell_spec(config, Hardware(cost, per_host=PER_HOST)), workload)
    summary = result.summary()
    return {
        "ok": summary.num_ok,
        "hit_rate": result.hits.rate,
        "fetched": result.hits.fetched,
        "ttft_mean_s": summary.ttft_s.mean,
        "ttft_p50_s": summary.ttft_s.p50,
        "ttft_p90_s": summary.ttft_s.p90,
        "tpot_mean_s": summary.tpot_s.mean,
        "prefill_busy": result.busy()["prefill"],
    }


def kept(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an earlier run's file that are not among these."""
    if not path.is_file():
        return []
    new = {tuple(row[key] for key in KEY) for row in rows}
    old = json.loads(path.read_text())["rows"]
    return [row for row in old if tuple(row[key] for key in KEY) not in new]


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean TTFT by load, a panel for each trace and number of nodes."""
    panels = []
    for trace, prefill in dict.fromkeys((row["trace"], row["prefill"]) for row in rows):
        lines = []
        for policy, colour in zip(POLICIES, _COLOURS, strict=True):
            points = [
                (row["load"], row["ttft_mean_s"]) for row in rows
                if (row["trace"], row["prefill"], row["policy"]) == (trace, prefill, policy)
            ]  # fmt: skip
            if points:
                lines.append(Line(policy, sorted(points), colour))
        title = f"{trace}, {prefill} prefill nodes"
        panels.append(Panel(title, "load", "mean TTFT, s", lines=lines, log_x=False))
    write_chart(path, "Routing policies on published traces, simulated", panels, columns=2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--trace", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--requests", type=int, default=4000, help="of each trace, the first")
    parser.add_argument("--prefill", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "sim_routing.json")
    parser.add_argument("--add", action="store_true", help="to the rows of the file, kept as is")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "sim_routing.svg")
    args = parser.parse_args()
    cost = library.find(COST)
    rows: list[dict[str, Any]] = []
    for name in args.trace:
        trace = load_workload(args.traces / f"mooncake_{name}.jsonl.gz").first(args.requests)
        for num_prefill in args.prefill:
            for load in args.loads:
                workload = at_load(trace, cost, num_prefill, load)
                for policy in args.policies:
                    found = run_cell(workload, cost, num_prefill, policy)
                    about = {
                        "trace": name, "prefill": num_prefill, "load": load, "rate": workload.rate,
                        "policy": policy, "requests": len(workload),
                    }  # fmt: skip
                    rows.append({**about, **found})
                    print(f"==> {rows[-1]}", file=sys.stderr, flush=True)
    if args.add:
        rows = sorted(kept(args.json, rows) + rows, key=lambda row: [row[key] for key in KEY[:3]])
    show_table(
        "Routing, simulated",
        ("trace", "P + D", "load", "req/s", "policy", "hits", "TTFT mean", "p90", "busy"),
        [
            (
                row["trace"], str(row["prefill"]), f"{row['load']:g}", f"{row['rate']:.1f}",
                row["policy"], f"{row['hit_rate']:.1%}", f"{row['ttft_mean_s']:.2f} s",
                f"{row['ttft_p90_s']:.2f} s", f"{row['prefill_busy']:.0%}",
            )
            for row in rows
        ],
    )  # fmt: skip
    options = options_of(args, "traces", "picture")
    write_json(args.json, {"environment": environment(), "options": options, "rows": rows})
    picture(rows, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
