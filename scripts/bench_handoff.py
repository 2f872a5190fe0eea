#!/usr/bin/env python3
"""What it costs to hand a prompt's KV from the prefill node to the decode node.

    python scripts/bench_handoff.py [--lengths 512 2048] [--repeats 5]

Cells of one prefill and one decode node on two cores, a core each, by shared memory and by
ZeroMQ over TCP. Prompts of every length go through one at a time, never the same twice, so
nothing is cached. Medians of:

    TTFT       at the gateway, from a request's arrival to its first token
    MB         KV moved for the prompt
    early      share of these bytes that the decode node had, verified, when it heard that the
               prefill was over: they moved while later chunks of the prompt were computed.
               Blocks leave when their chunk is done, so the last chunk's never are early: with
               a prompt of n chunks it is at most (n - 1) / n
    transfer   time that the transport took for the prompt, from each push to the receiver's
               answer that it has verified the blocks, together; mostly beside the computation
    wait       how long the sequence waited for its last blocks when its first token was
               already with the client: what the hand-off adds to its second token

The second table is of the transports alone, from scripts/bench_transfer.py in the same run:
GB/s between two processes, and against a plain copy of the same memory and plain ZeroMQ. There
no core is computing; in a cell the transports' threads share their nodes' cores with the model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from bench_transfer import measure as measure_transports
from benchlib.arguments import at_least_one
from benchlib.cells import resolve, running, say, spec_of, use_cores
from benchlib.environment import environment
from benchlib.report import milliseconds, options_of, show_table, write_json

from pd.cluster import Cluster

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TRANSPORTS = ("shm", "zmq")
CHUNK, SMALL_CHUNK, SMALL_CHUNK_LENGTH = 512, 256, 2048
CORES = 2
KV_ITEM_BYTES = 4  # on a CPU the KV is float32
ARENA_PROMPTS = 1.2  # of the longest, that a node has KV memory for
COUNTERS_TIMEOUT_S = 10.0


class HandOffs:
    """Requests to a cell, and what its nodes have counted since the last one."""

    def __init__(self, cluster: Cluster, client: httpx.Client, seed: int) -> None:
        self._cluster = cluster
        self._client = client
        self._random = random.Random(seed)
        self._vocab_size = spec_of(cluster.config).vocab_size
        self._moved, self._transfer_s = self._counters()

    def one(self, length: int) -> dict[str, float]:
        """Hand over a prompt of `length` tokens; times in seconds."""
        prompt = [self._random.randrange(self._vocab_size) for _ in range(length)]
        body = {
            "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True,
            "include_pd_metrics": True,
        }  # fmt: skip
        response = self._client.post("/v1/completions", json=body)
        if response.status_code != 200:
            raise SystemExit(f"HTTP {response.status_code}: {response.text}")
        (seen,) = response.json()["pd"]["requests"]
        moved = seen["kv_moved_bytes"]
        return {
            "ttft_s": seen["ttft_s"],
            "moved_bytes": moved,
            "early": seen["kv_early_bytes"] / moved,
            "wait_s": seen["handoff_wait_s"],
            "transfer_s": self._transfer_since(moved),
        }

    def _transfer_since(self, moved: int) -> float:
        """How long moving these bytes took; the coordinator learns it a little later."""
        deadline = time.monotonic() + COUNTERS_TIMEOUT_S
        while True:
            total, seconds = self._counters()
            if total >= self._moved + moved:
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"the prefill node counted {total - self._moved} of {moved} bytes")
            time.sleep(0.02)
        taken, self._moved, self._transfer_s = seconds - self._transfer_s, total, seconds
        return taken

    def _counters(self) -> tuple[int, float]:
        (node,) = (n for n in self._cluster.status().nodes if n["role"] == "prefill")
        return int(node["transferred_bytes"]), float(node["transfer_s"])


def measure(
    transport: str, chunk: int, lengths: list[int], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    say(f"{transport}, chunk {chunk}")
    config = resolve(
        model=args.model, dtype=args.dtype, transports=(transport,), max_num_batched_tokens=chunk,
        prefill=1, decode=1, threads_per_node=1, pin_cpus=args.pin_cpus,
    )  # fmt: skip
    # So small that every page is soon in use: a new one costs more than what is copied into it.
    spec = spec_of(config)
    token_bytes = spec.num_layers * 2 * spec.kv_size * KV_ITEM_BYTES
    kv_gib = ARENA_PROMPTS * max(lengths) * token_bytes / 2**30
    config = replace(config, cache=replace(config.cache, kv_cache_gib=kv_gib))
    with running(config) as cluster, httpx.Client(base_url=cluster.url, timeout=None) as client:
        handoffs = HandOffs(cluster, client, seed=chunk)
        for _ in range(2):
            handoffs.one(max(lengths))
        for length in lengths:
            runs = [handoffs.one(length) for _ in range(args.repeats)]
            row = {key: median(run[key] for run in runs) for key in runs[0]}
            row |= {
                "transfer_of_ttft": row["transfer_s"] / row["ttft_s"],
                "wait_of_ttft": row["wait_s"] / row["ttft_s"],
                "gb_per_s": row["moved_bytes"] / row["transfer_s"] / 1e9,
            }
            say(
                f"  {length:5} tokens: {100 * row['early']:3.0f} % early, "
                f"transfer {100 * row['transfer_of_ttft']:.1f} % of TTFT {row['ttft_s']:.2f} s"
            )
            yield {"transport": transport, "chunk": chunk, "tokens": length, **row, "runs": runs}


def cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['transport']}, chunk {row['chunk']}", str(row["tokens"]), f"{row['ttft_s']:.3f}",
        f"{row['moved_bytes'] / 1e6:.1f}", f"{100 * row['early']:.0f} %",
        milliseconds(row["transfer_s"]), f"{100 * row['transfer_of_ttft']:.1f} %",
        f"{row['gb_per_s']:.2f}", milliseconds(row["wait_s"]), f"{100 * row['wait_of_ttft']:.1f} %",
    ]  # fmt: skip


def transport_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["what"], str(row["blocks"]), milliseconds(row["median_s"], 2),
        f"{row['gb_per_s']:.2f}", f"{row['vs_copy']:.2f}", f"{row['vs_zmq']:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="N")
    parser.add_argument("--repeats", type=at_least_one, default=5, help="prompts of each length")
    parser.add_argument("--blocks", type=int, default=128, help="blocks of the second table")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the second table")
    parser.add_argument(
        "--pin-cpus", action=argparse.BooleanOptionalAction, default=True,
        help="cores of its own for each node, as the option of that name gives",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path("benchmarks/handoff.json"))
    args = parser.parse_args()

    use_cores(CORES)
    facts = environment()
    say("the transports alone")
    transports = measure_transports(TRANSPORTS, args.blocks, args.rounds)
    rows: list[dict[str, Any]] = []
    for transport in TRANSPORTS:
        rows += measure(transport, CHUNK, args.lengths, args)
        # How much can be early depends on the size of the chunks.
        if SMALL_CHUNK_LENGTH in args.lengths:
            rows += measure(transport, SMALL_CHUNK, [SMALL_CHUNK_LENGTH], args)
    headings = ["", "tokens", "TTFT s", "MB", "early", "transfer ms", "of TTFT", "GB/s", "wait ms",
                "of TTFT"]  # fmt: skip
    title = f"Hand-off from prefill to decode node, medians of {args.repeats}"
    show_table(title, headings, map(cells, rows))
    show_table(
        f"The transports alone, {args.blocks} blocks and one (SmolLM2-135M, 737,280 bytes each)",
        ["", "blocks", "median ms", "GB/s", "of a copy", "of raw ZeroMQ"],
        map(transport_cells, sorted(transports, key=lambda row: -row["blocks"])),
    )
    options = options_of(args)
    report = {
        "environment": facts, "options": options, "handoffs": rows, "transports": transports,
    }  # fmt: skip
    write_json(args.json, report)


if __name__ == "__main__":
    main()
