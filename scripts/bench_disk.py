"""How fast the disk tier moves KV blocks, against plain file reads and writes of the same bytes.

    python scripts/bench_disk.py [--blocks 128] [--rounds 9] [--threads 1 2 4]
                                 [--directory build] [--json benchmarks/disk.json]

The plain candidate is what a program without headers, checksums or a queue would do: as many
threads, one pwrite or preadv a block, into preallocated files that lie as the tier's do. All
candidates take turns in every round, in an order that moves on, so that whatever else the
machine does hits each of them alike. Reported are medians; "of plain" is the median of the
rounds' ratios, and beside it the ratio of the best rounds, which a busy machine disturbs least.
What is timed:

    write, page cache          until the kernel has the blocks; the device gets them later
    write, synced              the same, and fdatasync of every file
    read, page cache           the kernel has the blocks: a copy in memory
    read, page cache dropped   synced and dropped from this host's page cache before. A
                               virtual disk's host may still have them in its own
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from benchlib.environment import environment
from benchlib.report import write_json
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from kvstore.layout import KVLayout
from kvstore.pool.disk import DiskTier
from kvstore.pool.disk_files import Geometry

PLAIN = "plain files"
LAYOUTS = {
    "SmolLM2-135M, fp32": KVLayout("float32", 30, 3, 64, 16, "smollm2-135m"),  # 720 KiB
    "8B with GQA, bf16": KVLayout("bfloat16", 32, 8, 128, 16, "8b"),  # 2 MiB
}
SMALL = KVLayout("float16", 2, 2, 64, 16, "small")  # 16 KiB
ACTIONS = ("write, page cache", "write, synced", "read, page cache", "read, page cache dropped")
Blocks = NDArray[np.uint8]


class PlainFiles:
    """Blocks in files, moved by threads that do nothing else."""

    def __init__(self, directory: Path, layout: KVLayout, num_slots: int, threads: int) -> None:
        self.name = PLAIN
        self.geometry = Geometry(layout.block_bytes, num_slots)
        directory.mkdir()
        self.files = []
        for i in range(self.geometry.num_segments):
            descriptor = os.open(directory / str(i), os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(descriptor, 0, self.geometry.segment_bytes(i))
            self.files.append(descriptor)
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)

    def write(self, source: Blocks) -> None:
        def one(descriptor: int, offset: int, slot: int) -> int:
            return os.pwrite(descriptor, source[slot].data, offset)

        self._all(one, source)

    def read(self, out: Blocks) -> None:
        def one(descriptor: int, offset: int, slot: int) -> int:
            return os.preadv(descriptor, [out[slot].data], offset)

        self._all(one, out)

    def _all(self, one: Callable[[int, int, int], int], blocks: Blocks) -> None:
        def share(first: int) -> None:
            for slot in range(first, len(blocks), self.threads):
                segment, offset = self.geometry.place(slot)
                assert one(self.files[segment], offset, slot) == self.geometry.payload_bytes

        if len(blocks) == 1:
            share(0)  # in the caller's own thread: nothing is quicker
        else:
            list(self.pool.map(share, range(self.threads)))

    def close(self) -> None:
        self.pool.shutdown()
        for descriptor in self.files:
            os.close(descriptor)


class Tier:
    """The same through a disk tier."""

    def __init__(
        self, directory: Path, layout: KVLayout, num_slots: int, threads: int, verify: bool
    ) -> None:
        self.name = "disk tier" if verify else "disk tier, no checksums"
        self.woken = threading.Event()
        capacity = (num_slots + 1) * (layout.block_bytes + 8192)
        self.disk = DiskTier(
            directory, layout, capacity, wake=self.woken.set, verify=verify, threads=threads,
            max_queued=num_slots,
        )  # fmt: skip
        self.keys = [i.to_bytes(32, "little") for i in range(num_slots)]
        self.files = [os.open(path, os.O_RDWR) for path in directory.iterdir()]

    def write(self, source: Blocks) -> None:
        for slot, block in enumerate(source):
            assert self.disk.write(slot, self.keys[slot], block)
        self._wait(len(source))

    def read(self, out: Blocks) -> None:
        for slot, block in enumerate(out):
            assert self.disk.read(slot, self.keys[slot], block)
        self._wait(len(out))

    def _wait(self, count: int) -> None:
        while count:
            self.woken.wait()
            self.woken.clear()
            done = self.disk.poll()
            assert all(d.ok for d in done), done
            count -= len(done)

    def close(self) -> None:
        self.disk.close()
        for descriptor in self.files:
            os.close(descriptor)


def sync(candidate: PlainFiles | Tier) -> None:
    for descriptor in candidate.files:
        os.fdatasync(descriptor)


def drop(candidate: PlainFiles | Tier) -> None:
    sync(candidate)
    for descriptor in candidate.files:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def act(action: str, candidate: PlainFiles | Tier, source: Blocks, out: Blocks) -> float:
    """Seconds that an action takes."""
    if action == "read, page cache dropped":
        drop(candidate)
    elif action.startswith("write"):
        drop(candidate)  # as for slots last used long ago; and nothing is left to be synced
    else:
        candidate.read(out)  # so that the page cache has it
    if action.startswith("read"):
        out[:, ::4096] = 0
    begun = time.perf_counter()
    if action.startswith("write"):
        candidate.write(source)
        if action == "write, synced":
            sync(candidate)
    else:
        candidate.read(out)
    seconds = time.perf_counter() - begun
    if action.startswith("read"):
        assert np.array_equal(out[-1], source[-1])
    return seconds


def measure(
    directory: Path, name: str, layout: KVLayout, count: int, threads: int, rounds: int
) -> list[dict[str, Any]]:
    source = np.random.default_rng(0).integers(0, 256, (count, layout.block_bytes), np.uint8)
    out = np.ones_like(source)
    times: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        candidates: list[PlainFiles | Tier] = [
            PlainFiles(folder / "plain", layout, count, threads),
            Tier(folder / "tier", layout, count, threads, verify=True),
            Tier(folder / "unverified", layout, count, threads, verify=False),
        ]
        for candidate in candidates:
            stack.callback(candidate.close)
            candidate.write(source)
        for turn in range(rounds):
            for action in ACTIONS:
                for size in sorted({1, count}):
                    for i in range(len(candidates)):
                        candidate = candidates[(i + turn) % len(candidates)]
                        seconds = act(action, candidate, source[:size], out[:size])
                        times.setdefault((action, candidate.name, size), []).append(seconds)
    rows = []
    for (action, what, size), taken in times.items():
        plain = times[action, PLAIN, size]
        rows.append({
            "layout": name, "block_bytes": layout.block_bytes, "threads": threads,
            "action": action, "what": what, "blocks": size, "median_s": statistics.median(taken),
            "best_s": min(taken),
            "gb_per_s": size * layout.block_bytes / statistics.median(taken) / 1e9,
            "of_plain": statistics.median(p / s for p, s in zip(plain, taken)),
            "best_of_plain": min(plain) / min(taken),
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Disk tier")
    for heading in ("blocks", "bytes a block", "threads", "", "", "ms", "GB/s", "of plain", "best"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        table.add_row(
            str(row["blocks"]), f"{row['block_bytes']:,}", str(row["threads"]), row["action"],
            row["what"], f"{row['median_s'] * 1e3:.2f}", f"{row['gb_per_s']:.2f}",
            f"{row['of_plain']:.2f}", f"{row['best_of_plain']:.2f}",
        )  # fmt: skip
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=128, help="blocks of a large batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--directory", type=Path, default=Path("build"), help="on which disk")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/disk.json"))
    arguments = parser.parse_args()
    if min(arguments.blocks, arguments.rounds, *arguments.threads) < 1:
        parser.error("blocks, rounds and threads start at 1")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    facts, rows = environment(), []
    for threads in arguments.threads:
        for name, layout in LAYOUTS.items():
            count = max(2, arguments.blocks * LAYOUTS["SmolLM2-135M, fp32"].block_bytes
                        // layout.block_bytes)  # fmt: skip
            rows += measure(arguments.directory, name, layout, count, threads, arguments.rounds)
        rows += measure(arguments.directory, "small", SMALL, 1, threads, arguments.rounds)
    rows.sort(key=lambda row: row["blocks"] == 1)
    show(rows)
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", arguments.directory], capture_output=True, text=True
    ).stdout.strip()
    record = {
        "environment": facts,
        "file_system": kind,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    write_json(arguments.json, record)


if __name__ == "__main__":
    main()
