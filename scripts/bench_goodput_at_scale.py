#!/usr/bin/env python
"""Goodput of a 70B model on 16 and on 256 GPUs, simulated: scripts/bench_goodput_at_scale.py --help

For each trace and size: static splits of prefill and decode nodes, mixed nodes with chunked
prefill at the best size of a chunk, and ours, with roles, ways and chunks left to the coordinator,
from the best static split and from mixed nodes. The best of the others also run with what is
predicted to miss its targets rejected, as ours do, so that it shows what of the difference is
that. With `--search` also the best that `pd tune` finds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchlib.environment import environment
from benchlib.report import options_of, show_table, write_json
from benchlib.traces import DEFAULT_DIR

from pd.config import Config
from pd.tune.candidate import Candidate, Group
from pd.tune.demand import Demand
from pd.tune.estimate import Estimator
from pd.tune.fleet import Fleet, find_kinds
from pd.tune.problem import Problem
from pd.tune.search import Search
from pd.tune.trial import Found, Task, find_rate
from pd.tune.workers import Workers
from pd.types import SLO
from pd.workload.load import load_workload

# (file, TTFT, TPOT): prompts of the first are ten times as long as those of the second.
TRACES = {
    "conversation": ("mooncake_conversation.jsonl.gz", SLO(15.0, 0.05)),
    "azure": ("azure2023_conv.csv.gz", SLO(2.0, 0.05)),
}
SPLITS = (0.25, 0.5, 0.75)  # of the nodes for prefill
CHUNKS = (512, 2048, 8192)  # of mixed nodes
MIXED, REJECTS = "mixed, best chunk", "early rejection"
OURS = {
    "balance": True, "balance_mixed": True, "disaggregate": "auto", "chunk_sizes": "adaptive"
}  # fmt: skip
BLOCK = 64
PUBLISHED = [
    ("Mooncake, effective requests against vLLM", "+59 to +498 %"),
    ("Arrow, rate against colocated", "2.55x"),
    ("TaiChi, goodput against aggregation and against PD", "+9 to +77 %"),
]


def baselines(problem: Problem, kind: str) -> dict[str, list[Candidate]]:
    """What is compared, by name; of several candidates the best one counts."""
    fleet = problem.fleet
    nodes = fleet.num_gpus // fleet.kind(kind).gpus
    # The sizes that others ship: a whole prompt's worth for prefill nodes.
    made: dict[str, list[Candidate]] = {}
    for share in SPLITS:
        prefill = max(1, min(nodes - 1, round(share * nodes)))
        groups = Group("prefill", prefill, kind), Group("decode", nodes - prefill, kind)
        options = {"max_num_batched_tokens": 8192, "block_size": BLOCK, "disaggregate": "always",
                   "chunk_sizes": "fixed"}  # fmt: skip
        made[f"static {prefill}P+{nodes - prefill}D"] = [Candidate.of(groups, options)]
    mixed = (Group("mixed", nodes, kind),)
    made[MIXED] = [
        Candidate.of(
            mixed,
            {"max_num_batched_tokens": chunk, "block_size": BLOCK, "chunk_sizes": "fixed"},
        )
        for chunk in CHUNKS
    ]
    return made


def compare(problem: Problem, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Goodput of each, by name."""
    demand = Demand.of(problem.workload, problem.slo)
    estimator = Estimator(problem.fleet, problem.base, demand, problem.goal)
    span_s = (problem.slo.ttft_s or 0) / 2 + demand.output * (problem.slo.tpot_s or 0.05)
    named = baselines(problem, kind)
    deadline = time.monotonic() + 60 * args.minutes
    guess = max(estimator.rate(each) for same in named.values() for each in same)
    requests = max(args.requests, math.ceil(2 * guess * span_s))

    def task(candidate: Candidate, start: float) -> Task:
        return Task(candidate, requests, start, args.tolerance, 0.0, deadline, span_s)

    found: dict[str, Found] = {}
    with Workers(problem, args.jobs) as workers:
        tasks = [
            task(each, max(estimator.rate(each), guess / 20))
            for same in named.values()
            for each in same
        ]
        for one in workers.each(find_rate, tasks):
            name = next(name for name, same in named.items() if one.candidate in same)
            if name not in found or one.rate > found[name].rate:
                found[name] = one
        found = {name: found[name] for name in named}
        split = max((name for name in named if name != MIXED), key=lambda name: found[name].rate)
        again = {
            f"{name}, {REJECTS}": found[name].candidate.with_options(admission="predicted")
            for name in (split, MIXED)
        }
        for start, name in (("the best split", split), ("mixed nodes", MIXED)):
            ours = again[f"{name}, {REJECTS}"].with_options(**OURS)
            again[f"ours, from {start}"] = ours.with_options(max_num_batched_tokens=CHUNKS[-1])
        best = max(one.rate for one in found.values())
        if args.search:
            searched = Search(problem, workers, 60 * args.search).run().best
            again["ours, best found"] = searched.candidate
        deadline = time.monotonic() + 60 * args.minutes
        tasks = [task(each, best or guess / 2) for each in again.values()]
        found |= dict(zip(again, workers.all(find_rate, tasks), strict=True))
    return {name: row(problem, each) for name, each in found.items()}


def row(problem: Problem, found: Found) -> dict[str, Any]:
    return {
        **found.candidate.to_dict(problem.fleet),
        "goodput": found.rate,
        "goodput_per_gpu": found.rate / problem.fleet.num_gpus,
        "does_not_hold": found.limit if found.limit < float("inf") else None,
        "requests": found.requests,
        "finished": found.finished,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--only", choices=TRACES, help="one trace")
    parser.add_argument("--cost", default="llama-3.1-70b-h100-tp4", help="the kind of node")
    parser.add_argument("--gpus", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--requests", type=int, default=400, help="of a run, at least")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--minutes", type=float, default=5.0, help="at most, for either half")
    parser.add_argument("--search", type=float, default=0.0, help="minutes for `pd tune`, 0: none")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/goodput_at_scale.json"))
    parser.add_argument("--add", action="store_true", help="to what the file has, kept as is")
    args = parser.parse_args(argv)
    kinds = find_kinds([args.cost])
    results: dict[str, Any] = json.loads(args.json.read_text())["goodput"] if args.add else {}
    for trace in [args.only] if args.only else TRACES:
        file, slo = TRACES[trace]
        workload = load_workload(args.traces / file)
        for gpus in args.gpus:
            fleet = Fleet(tuple(kinds), {kinds[0].hardware: gpus})
            base = replace(Config.from_dict(None, pool_dram_gib=0.0, max_num_seqs=256))
            problem = Problem.of(base=base, slo=slo, fleet=fleet, workload=workload)
            key = f"{trace}, {gpus} GPUs"
            results[key] = compare(problem, kinds[0].name, args)
            show(key, slo, results[key])
            write_json(
                args.json,
                {
                    "about": "simulated; highest rate with 90 % of requests within both targets",
                    "environment": environment(),
                    "options": options_of(args, "traces"),
                    "slo_s": {name: [each.ttft_s, each.tpot_s] for name, (_, each) in
                              TRACES.items()},
                    "published_by_others_for_orientation": dict(PUBLISHED),
                    "goodput": results,
                },
            )  # fmt: skip
    show_table(
        "Published by third parties, of other models, machines and targets: orientation only",
        ("claim", "ratio"), PUBLISHED,
    )  # fmt: skip


def show(name: str, slo: SLO, rows: dict[str, Any]) -> None:
    mixed = rows[MIXED]["goodput"]
    static = max(
        each["goodput"] for key, each in rows.items()
        if key.startswith("static") and REJECTS not in key
    )  # fmt: skip

    def ratio(value: float, base: float) -> str:
        return f"{value / base:.2f}x" if base else "-"

    show_table(
        f"{name}, TTFT {slo.ttft_s:g} s, TPOT {slo.tpot_s:g} s: simulated goodput, requests/s",
        ("", "configuration", "goodput/s", "per GPU", "to mixed", "to best static split"),
        [
            (key, each["layout"],
             f"{each['goodput']:.3f}" + ("" if each["finished"] else " or more"),
             f"{each['goodput_per_gpu']:.4f}",
             ratio(each["goodput"], mixed), ratio(each["goodput"], static))
            for key, each in rows.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
