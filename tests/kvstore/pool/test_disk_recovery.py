"""What a disk tier finds when it opens a directory, and what it must not believe."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disktools import LAYOUT, Tier, capacity, filled, key
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.layout import KVLayout
from kvstore.pool import disk_files
from kvstore.pool.disk import DiskTier
from kvstore.pool.disk_format import EMPTY, HEADER_BYTES, Header, HeaderFormat
from pd.errors import ConfigError

# Where each field of a header lies.
FIELDS = {
    "magic": (0, 8), "version": (8, 12), "flags": (12, 16), "fingerprint": (16, 24),
    "sequence": (24, 32), "key": (32, 64), "payload_bytes": (64, 72), "checksum": (72, 80),
    "zeros": (80, 120), "header checksum": (120, 128),
}  # fmt: skip


def damage(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip(path: Path, at: int, bit: int = 0) -> None:
    damage(path, at, bytes([path.read_bytes()[at] ^ 1 << bit]))


def test_blocks_are_found_oldest_first(tmp_path: Path) -> None:
    with Tier(tmp_path) as tier:
        for slot, number in ((5, 1), (0, 2), (7, 3), (5, 4), (1, 5)):
            assert tier.write(slot, number).ok
        assert tier.erase(7).ok
    for _ in range(3):  # opening changes nothing
        with Tier(tmp_path) as tier:
            assert tier.found == [(0, key(2)), (5, key(4)), (1, key(5))]
            assert all(tier.read(slot, n).ok for slot, n in ((0, 2), (5, 4), (1, 5)))
    with Tier(tmp_path) as tier:
        assert tier.write(3, 9).ok  # newer than everything of the starts before
    with Tier(tmp_path) as tier:
        assert tier.found[-1] == (3, key(9))


def test_of_equal_keys_the_newest_counts(tmp_path: Path) -> None:
    with Tier(tmp_path) as tier:
        for slot, number in ((4, 1), (2, 2), (0, 1), (1, 3)):
            assert tier.write(slot, number).ok
    with Tier(tmp_path) as tier:
        assert tier.found == [(2, key(2)), (0, key(1)), (1, key(3))]
        assert not tier.read(4, 1).ok  # the slots that recover does not name are empty
        assert tier.erase(0).ok
    with Tier(tmp_path) as tier:
        assert tier.found == [(2, key(2)), (1, key(3))]


@pytest.mark.parametrize("field", FIELDS)
def test_a_bit_flipped_in_a_header(
    tmp_path: Path, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 4)
    start, end = FIELDS[field]
    for at in {start, (start + end) // 2, end - 1}:
        flip(tmp_path / "headers", 2 * HEADER_BYTES + at, bit=at % 8)
    with caplog.at_level(logging.WARNING), Tier(tmp_path) as tier:
        assert tier.found == [(0, key(0)), (1, key(1)), (3, key(3))]
        assert not tier.read(2, 2).ok
        assert all(tier.read(i, i).ok for i in (0, 1, 3))
        assert tier.write(2, 5).ok and tier.read(2, 5).ok
    assert "1 with a damaged header" in caplog.text


def test_headers_damaged_under_a_running_tier(tmp_path: Path) -> None:
    """It knows them by heart, and the next write puts them right."""
    filled(tmp_path, 3)
    with Tier(tmp_path) as tier:
        damage(tmp_path / "headers", 0, bytes(300))
        assert all(tier.read(i, i).ok for i in range(3))
        assert tier.write(7, 7).ok
    with Tier(tmp_path) as tier:
        assert tier.found == [(i, key(i)) for i in (0, 1, 2, 7)]


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 8191])
def test_a_bit_flipped_in_a_payload(tmp_path: Path, at: int) -> None:
    filled(tmp_path, 10)
    flip(tmp_path / "segment-00001", 8192 + at, bit=at % 8)  # slot 9
    with Tier(tmp_path) as tier:
        assert len(tier.found) == 10
        assert [tier.read(i, i).ok for i in range(10)] == [True] * 9 + [False]
        assert tier.disk.counters["damaged"] == 1
        assert tier.write(9, 9).ok and tier.read(9, 9).ok


def test_payloads_exchanged(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    one, two = tmp_path / "segment-00000", tmp_path / "segment-00001"
    first, second = one.read_bytes(), two.read_bytes()
    size = min(len(first), len(second))
    damage(one, 0, second[:size])
    damage(two, 0, first[:size])
    with Tier(tmp_path) as tier:
        assert not tier.read(0, 0).ok and not tier.read(1, 1).ok


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 400, 512])
def test_headers_cut_short(tmp_path: Path, size: int) -> None:
    filled(tmp_path, 6)
    os.truncate(tmp_path / "headers", size)
    with Tier(tmp_path) as tier:
        assert tier.found == [(i, key(i)) for i in range(size // HEADER_BYTES)]
        assert all(tier.read(i, i).ok for i in range(size // HEADER_BYTES))
        assert tier.write(5, 50).ok and tier.read(5, 50).ok


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("size", [None, 0, 1, 8191, 8192, 16383])
def test_a_segment_cut_short(tmp_path: Path, size: int | None, verify: bool) -> None:
    """Blocks whose bytes are gone are not found, checksums or not: the file reads as zeros."""
    filled(tmp_path, 12, verify=verify)
    segment = tmp_path / "segment-00002"  # slots 2 and 10
    if size is None:
        segment.unlink()
    else:
        os.truncate(segment, size)
    lost = {10} if size in (8192, 16383) else {2, 10}
    for _ in range(2):
        with Tier(tmp_path, verify=verify) as tier:
            assert tier.found == [(i, key(i)) for i in range(12) if i not in lost]
            assert [tier.read(i, i).ok for i in range(12)] == [i not in lost for i in range(12)]


def test_a_segment_cut_under_a_running_tier(tmp_path: Path) -> None:
    filled(tmp_path, 12)
    with Tier(tmp_path) as tier:
        os.truncate(tmp_path / "segment-00002", 8192 + 5000)
        assert not tier.read(10, 10).ok and tier.read(2, 2).ok
        assert tier.disk.counters["read_errors"] == 1


@pytest.mark.parametrize("other", [
    dataclasses.replace(LAYOUT, model="another"),
    dataclasses.replace(LAYOUT, dtype="float16"),
    dataclasses.replace(LAYOUT, block_size=64),
    KVLayout("float16", 1, 1, 3, 5, "odd"),
])  # fmt: skip
@pytest.mark.parametrize("verify", [True, False])
def test_another_layout(
    tmp_path: Path, other: KVLayout, verify: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its blocks are dropped, said so, and do not come back when the first layout does."""
    filled(tmp_path, 12, verify=verify)
    with caplog.at_level(logging.WARNING), Tier(tmp_path, 8, other, verify=verify) as tier:
        assert tier.found == []
        assert not any(tier.read(i, i).ok for i in range(8))
        assert tier.write(3, 3).ok and tier.read(3, 3).ok
    assert "12 of another layout" in caplog.text
    with Tier(tmp_path, 12, verify=verify) as tier:
        assert tier.found == []
        assert not any(tier.read(i, i).ok for i in range(12))


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("kvstore.pool.disk_format._VERSION", 2)
        filled(tmp_path, 3)
    with Tier(tmp_path) as tier:
        assert tier.found == []


def test_blocks_without_checksums(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, 2, verify=False)
    with Tier(tmp_path, verify=False) as tier:
        assert len(tier.found) == 2 and tier.read(1, 1).ok
    with caplog.at_level(logging.WARNING), Tier(tmp_path) as tier:
        assert tier.found == []
        assert tier.write(0, 0).ok
    assert "2 without a checksum" in caplog.text
    with Tier(tmp_path, verify=False) as tier:  # those with one are good for both
        assert tier.found == [(0, key(0))] and tier.read(0, 0).ok


def test_capacity_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What still has room stays; what was cut off does not come back as zeros."""
    monkeypatch.setattr(disk_files, "SEGMENT_BYTES", 2 * 8192)  # groups of 16 slots
    filled(tmp_path, 40, 40)
    with Tier(tmp_path, 100) as tier:
        assert tier.found == [(i, key(i)) for i in range(40)]
        assert all(tier.read(i, i).ok for i in range(40))
        assert tier.write(99, 99).ok
    with Tier(tmp_path, 11) as tier:
        assert tier.found == [(i, key(i)) for i in range(11)]
        assert all(tier.read(i, i).ok for i in range(11))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= capacity(11)
    with Tier(tmp_path, 100, verify=False) as tier:
        assert tier.found == [(i, key(i)) for i in range(11)]
        assert not any(tier.read(i, i).ok for i in range(11, 40))
        assert not tier.read(99, 99).ok


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "segment-7").write_text("not ours either")
    filled(tmp_path, 1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "segment-7").exists()
    for name in ("headers", "segment-00000", "lock"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, "KV is not for every user to read"


def test_two_owners(tmp_path: Path) -> None:
    with Tier(tmp_path) as tier:
        assert tier.write(0, 0).ok
        for num_slots in (12, 3):
            with pytest.raises(ConfigError, match=str(tmp_path)):
                Tier(tmp_path, num_slots)
        code = (
            "import sys; from pathlib import Path; from disktools import Tier\n"
            "from pd.errors import ConfigError\n"
            "try: Tier(Path(sys.argv[1]))\n"
            "except ConfigError as error: print(error)"
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=True,
        ).stdout  # fmt: skip
        assert str(tmp_path) in said and "in use" in said
        assert tier.read(0, 0).ok
    with Tier(tmp_path) as tier:  # free again
        assert tier.read(0, 0).ok


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single block"):
        DiskTier(tmp_path / "disk", LAYOUT, 8192, wake=lambda: None)
    assert not (tmp_path / "disk").exists()


def test_too_large_for_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has room for"):
        DiskTier(tmp_path / "disk", LAYOUT, 1 << 45, wake=lambda: None)
    left = sum(path.stat().st_blocks for path in (tmp_path / "disk").iterdir())
    assert left * 512 < 1 << 20, "a start that failed must not take disk space"


def test_allocation_that_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fails_at_the_third(descriptor: int, offset: int, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        allocate(descriptor, offset, size)

    allocate = os.posix_fallocate
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fails_at_the_third)
        with pytest.raises(ConfigError, match="No space left"):
            Tier(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"], "nothing is left half-made"
    filled(tmp_path, 3)  # and the directory is free for another try


@pytest.mark.parametrize("what", ["a file", "no access"])
def test_no_directory(tmp_path: Path, what: str) -> None:
    target = tmp_path / "disk"
    if what == "a file":
        target.write_text("")
    else:
        target = Path("/proc/disk-tier")
    with pytest.raises(ConfigError, match=str(target)):
        Tier(target)


@settings(max_examples=200)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_no_noise_is_a_header(raw: bytes) -> None:
    assert HeaderFormat(1, 2).parse(raw) is None


@settings(max_examples=200)
@given(
    key_=st.binary(min_size=32, max_size=32),
    sequence=st.integers(0, 2**64 - 1),
    checksum=st.none() | st.integers(0, 2**64 - 1),
    bit=st.integers(0, HEADER_BYTES * 8 - 1),
    cut=st.integers(0, HEADER_BYTES - 1),
)
def test_headers_survive_the_trip_and_nothing_else(
    key_: bytes, sequence: int, checksum: int | None, bit: int, cut: int
) -> None:
    form = HeaderFormat(2**63 + 5, 4096)
    header = Header(key_, sequence, checksum)
    raw = form.pack(header)
    assert len(raw) == HEADER_BYTES and form.parse(raw) == header
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << bit % 8
    torn = raw[:cut] + bytes(HEADER_BYTES - cut)
    assert form.parse(bytes(flipped)) is None
    assert torn == raw or form.parse(torn) is None
    assert HeaderFormat(2**63 + 4, 4096).parse(raw) is None
    assert HeaderFormat(2**63 + 5, 4095).parse(raw) is None
    found = form.scan(EMPTY + raw + bytes(flipped) + EMPTY, checked_only=True)
    assert found.slots == ([] if checksum is None else [(1, key_)])
    assert found.torn == 1 and found.unchecked == (checksum is None)


def test_scan_of_many(tmp_path: Path) -> None:
    form = HeaderFormat(1, 8)
    order = np.random.default_rng(0).permutation(3000)
    table = b"".join(form.pack(Header(key(int(n) // 2), int(n), 0)) for n in order)
    found = form.scan(table, checked_only=True)
    assert [key for _, key in found.slots] == [key(n) for n in range(1500)]
    assert [int(order[slot]) for slot, _ in found.slots] == list(range(1, 3000, 2))
    assert (found.duplicates, found.last_sequence) == (1500, 2999)
