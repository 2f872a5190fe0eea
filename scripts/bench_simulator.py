#!/usr/bin/env python3
"""How fast the simulator is: simulated requests a second of one core, and memory.

    python scripts/bench_simulator.py [--traces DIR] [--requests N] [--first N] [--only CASE]

Each case runs in a process of its own; seconds are CPU seconds of that process for the simulation
alone (not for reading or making up the workload), memory is the most the process ever had.

conversation-8      Mooncake's conversation trace, all of it, on 4 prefill and 4 decode nodes
conversation-1000   the same on 500 + 500 nodes, in a 125th of the time: as busy as the 8 were
made-up             N requests of lengths as in Azure's conversation trace, on 4 + 4 nodes

Nodes are as Llama 3.1 70B on 4 H100 each, KV blocks of 256 tokens, decided by the live code.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchlib.environment import ROOT, environment
from benchlib.report import show_table, write_json
from benchlib.traces import DEFAULT_DIR

COST = "llama-3.1-70b-h100-tp4"
CASES = ("conversation-8", "conversation-1000", "made-up")
BLOCK_SIZE = 256


def run_case(case: str, traces: Path, num_requests: int, first: int | None) -> dict[str, Any]:
    from pd.config import Config
    from pd.cost import library
    from pd.sim.build import Hardware, cell_spec
    from pd.sim.simulate import simulate
    from pd.workload.lengths import LogNormal
    from pd.workload.load import load_workload
    from pd.workload.spec import WorkloadSpec

    each = 500 if case == "conversation-1000" else 4
    config = Config.from_dict(
        None, prefill=each, decode=each, block_size=BLOCK_SIZE, pool_dram_gib=0,
        max_waiting_per_node=1_000_000,
    )  # fmt: skip
    spec = cell_spec(config, Hardware(library.find(COST)))
    if case == "made-up":
        # Mean and spread of the published trace; a rate that keeps prefill about half busy.
        workload = WorkloadSpec(
            prompts=LogNormal(1155, 0.95, 8000), outputs=LogNormal(211, 0.8, 1500), rate=20.0,
            num_requests=num_requests,
        ).make()  # fmt: skip
    else:
        workload = load_workload(traces / "mooncake_conversation.jsonl.gz").scaled(time=4 / each)
        workload = workload if first is None else workload.first(first)
    before_mib = _memory_mib()
    started = time.process_time()
    result = simulate(spec, workload)
    cpu_s = time.process_time() - started
    summary = result.summary()
    return {
        "case": case,
        "nodes": 2 * each,
        "requests": len(workload),
        "ok": summary.num_ok,
        "simulated_s": result.duration_s,
        "cpu_s": cpu_s,
        "requests_per_s": len(workload) / cpu_s,
        "events": result.num_events,
        "steps": sum(node.steps for node in result.nodes),
        "output_tokens": summary.output_tokens,
        "busy": result.busy(),
        "hit_rate": result.hits.rate,
        "memory_before_mib": before_mib,
        "memory_mib": _memory_mib(),
    }


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the case made-up")
    parser.add_argument("--first", type=int, help="of the conversation trace (default: all)")
    parser.add_argument("--only", choices=CASES, action="append", help="default: all of them")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "simulator.json")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(run_case(args.only[0], args.traces, args.requests, args.first)))
        return 0
    rows = []
    for case in args.only or CASES:
        print(f"==> {case}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--in-process", "--only", case]
        command += ["--traces", str(args.traces), "--requests", str(args.requests)]
        command += [] if args.first is None else ["--first", str(args.first)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
    show_table(
        "Simulator, one core",
        ("case", "nodes", "requests", "CPU s", "requests/s", "events", "steps", "MiB"),
        [
            (
                row["case"], str(row["nodes"]), str(row["requests"]), f"{row['cpu_s']:.1f}",
                f"{row['requests_per_s']:.0f}", str(row["events"]), str(row["steps"]),
                f"{row['memory_mib']:.0f}",
            )
            for row in rows
        ],
    )  # fmt: skip
    write_json(args.json, {"environment": environment(), "cases": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
