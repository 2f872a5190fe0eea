"""The disk tier at work: order, limits, and disks that refuse."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disktools import LAYOUT, ODD, Tier, capacity, key, payload

from kvstore.pool import disk_files
from kvstore.pool.disk import DiskTier
from kvstore.pool.disk_files import Geometry

Patch = pytest.MonkeyPatch


@pytest.fixture
def gate(monkeypatch: Patch) -> Iterator[threading.Event]:
    """Payload writes wait until it is set."""
    gate = threading.Event()

    def patient(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) == LAYOUT.block_bytes:
            assert gate.wait(60)
        return os.pwrite(descriptor, data, offset)

    _patch(monkeypatch, "pwrite", patient)
    yield gate
    gate.set()


class _Os:
    """The os module with one function replaced, for the one module that sees it."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _patch(monkeypatch: Patch, name: str, function: Callable[..., Any]) -> None:
    monkeypatch.setattr(disk_files, "os", _Os(name, function))


@pytest.mark.parametrize("layout", [LAYOUT, ODD], ids=["pages", "odd"])
@pytest.mark.parametrize("verify", [True, False])
def test_what_was_written_is_read(tmp_path: Path, layout: Any, verify: bool) -> None:
    with Tier(tmp_path, 5, layout, verify=verify) as tier:
        assert tier.disk.num_slots == 5 and tier.found == []
        for slot in range(5):
            done = tier.write(slot, slot + 10)
            assert done.ok and done.num_bytes == layout.block_bytes and done.seconds > 0
        for slot in range(5):
            done = tier.read(slot, slot + 10)
            assert done.ok and done.num_bytes == layout.block_bytes
        assert tier.write(2, 77).ok and tier.read(2, 77).ok
        assert not tier.read(2, 12).ok  # what was there before
        assert tier.erase(3).ok and not tier.read(3, 13).ok
        assert tier.read(4, 14).ok
        assert tier.disk.counters == {
            "writes": 6, "reads": 7, "erases": 1, "wrong_blocks": 2
        }  # fmt: skip


def test_slots_do_not_overlap_and_fit_the_capacity(tmp_path: Path) -> None:
    with Tier(tmp_path, 40) as tier:
        for slot in range(40):
            assert tier.write(slot, slot).ok
        for slot in range(40):
            assert tier.read(slot, slot).ok
    used = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert used <= capacity(40)


@pytest.mark.parametrize("num_slots", [1, 7, 8, 9, 24, 25, 63, 100])
def test_geometry(num_slots: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(disk_files, "SEGMENT_BYTES", 3 * 8192 + 1)  # three slots a segment
    geometry = Geometry(8000, num_slots)
    places = [geometry.place(slot) for slot in range(num_slots)]
    assert len(set(places)) == num_slots
    for segment in range(geometry.num_segments):
        offsets = sorted(offset for where, offset in places if where == segment)
        assert offsets == list(range(0, geometry.segment_bytes(segment), 8192))
        assert 0 < len(offsets) <= 3
    assert max(segment for segment, _ in places) + 1 == geometry.num_segments
    more = Geometry(8000, num_slots + 5)
    assert [more.place(slot) for slot in range(num_slots)] == places


def test_operations_on_one_slot_keep_their_order(tmp_path: Path) -> None:
    rounds = 40
    with Tier(tmp_path, 3, threads=4, max_queued=1000) as tier:
        blocks = [payload(i) for i in range(rounds)]
        outs = [np.zeros(LAYOUT.block_bytes, np.uint8) for _ in range(3 * rounds)]
        for i in range(rounds):
            for slot in range(3):
                assert tier.disk.write(slot, key(i), blocks[i])
                assert tier.disk.read(slot, key(i), outs[3 * i + slot])
                assert tier.disk.erase(slot)
                assert tier.disk.read(slot, key(i), np.empty(LAYOUT.block_bytes, np.uint8))
        done = tier.wait(12 * rounds)
    for slot in range(3):
        mine = [d for d in done if d.slot == slot]
        assert [d.kind for d in mine] == ["write", "read", "erase", "read"] * rounds
        assert [d.ok for d in mine] == [True, True, True, False] * rounds
        assert [d.key for d in mine if d.kind == "write"] == [key(i) for i in range(rounds)]
    for at, out in enumerate(outs):
        np.testing.assert_array_equal(out, blocks[at // 3])


def test_a_slow_slot_holds_up_only_itself(tmp_path: Path, gate: threading.Event) -> None:
    with Tier(tmp_path, 4, threads=2) as tier:
        assert tier.disk.write(0, key(0), payload(0))
        assert tier.disk.erase(0)
        for slot in (1, 2, 3):
            assert tier.erase(slot).ok
        gate.set()
        assert [d.kind for d in tier.wait(2)] == ["write", "erase"]


def test_a_full_queue_refuses(tmp_path: Path, gate: threading.Event) -> None:
    with Tier(tmp_path, 12, threads=2, max_queued=5) as tier:
        block = payload(0)
        accepted = [tier.disk.write(slot, key(slot), block) for slot in range(8)]
        assert accepted == [True] * 5 + [False] * 3
        assert tier.disk.counters["refused"] == 3
        gate.set()
        assert tier.woken.wait(60)
        assert not tier.disk.erase(0), "what has come back counts until it is polled for"
        tier.wait(5)
        assert tier.disk.erase(0)
        tier.wait(1)


def test_close_gives_everything_back_once(tmp_path: Path, gate: threading.Event) -> None:
    tier = Tier(tmp_path, 12, threads=2)
    block = payload(0)
    for slot in range(6):
        assert tier.disk.write(slot, key(slot), block)
    assert tier.disk.erase(0)
    closer = threading.Thread(target=tier.disk.close)
    closer.start()
    while tier.disk.erase(11):  # accepted until it closes
        pass
    gate.set()
    closer.join()
    done = tier.disk.poll()
    assert tier.disk.poll() == []
    writes = [d for d in done if d.kind == "write"]
    assert sorted(d.slot for d in writes) == list(range(6))
    finished = {d.slot for d in writes if d.ok}
    assert len(finished) <= 2  # those that the threads were at
    order = [d.kind for d in done if d.slot == 0]
    assert order == ["write", "erase"]
    assert not tier.disk.write(1, key(1), block)
    tier.disk.close()  # again: nothing
    with Tier(tmp_path, 12) as again:
        assert {slot for slot, _ in again.found} == finished
        assert all(again.read(slot, slot).ok == np.array_equal(block, payload(slot))
                   for slot in finished if slot == 0)  # fmt: skip


def test_no_thread_keeps_the_memory_of_a_job(tmp_path: Path) -> None:
    with Tier(tmp_path) as tier:
        memory = bytearray(payload(0).tobytes())
        assert tier.disk.write(0, key(0), memoryview(memory))
        tier.wait(1)
        deadline = threading.Event()
        for _ in range(1000):
            try:
                memory.append(0)  # BufferError while anything views it
                break
            except BufferError:
                deadline.wait(0.01)
        else:
            pytest.fail("the memory of a finished write is still held")


@pytest.mark.parametrize("bad", ["slot", "key", "short", "scattered", "readonly"])
def test_mistakes_of_the_caller(tmp_path: Path, bad: str) -> None:
    with Tier(tmp_path, 2) as tier:
        out = np.zeros(LAYOUT.block_bytes, np.uint8)
        slot, name = 0, key(0)
        if bad == "slot":
            slot = 2
        elif bad == "key":
            name = b"short"
        elif bad == "short":
            out = out[:-1]
        elif bad == "scattered":
            out = np.zeros((LAYOUT.block_bytes, 2), np.uint8)[:, 0]
        elif bad == "readonly":
            out.flags.writeable = False
        with pytest.raises(ValueError):
            tier.disk.read(slot, name, out)
        if bad != "readonly":
            with pytest.raises(ValueError):
                tier.disk.write(slot, name, out)
        assert tier.disk.poll() == []
        with pytest.raises(ValueError):
            tier.disk.erase(-1)


def test_recover_comes_first_and_once(tmp_path: Path) -> None:
    with Tier(tmp_path) as tier:
        with pytest.raises(RuntimeError, match="once"):
            tier.disk.recover()
    late = DiskTier(tmp_path, LAYOUT, capacity(12), wake=lambda: None)
    try:
        assert late.erase(0)
        with pytest.raises(RuntimeError, match="before any operation"):
            late.recover()
    finally:
        late.close()


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_that_cuts_a_write_short(tmp_path: Path) -> None:
    """The kernel takes the part of a block below the limit, then refuses."""
    with Tier(tmp_path, 40) as tier:  # five slots a segment
        for slot in range(40):
            assert tier.write(slot, slot).ok
        with file_size_limit(2 * 8192 + 5000):
            outcome = [tier.write(slot, slot + 100).ok for slot in range(40)]
        assert outcome == [True] * 16 + [False] * 24
        assert tier.disk.counters["write_errors"] == 24
        for slot in range(16):
            assert tier.read(slot, slot + 100).ok
        for slot in range(16, 40):
            assert not tier.read(slot, slot).ok and not tier.read(slot, slot + 100).ok
    with Tier(tmp_path, 40) as tier:
        assert tier.found == [(slot, key(slot + 100)) for slot in range(16)]


@pytest.mark.parametrize("at", ["erase the old header", "payload", "header"])
@pytest.mark.parametrize("how", [errno.ENOSPC, errno.EIO, "short", "nothing", "bug"])
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture, at: str, how: Any
) -> None:
    """A failed write leaves nothing; what a restart may find is the old block or the new one."""
    with Tier(tmp_path) as tier:
        assert tier.write(0, 1).ok and tier.write(1, 2).ok
        broken = False

        def failing(descriptor: int, data: memoryview, offset: int) -> int:
            nonlocal broken
            stage = "header" if any(data[:128]) else "erase the old header"
            if len(data) == LAYOUT.block_bytes:
                stage = "payload"
            if stage != at and not broken:
                return os.pwrite(descriptor, data, offset)
            if how == "short" and not broken:
                broken = True
                return os.pwrite(descriptor, data[: len(data) // 2], offset)
            broken = True
            if how == "nothing":
                return 0
            if how == "bug":
                raise RuntimeError("not a disk's error at all")
            raise OSError(errno.EIO if how == "short" else how, "as if")

        _patch(monkeypatch, "pwrite", failing)
        with caplog.at_level(logging.WARNING):
            assert not tier.write(0, 3).ok
            assert not tier.erase(1).ok or at != "erase the old header"
        monkeypatch.undo()
        assert tier.disk.counters["write_errors"] == 1
        assert len([r for r in caplog.records if "slot" in r.message]) == 1, "once in a while"
        assert not tier.read(0, 3).ok
        assert not tier.read(0, 1).ok
    with Tier(tmp_path) as tier:
        for slot, name in tier.found:
            assert tier.read(slot, [key(i) for i in range(4)].index(name)).ok
        assert tier.write(0, 4).ok and tier.read(0, 4).ok  # the disk is well again


@pytest.mark.parametrize("how", [errno.EIO, "short", "end"])
def test_a_disk_that_cannot_read(tmp_path: Path, monkeypatch: Patch, how: Any) -> None:
    with Tier(tmp_path) as tier:
        assert tier.write(0, 1).ok

        def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            if how == "short":
                short = [buffers[0][: 1 + len(buffers[0]) // 3]]
                return os.preadv(descriptor, short, offset)
            if how == "end":
                return 0
            raise OSError(how, "as if")

        _patch(monkeypatch, "preadv", failing)
        done = tier.read(0, 1)
        assert done.ok == (how == "short")  # a short read goes on
        monkeypatch.undo()
        assert tier.read(0, 1).ok
        assert tier.disk.counters["read_errors"] == (how != "short")


def test_a_source_that_changes_while_it_is_written(tmp_path: Path, monkeypatch: Patch) -> None:
    """Against the contract; it must not be served all the same."""
    block = payload(0)

    def meddling(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) > 128:
            block[0] ^= 1
        return os.pwrite(descriptor, data, offset)

    with Tier(tmp_path) as tier:
        _patch(monkeypatch, "pwrite", meddling)
        assert tier.disk.write(0, key(0), block)
        tier.wait(1)
        assert not tier.read(0, 0).ok
        assert tier.disk.counters["damaged"] == 1
