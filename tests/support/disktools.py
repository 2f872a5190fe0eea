"""A disk tier as tests use it: blocks made from a number, and operations that are waited for."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.layout import KVLayout
from kvstore.pool.disk import DiskDone, DiskTier

LAYOUT = KVLayout("float32", 2, 2, 16, 16, "tiny")  # blocks of 8 KiB
ODD = KVLayout("float16", 1, 1, 3, 5, "odd")  # blocks of 60 bytes
WAIT_S = 60.0


def key(number: int) -> bytes:
    return hashlib.sha256(f"block {number}".encode()).digest()


def payload(number: int, layout: KVLayout = LAYOUT) -> NDArray[np.uint8]:
    """The one content that block `number` can have."""
    return np.random.default_rng(number).integers(0, 256, layout.block_bytes, np.uint8)


def capacity(num_slots: int, layout: KVLayout = LAYOUT) -> int:
    """Bytes that are enough for exactly `num_slots` slots."""
    pages = -(-layout.block_bytes // 4096)
    return 4096 + num_slots * (pages * 4096 + 128)


class Tier:
    """A disk tier whose operations can be waited for."""

    def __init__(
        self, directory: Path, num_slots: int = 12, layout: KVLayout = LAYOUT, **options: Any
    ) -> None:
        self.layout = layout
        self.woken = threading.Event()
        self.disk = DiskTier(
            directory, layout, capacity(num_slots, layout), wake=self.woken.set, **options
        )
        self.found = self.disk.recover()

    def __enter__(self) -> Tier:
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.close()

    def wait(self, count: int) -> list[DiskDone]:
        """The next `count` operations to come back."""
        done: list[DiskDone] = []
        while len(done) < count:
            assert self.woken.wait(WAIT_S), f"{count - len(done)} operations never came back"
            self.woken.clear()
            done += self.disk.poll()
        assert len(done) == count
        return done

    def write(self, slot: int, number: int) -> DiskDone:
        assert self.disk.write(slot, key(number), payload(number, self.layout))
        (done,) = self.wait(1)
        assert (done.kind, done.slot, done.key) == ("write", slot, key(number))
        return done

    def read(self, slot: int, number: int) -> DiskDone:
        """A read that is ok must have brought the right bytes."""
        out = np.full(self.layout.block_bytes, 0xA5, np.uint8)
        assert self.disk.read(slot, key(number), out)
        (done,) = self.wait(1)
        assert (done.kind, done.slot, done.key) == ("read", slot, key(number))
        if done.ok:
            np.testing.assert_array_equal(out, payload(number, self.layout))
        return done

    def erase(self, slot: int) -> DiskDone:
        assert self.disk.erase(slot)
        (done,) = self.wait(1)
        assert (done.kind, done.slot, done.key) == ("erase", slot, b"")
        return done


def filled(directory: Path, count: int, num_slots: int = 12, **options: Any) -> None:
    """Leave a directory in which slot i holds block i, for i < count, written in that order."""
    with Tier(directory, num_slots, **options) as tier:
        for i in range(count):
            assert tier.write(i, i).ok
