#!/usr/bin/env python3
"""What the coordinator's prefix index costs: memory, updates, lookups, and holders that leave.

    python scripts/bench_directory.py [--blocks 10000000] [--holders 1000] [--json FILE]

Every holder reports its blocks in messages of 8,192 keys, as holders do, until the index knows
`--blocks` different ones: in chains of 256, a prompt each, with one chain in eight also in a
second holder and one in sixty-four on the disk only. Then, at full size:

    update      a holder removes blocks and stores as many new ones, by the key
    lookup      prompts of 256 blocks that exist whole, half, or not at all, in random order
    drop        a holder leaves: the call itself, and then the sweep that gives its memory back

Bytes per block are the growth of the process's resident set from the empty index to the full
one, over the number of blocks; keys are made from seeds, and nothing else is kept meanwhile.
Times are processor time of one thread, medians over batches: other load on the machine makes them
longer only by what it does to caches and memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchlib.environment import environment
from benchlib.report import percentile, show_table, write_json

from kvstore.blocklog import MAX_KEYS
from kvstore.directory import PrefixDirectory
from pd.messages import BlockEvents
from pd.types import Tier

CHAIN = 256
SECOND_HOLDER_EVERY = 8
DISK_EVERY = 64


def chain_keys(seed: int) -> bytes:
    """The keys of one prompt's blocks, 8 bytes each."""
    return random.Random(seed).randbytes(8 * CHAIN)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Load:
    """Who has which chains: chain c at holder c mod n, one in eight also at the next."""

    def __init__(self, num_blocks: int, num_holders: int) -> None:
        self.directory = PrefixDirectory()
        self.num_chains = max(num_holders, num_blocks // CHAIN)
        self.names = [f"node-{number}" for number in range(num_holders)]
        self.next_seq = dict.fromkeys(self.names, 1)

    def chains_of(self, holder: int) -> Iterator[int]:
        step = len(self.names)
        yield from range(holder, self.num_chains, step)
        before = (holder - 1) % step
        yield from range(before, self.num_chains, step * SECOND_HOLDER_EVERY)

    def tell(self, holder: int, tier: Tier, stored: bytes, removed: bytes = b"") -> None:
        name = self.names[holder]
        message = BlockEvents(self.next_seq[name], False, tier, stored, removed)
        self.next_seq[name] += 1
        if not self.directory.apply(name, message):
            raise RuntimeError(f"the index saw a gap in the messages of {name}")

    def join(self, holder: int) -> None:
        self.directory.join(self.names[holder])
        self.next_seq[self.names[holder]] = 1
        memory, disk = [], []
        for chain in self.chains_of(holder):
            (memory if chain % DISK_EVERY else disk).append(chain)
        per_message = MAX_KEYS // CHAIN
        for tier, chains in (("node", memory), ("disk", disk)):
            for start in range(0, len(chains), per_message):
                keys = b"".join(map(chain_keys, chains[start : start + per_message]))
                self.tell(holder, tier, keys)  # type: ignore[arg-type]


def seconds(action: Callable[..., Any], *args: Any) -> float:
    start = time.thread_time()
    action(*args)
    return time.thread_time() - start


def measure_updates(load: Load, rounds: int) -> dict[str, Any]:
    """One message of a holder removes 16 chains and stores 16 new ones; then the way back."""
    rng = random.Random(1)
    remove_s, store_s = [], []
    for _ in range(rounds):
        holder = rng.randrange(len(load.names))
        chains = list(range(holder, load.num_chains, len(load.names)))
        chosen = [chain for chain in rng.sample(chains, min(16, len(chains))) if chain % DISK_EVERY]
        keys = b"".join(map(chain_keys, chosen))
        new = rng.randbytes(len(keys))
        count = len(keys) // 8 or 1
        remove_s.append(seconds(load.tell, holder, "node", b"", keys) / count)
        store_s.append(seconds(load.tell, holder, "node", new) / count)
        load.tell(holder, "node", keys, new)
    return {
        "keys_per_message": 16 * CHAIN,
        "messages": rounds,
        "remove_us_per_key": statistics.median(remove_s) * 1e6,
        "store_us_per_key": statistics.median(store_s) * 1e6,
    }


def measure_lookups(load: Load, rounds: int) -> dict[str, Any]:
    rng = random.Random(2)
    result: dict[str, Any] = {}
    for kind, share in (("whole", 1.0), ("half", 0.5), ("none", 0.0)):
        took, lengths = [], []
        known = round(CHAIN * share)
        for _ in range(rounds):
            prompt = array("Q", chain_keys(rng.randrange(load.num_chains)))[:known]
            prompt.frombytes(rng.randbytes(8 * (CHAIN - known)))
            keys = list(prompt)
            start = time.thread_time()
            coverage = load.directory.lookup(keys)
            took.append(time.thread_time() - start)
            lengths.append(max((each.blocks for each in coverage.leading.values()), default=0))
        if set(lengths) != {known}:
            raise RuntimeError(f"prompts of which {known} blocks are known gave {set(lengths)}")
        result[kind] = {
            "known_blocks": known,
            "p50_us": percentile(took, 0.5) * 1e6,
            "p99_us": percentile(took, 0.99) * 1e6,
        }
    return result


def measure_drop(load: Load, step: int) -> dict[str, Any]:
    """One holder leaves for good and its memory is swept, `step` blocks at a time."""
    directory = load.directory
    before, lost = len(directory), directory.num_blocks(load.names[0])
    drop_s = seconds(directory.drop, load.names[0])
    steps, looked = [], 0
    while True:
        start = time.thread_time()
        count = directory.sweep(step)
        steps.append(time.thread_time() - start)
        looked += count
        if count < step:
            break
    load.join(0)
    if len(directory) != before:
        raise RuntimeError(
            f"{before} blocks before a holder left and came back, {len(directory)} after"
        )
    return {
        "blocks_of_the_holder": lost,
        "drop_us": drop_s * 1e6,
        "sweep_step_blocks": step,
        "sweep_step_ms_p50": percentile(steps, 0.5) * 1e3,
        "sweep_step_ms_max": max(steps) * 1e3,
        "sweep_total_s": sum(steps),
        "sweep_ns_per_block_looked_at": sum(steps) / looked * 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--holders", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000, help="lookups of each kind")
    parser.add_argument("--sweep-step", type=int, default=10_000, metavar="BLOCKS")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/directory.json"))
    args = parser.parse_args()

    load = Load(args.blocks, args.holders)
    gc.collect()
    empty = resident_bytes()
    build_s = seconds(lambda: [load.join(holder) for holder in range(args.holders)])
    gc.collect()
    num_blocks = len(load.directory)
    grown = resident_bytes() - empty
    entries = sum(map(load.directory.num_blocks, load.names))
    print(f"{num_blocks:,} blocks, {entries:,} places, {args.holders:,} holders: ", end="")
    print(
        f"{grown / 2**20:,.0f} MiB, {grown / num_blocks:.1f} bytes a block; {build_s:.0f} s",
        flush=True,
    )

    updates = measure_updates(load, max(1, args.rounds // 10))
    lookups = measure_lookups(load, args.rounds)
    drop = measure_drop(load, args.sweep_step)
    rows = [
        ["memory, bytes a block", f"{grown / num_blocks:.1f}"],
        ["store, us a key", f"{updates['store_us_per_key']:.2f}"],
        ["remove, us a key", f"{updates['remove_us_per_key']:.2f}"],
        *(
            [f"lookup of {CHAIN} blocks, {kind} known: us p50 / p99",
             f"{each['p50_us']:.1f} / {each['p99_us']:.1f}"]
            for kind, each in lookups.items()
        ),
        ["drop of a holder, us", f"{drop['drop_us']:.1f}"],
        [f"sweep of {args.sweep_step:,} blocks, ms p50 / max",
         f"{drop['sweep_step_ms_p50']:.2f} / {drop['sweep_step_ms_max']:.2f}"],
        ["sweep of everything, s", f"{drop['sweep_total_s']:.2f}"],
    ]  # fmt: skip
    show_table("Prefix index", ["", "measured"], rows)
    write_json(
        args.json,
        {
            "environment": environment(),
            "blocks": num_blocks,
            "places": entries,
            "holders": args.holders,
            "resident_mib": grown / 2**20,
            "bytes_per_block": grown / num_blocks,
            "build_s": build_s,
            "update": updates,
            "lookup": lookups,
            "drop": drop,
        },
    )


if __name__ == "__main__":
    main()
