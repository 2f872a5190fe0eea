"""The files of a disk tier: who may use them, and where in them a slot lies.

    directory/lock              held by the process whose tier this is
    directory/headers           the header of every slot, one after the other
    directory/segment-00000     payloads, each padded to whole pages
    ...

The headers lie together, and not each before its payload, so that a restart finds what is
there with one read: a cold disk takes minutes to give up a hundred thousand scattered pages.
While the tier runs they are in memory as well, and are read from there.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvstore.layout import KVLayout
from kvstore.pool.disk_format import HEADER_BYTES, HeaderFormat, Inventory
from pd.errors import ConfigError

log = logging.getLogger(__name__)

PAGE = 4096
# Where a slot lies must not depend on the capacity, which may change from one start to the
# next; a change of these two does, and needs a new version of the format.
SEGMENT_BYTES = 512 << 20
# Neighbouring slots lie in different files: file systems let one writer into a file at a time.
STRIPES = 8

_UNKNOWN = b"\xff" * HEADER_BYTES  # not a header, and not an empty one

_SEGMENT = re.compile(r"segment-(\d{5,})")


@dataclass(frozen=True)
class Geometry:
    """Where the payloads of `num_slots` slots lie."""

    payload_bytes: int
    num_slots: int

    @classmethod
    def within(cls, capacity_bytes: int, payload_bytes: int) -> Geometry:
        """As many slots as fit into `capacity_bytes` of disk, their headers included."""
        slot_bytes = _pages(payload_bytes) + HEADER_BYTES
        return cls(payload_bytes, max(0, capacity_bytes - PAGE) // slot_bytes)

    @property
    def stride(self) -> int:
        return _pages(self.payload_bytes)

    @property
    def table_bytes(self) -> int:
        """All headers."""
        return _pages(self.num_slots * HEADER_BYTES)

    @property
    def segment_slots(self) -> int:
        """Slots of a full segment."""
        return max(1, SEGMENT_BYTES // self.stride)

    @property
    def num_segments(self) -> int:
        groups, rest = divmod(self.num_slots, STRIPES * self.segment_slots)
        return groups * STRIPES + min(rest, STRIPES)

    def place(self, slot: int) -> tuple[int, int]:
        """(segment, offset in it)"""
        group, at = divmod(slot, STRIPES * self.segment_slots)
        return group * STRIPES + at % STRIPES, at // STRIPES * self.stride

    def segment_bytes(self, segment: int) -> int:
        group, stripe = divmod(segment, STRIPES)
        group_slots = STRIPES * self.segment_slots
        in_group = min(self.num_slots - group * group_slots, group_slots)
        return len(range(stripe, in_group, STRIPES)) * self.stride


class SlotFiles:
    """Opens, or makes, the files of a directory; `inventory` is what was found in them.

    Whatever cannot be used (of another layout, damaged, beyond the capacity, in a segment
    that is missing or was cut) is forgotten here, on disk too, and logged. ConfigError if the
    directory belongs to another process, cannot be used, or has too little room.

    Its methods may be called by several threads, for one slot by one at a time. They raise
    OSError for everything that a disk can refuse, a read or write that ended early included.
    """

    def __init__(
        self, directory: Path, layout: KVLayout, capacity_bytes: int, *, checked_only: bool
    ) -> None:
        self.directory = directory
        self.format = HeaderFormat(layout.fingerprint, layout.block_bytes)
        self.geometry = Geometry.within(capacity_bytes, layout.block_bytes)
        if not self.geometry.num_slots:
            raise ConfigError(
                f"a disk tier of {capacity_bytes} bytes has no room for a single block of "
                f"{layout.block_bytes} bytes: give it more, or none"
            )
        self._created: list[Path] = []
        self._segments: list[int] = []
        self._headers = -1
        self._owned = -1
        try:
            self._owned = self._take()
            self._check_room()
            self._headers = self._open("headers")
            self._table_lock = threading.Lock()
            self._table = bytearray(self.geometry.table_bytes)
            self.inventory = self._take_stock(checked_only)
            self._allocate()
        except OSError as error:
            self._undo()
            raise ConfigError(f"{directory} cannot hold a disk tier: {error.strerror}") from None
        except BaseException:
            self._undo()
            raise

    def header(self, slot: int) -> bytes:
        return bytes(self._table[slot * HEADER_BYTES : (slot + 1) * HEADER_BYTES])

    def set_header(self, slot: int, raw: bytes) -> None:
        """Write a header. If that fails, the slot counts as damaged until it succeeds."""
        at = slot * HEADER_BYTES
        start = at - at % PAGE
        with self._table_lock:
            if self._table[at : at + HEADER_BYTES] == raw:
                return
            self._table[at : at + HEADER_BYTES] = raw
            try:
                # A whole page, because of a part the kernel would have to read the rest first.
                write_all(self._headers, memoryview(self._table)[start : start + PAGE], start)
            except BaseException:
                self._table[at : at + HEADER_BYTES] = _UNKNOWN
                raise

    def place(self, slot: int) -> tuple[int, int]:
        """(descriptor, offset) of a slot's payload."""
        segment, offset = self.geometry.place(slot)
        return self._segments[segment], offset

    def close(self) -> None:
        for descriptor in (*self._segments, self._headers, self._owned):
            if descriptor >= 0:
                os.close(descriptor)
        self._segments, self._headers, self._owned = [], -1, -1

    def _take(self) -> int:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never removed: whoever waits at its door must find the same file as the next one.
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise ConfigError(
                f"{self.directory} is in use by another disk tier: give every pool node a "
                "directory of its own"
            ) from None
        return lock

    def _check_room(self) -> None:
        wanted = sum(map(self.geometry.segment_bytes, range(self.geometry.num_segments)))
        there = sum(status.st_blocks * 512 for status in self._stat_segments().values())
        status = os.statvfs(self.directory)
        room = status.f_bavail * status.f_frsize
        if wanted - there > room:
            raise ConfigError(
                f"{self.directory} has room for {room / 2**20:.0f} MiB, "
                f"{(wanted - there) / 2**20:.0f} MiB more are wanted: make the disk tier smaller, "
                "or room for it"
            )

    def _take_stock(self, checked_only: bool) -> Inventory:
        """Read all headers, and erase those of blocks that cannot be used."""
        size = os.fstat(self._headers).st_size
        raw = bytearray(size - size % HEADER_BYTES)
        read_all(self._headers, memoryview(raw), 0)
        found = self.format.scan(bytes(raw), checked_only=checked_only)
        segments = self._stat_segments()
        kept: list[tuple[int, bytes]] = []
        for slot, key in found.slots:
            segment, offset = self.geometry.place(slot)
            end = offset + self.geometry.payload_bytes
            if slot >= self.geometry.num_slots or segment not in segments:
                continue
            if end <= segments[segment].st_size:
                kept.append((slot, key))
                at = slot * HEADER_BYTES
                self._table[at : at + HEADER_BYTES] = raw[at : at + HEADER_BYTES]
        dropped = {
            "of another layout": found.foreign,
            "with a damaged header": found.torn,
            "without a checksum": found.unchecked,
            "outdated": found.duplicates,
            "without room": len(found.slots) - len(kept),
        }
        if any(dropped.values()):
            reasons = ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
            log.warning("disk tier %s: %d blocks, dropped %s", self.directory, len(kept), reasons)
        os.ftruncate(self._headers, len(self._table))
        if raw != self._table:
            write_all(self._headers, memoryview(self._table), 0)
            # Before a segment changes: its old blocks must be forgotten even if the host dies now.
            os.fsync(self._headers)
        return found._replace(slots=kept)

    def _stat_segments(self) -> dict[int, os.stat_result]:
        return {
            int(match[1]): path.stat()
            for path in self.directory.iterdir()
            if (match := _SEGMENT.fullmatch(path.name))
        }

    def _allocate(self) -> None:
        """Make every file exactly as long as it has to be."""
        for segment in self._stat_segments():
            if segment >= self.geometry.num_segments:
                (self.directory / _segment_name(segment)).unlink()
        # Preallocated, so that a disk which fills up later takes nothing from the tier.
        os.posix_fallocate(self._headers, 0, len(self._table))
        for segment in range(self.geometry.num_segments):
            descriptor = self._open(_segment_name(segment))
            self._segments.append(descriptor)
            num_bytes = self.geometry.segment_bytes(segment)
            os.ftruncate(descriptor, num_bytes)
            os.posix_fallocate(descriptor, 0, num_bytes)

    def _open(self, name: str) -> int:
        path = self.directory / name
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        self._created.append(path)
        return descriptor

    def _undo(self) -> None:
        """Leave no half-made files, and above all no disk space taken."""
        if self._owned >= 0:  # only an owner removes files
            for path in self._created:
                path.unlink(missing_ok=True)
        self.close()


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        if not count:
            raise OSError(errno.EIO, "the file takes no more bytes")
        data = data[count:]
        offset += count


def read_all(descriptor: int, out: memoryview, offset: int) -> None:
    while out:
        count = os.preadv(descriptor, [out], offset)
        if not count:
            raise OSError(errno.EIO, "the file ends before the block")
        out = out[count:]
        offset += count


def _pages(num_bytes: int) -> int:
    return -(-num_bytes // PAGE) * PAGE


def _segment_name(segment: int) -> str:
    return f"segment-{segment:05d}"
