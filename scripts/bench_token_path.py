#!/usr/bin/env python3
"""CPU time that a token costs between a decode step and the client, in a running cell.

    python scripts/bench_token_path.py [--streams 1 32 256] [--seconds 10]

One prefill and one decode node serve a model that is next to nothing to compute, so that what
is around it shows. Streams run all together; per token, in microseconds of CPU:

    node       the decode node without its compute thread: taking a step's samples, planning the
               next step, packing and sending one message a step, blocks and leases
    gateway    the whole gateway process: receiving, detokenising, writing SSE, sockets
    both       what the system adds to a token that the model has made
    compute    the compute thread, for comparison: building the batch, the small model, sampling

What both processes take without any request is measured first and not counted (`idle` in the
JSON). A batch shares one message, so a token alone costs the most. ITL p50 is as the client
sees it, which runs on the same cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_front import write_model
from benchlib.cells import node_pids, resolve, run_streams, running, say
from benchlib.environment import environment
from benchlib.processes import CpuMeter
from benchlib.report import milliseconds, options_of, percentile, show_table, write_json

from pd.cluster import Cluster

GATEWAY = "ray::GatewayActor"
NODE, COMPUTE = "decode-0", "decode-0 compute"
STREAM_TOKENS = 500_000  # none ends while it is measured
PROMPT_TOKENS = 16


def idle_shares(cluster: Cluster, seconds: float) -> dict[str, float]:
    """CPU seconds a second that processes take for nothing."""
    meter = CpuMeter(os.getpid(), node_pids(cluster))
    meter.start()
    time.sleep(seconds)
    return {name: taken / seconds for name, taken in meter.stop().items()}


def measure(
    cluster: Cluster, streams: int, idle: dict[str, float], seconds: float
) -> dict[str, Any]:
    phase = run_streams(
        cluster, streams=streams, stream_prompt=PROMPT_TOKENS, stream_tokens=STREAM_TOKENS,
        staggered=False, idle_s=seconds, load_s=0.0,
    )["idle"]  # fmt: skip
    tokens = len(phase["gaps_s"])

    def us_per_token(name: str) -> float:
        taken_s = phase["cpu_s"].get(name, 0.0) - idle.get(name, 0.0) * phase["seconds"]
        return max(0.0, taken_s) / tokens * 1e6

    node, gateway = us_per_token(NODE), us_per_token(GATEWAY)
    return {
        "streams": streams,
        "tokens": tokens,
        "tokens_per_s": tokens / phase["seconds"],
        "itl_p50_s": percentile(phase["gaps_s"], 0.5),
        "node_us": node,
        "gateway_us": gateway,
        "both_us": node + gateway,
        "compute_us": us_per_token(COMPUTE),
        "cpu_s": phase["cpu_s"],
    }


def cells(row: dict[str, Any]) -> list[str]:
    figures = ("node_us", "gateway_us", "both_us", "compute_us")
    return [
        str(row["streams"]), *(f"{row[key]:.1f}" for key in figures),
        f"{row['tokens_per_s']:.0f}", milliseconds(row["itl_p50_s"], 2),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/token_path.json"))
    args = parser.parse_args()
    facts = environment()
    with tempfile.TemporaryDirectory() as directory:
        model = str(write_model(Path(directory)))
        config = resolve(
            model=model, load_format="dummy", prefill=1, decode=1, threads_per_node=1,
            max_num_seqs=max(args.streams), max_streams=2 * max(args.streams),
        )  # fmt: skip
        with running(config) as cluster:
            say("the cell without requests")
            idle = idle_shares(cluster, args.seconds / 2)
            rows = []
            for streams in args.streams:
                say(f"{streams} streams")
                rows.append(measure(cluster, streams, idle, args.seconds))
    headings = ["streams", "node us", "gateway us", "both us", "compute us", "tokens/s",
                "ITL p50 ms"]  # fmt: skip
    show_table("CPU time a token", headings, map(cells, rows))
    options = options_of(args)
    report = {"environment": facts, "options": options, "idle": idle, "results": rows}
    write_json(args.json, report)


if __name__ == "__main__":
    main()
