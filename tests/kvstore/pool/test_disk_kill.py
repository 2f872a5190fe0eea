"""kill -9 of a process that writes to its disk tier: what it reported as written is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disk_writer import LARGE, SLOTS, contents
from disktools import Tier, key


def run_and_kill(directory: Path, life: int, num_lines: int) -> list[tuple[str, int, int]]:
    """What a writer said until it was killed, after about `num_lines`."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-m", "disk_writer", str(directory), str(life)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
    ) as child:  # fmt: skip
        assert child.stdout
        try:
            lines = [child.stdout.readline() for _ in range(num_lines)]
            assert child.poll() is None, "the writer ended by itself"
        finally:
            os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    return [(word, int(slot), int(number)) for word, slot, number in map(str.split, lines)]


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer(tmp_path: Path, seed: int) -> None:
    # Twice: the second writer begins with what the first one left.
    said = [
        line
        for life in (2 * seed, 2 * seed + 1)
        for line in run_and_kill(tmp_path, life, 150 + 37 * life)
    ]
    reported: dict[int, int] = {}  # slot -> the block last reported to be in it
    unheard: dict[int, set[int]] = {}  # slot -> later writes to it, of which nothing was heard
    for word, slot, number in said:
        if word == "start":
            unheard.setdefault(slot, set()).add(number)
        elif word == "refused":
            unheard[slot].remove(number)
        else:
            assert word == "done"
            reported[slot] = number
            unheard[slot] = {later for later in unheard[slot] if later > number}
    assert len(reported) > 5

    known = {key(number): number for _, _, number in said}
    blocks = contents()
    with Tier(tmp_path, SLOTS, LARGE) as tier:
        held = {slot: known[name] for slot, name in tier.found}
        for slot, number in reported.items():
            if slot in held:
                assert held[slot] == number or held[slot] in unheard[slot]
            else:
                assert unheard[slot], f"slot {slot}: block {number} was reported, and is lost"
        for slot, number in held.items():
            out = bytearray(LARGE.block_bytes)
            assert tier.disk.read(slot, key(number), memoryview(out))
            (done,) = tier.wait(1)
            assert done.ok, "a block that is found after kill -9 is whole"
            assert out == blocks[number % len(blocks)]
