"""Shared memory by name, which disappears with its owner.

A segment is a file in /dev/shm. Its owner keeps it locked; whoever finds one that it can
lock knows that the owner is dead, and removes it. A lock and not a process id: ids repeat,
and containers that share /dev/shm do not see each other's.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from pd.errors import ConfigError, TransferError

SHM = Path("/dev/shm")
_PREFIX = "pd-kv-"
_NAME = re.compile(_PREFIX + r"[0-9a-f]{32}")
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which `mmap` has no name for
_POPULATE_STEP = 2 << 20  # bytes; other threads get their turn in between


def host_identity() -> str:
    """What two processes have in common exactly when they see the same shared memory.

    The boot tells hosts apart, the device of /dev/shm tells containers apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{SHM.stat().st_dev:x}"
    except OSError as error:
        raise ConfigError(f"this host has no shared memory to use: {error}") from None


def populate(memory: mmap.mmap, pause_s: float = 0.0) -> None:
    """Have all its pages in memory, and known to this process, before anybody needs them.

    A page that is touched first by a copy of blocks makes that copy wait for it to be found and
    zeroed, which takes twenty times as long as the copy. Does nothing where the kernel cannot
    (before Linux 5.14); MemoryError where there is not that much memory. Ends when the mapping
    is closed.
    """
    start = end = 0
    try:
        end = len(memory)
        while start < end:
            memory.madvise(_POPULATE_WRITE, start, min(_POPULATE_STEP, end - start))
            start += _POPULATE_STEP
            if pause_s:
                time.sleep(pause_s)
    except ValueError:  # closed
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise MemoryError(
                f"only {start / 2**20:.0f} of {end / 2**20:.0f} MiB of KV cache fit into memory: "
                f"{error.strerror}"
            ) from None


class Segment:
    """A mapped segment: `name`, and `map`, its bytes."""

    def __init__(self, name: str, descriptor: int, num_bytes: int, *, owner: bool) -> None:
        self.name = name
        self.map = mmap.mmap(descriptor, num_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # fewer faults, where the host gives huge pages here
            self.map.madvise(mmap.MADV_HUGEPAGE)
        # The owner's descriptor carries the lock; a guest has no use for its own.
        self._descriptor = descriptor if owner else -1
        # Whether its owner has populated it.
        self.populated = os.fstat(descriptor).st_blocks * 512 >= num_bytes
        if not owner:
            os.close(descriptor)

    @classmethod
    def create(cls, num_bytes: int) -> Segment:
        """A new segment of zeros, readable by this user only, which takes memory as it is
        touched. ConfigError if /dev/shm has not that much room."""
        sweep()
        try:
            status = os.statvfs(SHM)
        except OSError as error:
            raise ConfigError(f"this host has no shared memory to use: {error}") from None
        room = status.f_bavail * status.f_frsize
        # A page that cannot be given when it is touched kills the process that touches it.
        if num_bytes > room:
            raise ConfigError(
                f"{SHM} has room for {room / 2**20:.0f} MiB, {num_bytes / 2**20:.0f} MiB of KV "
                "cache are wanted: enlarge it (docker: --shm-size), use a smaller cache, or leave "
                "shm out of the transports"
            )
        while True:
            name = _PREFIX + secrets.token_hex(16)
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            descriptor = os.open(SHM / name, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    os.ftruncate(descriptor, num_bytes)
                    return cls(name, descriptor, num_bytes, owner=True)
            except BlockingIOError:
                pass  # a sweep came between open and lock, and removes it: take another name
            except BaseException:
                os.close(descriptor)
                _unlink(name)
                raise
            os.close(descriptor)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Map a segment that another process owns. TransferError if it is not there."""
        if not _NAME.fullmatch(name):
            raise TransferError(f"{name!r} is not the name of a segment")
        try:
            descriptor = os.open(SHM / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise TransferError(f"segment {name} cannot be mapped: {error}") from None
        try:
            return cls(name, descriptor, os.fstat(descriptor).st_size, owner=False)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise TransferError(f"segment {name} cannot be mapped: {error}") from None

    def close(self) -> None:
        """Remove the name, if it is ours, and unmap.

        Memory that is still viewed stays mapped until the last view is gone.
        """
        if self._descriptor >= 0:
            _unlink(self.name)
            os.close(self._descriptor)
            self._descriptor = -1
        with suppress(BufferError):
            self.map.close()


def sweep() -> list[str]:
    """Remove the segments of this user whose owners are dead; returns their names."""
    removed: list[str] = []
    for path in SHM.glob(_PREFIX + "*"):
        if not _NAME.fullmatch(path.name):
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink(path.name)
            removed.append(path.name)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
    return removed


def _unlink(name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(SHM / name)
