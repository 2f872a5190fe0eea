#!/usr/bin/env python3
"""Prefix hits on real traces: eviction policies against the optimum, and one pool against many.

    python scripts/bench_cache_replay.py [--traces DIR] [--quick] [--json FILE] [--svg FILE]

Replays the prompts of Mooncake's traces in order through the classes that pool nodes and the
coordinator run: `Tiers` with its eviction policy and block log, and `PrefixDirectory`, which is
asked what is there and fed with the log's messages. Of each prompt the leading blocks that are
there are hits; then all its blocks are there. A block behind a hole is no hit. The hit rate is
hits by all blocks of all prompts, a last partial block included, as in the traces' own figures.
A prompt's blocks count as used last block first; the JSON also has the figures for when what is
there is fetched before the rest is stored (`fetch_first`), so that the rest counts as fresher.

1. Capacity from 1 % of a trace's unique blocks to all of them, one cache: each policy, and
   Belady's optimum, which knows the future. With room for everything every policy must reach the
   trace's ceiling: blocks that occurred before.
2. Eight nodes with a cache each, against one pool of the same total capacity that all of them
   share; both evict by the default policy. Requests go to nodes in turn (round-robin), or to
   the one with the fewest tokens left to compute (least loaded: a node computes what it misses,
   at a speed by which all nodes would be busy for 70 % of the trace if nothing were cached).

Traces: kvcache-ai/Mooncake, FAST25-release/traces. Nothing is timed, so load does not matter.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

from benchlib.belady import ceiling, optimum
from benchlib.environment import ROOT, environment
from benchlib.report import show_table, write_json
from benchlib.traces import DEFAULT_DIR, Trace, load_trace

from kvstore.blocklog import BlockLog
from kvstore.directory import PrefixDirectory
from kvstore.eviction import DEFAULT_EVICTION
from kvstore.pool.tiers import Tiers
from pd.report.chart import Line, Panel, write_chart
from pd.workload.mooncake import BLOCK_TOKENS

TRACES = ("conversation", "synthetic")
CEILINGS = {"conversation": 36.6, "synthetic": 64.0}  # percent, as published with the traces
SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
QUICK_SHARES = (0.02, 0.1, 0.5, 1.0)
POLICIES = (DEFAULT_EVICTION, "s3fifo", "lru")
OPTIMUM = "optimum"

NODES = 8
POOL_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
NODE_TOKENS = 3_000_000  # of a node's cache, in Mooncake's own comparison
BUSY = 0.7

Key = tuple[bytes, int]  # a block's key, and what the directory knows it by


def keys_of(trace: Trace) -> list[list[Key]]:
    known: dict[int, Key] = {}
    for prompt in trace.prompts:
        for block in prompt:
            if block not in known:
                key = sha256(block.to_bytes(8, "little")).digest()
                known[block] = (key, int.from_bytes(key[:8], "little"))
    return [[known[block] for block in prompt] for prompt in trace.prompts]


class Cache:
    """A holder of `capacity` blocks in memory, and its entry in a directory."""

    def __init__(
        self,
        capacity: int,
        eviction: str,
        directory: PrefixDirectory,
        name: str = "pool",
        *,
        fetch_first: bool = False,
    ) -> None:
        self.name = name
        self._fetch_first = fetch_first
        self._log = BlockLog()
        self._directory = directory
        self._tiers = Tiers(
            capacity, 0, self._log, Counter(), eviction=eviction, max_writes=0, max_reads=0
        )
        directory.join(name)

    def serve(self, prompt: Sequence[Key]) -> int:
        """Hits of this prompt, whose blocks are all there afterwards, as far as there is room."""
        tiers = self._tiers
        found = self._directory.lookup([short for _, short in prompt]).leading.get(self.name)
        hits = found.blocks if found else 0
        keys = [key for key, _ in prompt]
        if any(key not in tiers for key in keys[:hits]):
            raise RuntimeError("the directory has blocks that the cache has not")
        missing = [key for key in keys if key not in tiers]
        present = [key for key in keys if key in tiers]
        for key in present:
            tiers.pin(key)
        pages = dict(zip(missing, iter(tiers.take_page, None)))
        if self._fetch_first:
            tiers.touch(present)
        for key, page in pages.items():
            tiers.store(key, page)
        tiers.settle(list(pages))
        if not self._fetch_first:
            tiers.touch(present)
        tiers.unpin(present)
        while self._log:
            for events in self._log.drain():
                if not self._directory.apply(self.name, events):
                    raise RuntimeError("the directory saw a gap")
        return hits


def one_cache(
    prompts: list[list[Key]], capacity: int, eviction: str, *, fetch_first: bool = False
) -> int:
    cache = Cache(capacity, eviction, PrefixDirectory(), fetch_first=fetch_first)
    return sum(map(cache.serve, prompts))


def policies_by_capacity(trace: Trace, shares: Sequence[float]) -> dict[str, Any]:
    """Hit rates in percent, in order of `shares`."""
    prompts, total, unique = keys_of(trace), trace.num_blocks, trace.num_unique
    capacities = [max(1, round(share * unique)) for share in shares]
    top = ceiling(trace.prompts)
    rates: dict[str, list[float]] = {}
    for name in (OPTIMUM, *POLICIES):
        hits = []
        for capacity in capacities:
            if name == OPTIMUM:
                hits.append(optimum(trace.prompts, capacity))
            else:
                hits.append(one_cache(prompts, capacity, name))
        if hits[-1] != top:
            raise RuntimeError(f"{name} with room for everything: {hits[-1]} hits, not {top}")
        rates[name] = [100 * count / total for count in hits]
        print(f"  {trace.name}: {name}", flush=True)
    fetch_first = [
        100 * one_cache(prompts, capacity, DEFAULT_EVICTION, fetch_first=True) / total
        for capacity in capacities
    ]
    return {
        "prompts": len(prompts),
        "blocks": total,
        "unique_blocks": unique,
        "longest_prompt": max(map(len, prompts)),
        "ceiling_percent": 100 * top / total,
        "shares": list(shares),
        "capacities": capacities,
        "hit_percent": rates,
        "hit_percent_fetch_first": {DEFAULT_EVICTION: fetch_first},
    }


def routed(trace: Trace, routing: str) -> Callable[[int, int], int]:
    """Node of each prompt, by (its number, tokens that the one before missed)."""
    if routing == "round-robin":
        turns = cycle(range(NODES))
        return lambda number, missed: next(turns)
    span = trace.times_s[-1] - trace.times_s[0]
    speed = trace.num_blocks / (BUSY * NODES * span)  # blocks a second and node
    backlog = [0.0] * NODES
    last = [0, trace.times_s[0]]

    def least_loaded(number: int, missed: int) -> int:
        backlog[int(last[0])] += missed
        now = trace.times_s[number]
        for node in range(NODES):
            backlog[node] = max(0.0, backlog[node] - speed * (now - last[1]))
        last[:] = backlog.index(min(backlog)), now
        return int(last[0])

    return least_loaded


def nodes_against_pool(trace: Trace, shares: Sequence[float]) -> list[dict[str, Any]]:
    prompts, total, unique = keys_of(trace), trace.num_blocks, trace.num_unique
    capacities = {round(share * unique): f"{share:.0%} of unique" for share in shares}
    capacities[NODES * NODE_TOKENS // BLOCK_TOKENS] = "3 M tokens a node"
    rows = []
    for capacity, label in sorted(capacities.items()):
        row: dict[str, Any] = {"capacity": label, "blocks": capacity}
        row["pool"] = 100 * one_cache(prompts, capacity, DEFAULT_EVICTION) / total
        for routing in ("round-robin", "least loaded"):
            directory = PrefixDirectory()
            nodes = [
                Cache(capacity // NODES, DEFAULT_EVICTION, directory, f"node-{number}")
                for number in range(NODES)
            ]
            choose = routed(trace, routing)
            hits = missed = 0
            for number, prompt in enumerate(prompts):
                got = nodes[choose(number, missed)].serve(prompt)
                hits += got
                missed = len(prompt) - got
            row[routing] = 100 * hits / total
            row[f"pool by {routing}"] = row["pool"] / row[routing]
        rows.append(row)
    print(f"  {trace.name}: {NODES} nodes and a pool", flush=True)
    return rows


def draw(path: Path, results: dict[str, Any]) -> None:
    looks = {
        OPTIMUM: ("Belady's optimum", "#94a3b8", "6 4"),
        DEFAULT_EVICTION: (f"{DEFAULT_EVICTION} (default)", "#c2410c", ""),
        "s3fifo": ("S3-FIFO", "#15803d", ""),
        "lru": ("LRU", "#1d4ed8", ""),
    }
    panels = []
    for name, result in results.items():
        percents = [100 * share for share in result["shares"]]
        lines = [
            Line(label, list(zip(percents, result["hit_percent"][policy])), colour, dash)
            for policy, (label, colour, dash) in reversed(looks.items())
        ]
        top = result["ceiling_percent"]
        lines.append(
            Line("ceiling", [(percents[0], top), (100, top)], "#94a3b8", "1 3", dots=False)
        )
        ticks = [(value, f"{value:g}") for value in (1, 2, 5, 10, 20, 50, 100)]
        panels.append(
            Panel(
                f"{name}: {result['prompts']:,} prompts, {result['unique_blocks']:,} unique blocks",
                "capacity, % of the unique blocks",
                "hit rate, % of all blocks",
                ticks,
                lines,
            )
        )
    write_chart(path, "Prefix hits by capacity, Mooncake traces", panels)
    print(f"drawn in {path}", flush=True)


def show(name: str, result: dict[str, Any]) -> None:
    rates = result["hit_percent"]
    show_table(
        f"{name}: hit rate in % of blocks; ceiling {result['ceiling_percent']:.2f} %",
        ["capacity, % of unique", *(f"{100 * share:g}" for share in result["shares"])],
        [[policy, *(f"{rate:.2f}" for rate in row)] for policy, row in rates.items()],
    )
    worst = min(a - b for a, b in zip(rates[DEFAULT_EVICTION], rates["lru"]))
    gap = {
        policy: sum(best - rate for best, rate in zip(rates[OPTIMUM], row)) / len(row)
        for policy, row in rates.items()
        if policy != OPTIMUM
    }
    result["default_minus_lru_at_worst"] = worst
    result["mean_points_below_optimum"] = gap
    print(f"{DEFAULT_EVICTION} against LRU at worst: {worst:+.3f} points; below the optimum on")
    print("average: " + ", ".join(f"{policy} {points:.2f}" for policy, points in gap.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="four capacities instead of twelve")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/cache_replay.json"))
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "cache_replay.svg")
    args = parser.parse_args()
    try:
        traces = [load_trace(args.traces, name) for name in TRACES]
    except FileNotFoundError as error:
        sys.exit(str(error))

    results, pools = {}, {}
    for trace in traces:
        shares = QUICK_SHARES if args.quick else SHARES
        result = results[trace.name] = policies_by_capacity(trace, shares)
        if round(result["ceiling_percent"], 1) != CEILINGS[trace.name]:
            sys.exit(
                f"the {trace.name} trace has a ceiling of {result['ceiling_percent']:.2f} % of its "
                f"blocks, not {CEILINGS[trace.name]} %: it is another trace"
            )
        show(trace.name, result)
        rows = pools[trace.name] = nodes_against_pool(
            trace, QUICK_SHARES[1:] if args.quick else POOL_SHARES
        )
        headings = [heading for heading in rows[0] if heading != "blocks"]
        show_table(
            f"{trace.name}: hit rate in % of {NODES} node caches, and of a pool of the same size",
            headings,
            [
                [row["capacity"], *(f"{row[heading]:.2f}" for heading in headings[1:])]
                for row in rows
            ],
        )
    write_json(
        args.json,
        {
            "environment": environment(),
            "traces": "kvcache-ai/Mooncake FAST25-release/traces",
            "default_policy": DEFAULT_EVICTION,
            "policies": results,
            "nodes": NODES,
            "nodes_against_pool": pools,
        },
    )
    draw(args.svg, results)


if __name__ == "__main__":
    main()
