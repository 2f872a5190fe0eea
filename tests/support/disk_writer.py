"""Writes to a disk tier until it is killed: python -m disk_writer DIRECTORY LIFE

Says on its output "start SLOT BLOCK" before it asks for a write, and then "done SLOT BLOCK",
or "refused SLOT BLOCK" if the queue was full.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from disktools import Tier, key

from kvstore.layout import KVLayout

# Blocks of 1.5 MiB: long enough for a kill to come in the middle of one.
LARGE = KVLayout("float32", 48, 4, 64, 16, "large")
SLOTS = 24


def contents() -> list[memoryview]:
    """Block n is the (n % 7)th: the writer's time should go into writing."""
    return [memoryview(random.Random(i).randbytes(LARGE.block_bytes)) for i in range(7)]


def say(word: str, slot: int, number: int) -> None:
    os.write(1, f"{word} {slot} {number}\n".encode())


def main(directory: Path, life: int) -> None:
    choose = random.Random(life)
    number = life * 1_000_000
    numbers: dict[bytes, int] = {}
    blocks = contents()
    with Tier(directory, SLOTS, LARGE, threads=3, max_queued=8) as tier:
        while True:
            number += 1
            slot = choose.randrange(SLOTS)
            numbers[key(number)] = number
            say("start", slot, number)
            if not tier.disk.write(slot, key(number), blocks[number % len(blocks)]):
                say("refused", slot, number)
                tier.woken.wait()
                tier.woken.clear()
            for done in tier.disk.poll():
                say("done" if done.ok else "failed", done.slot, numbers.pop(done.key))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
