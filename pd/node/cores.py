"""Cores that a node has to itself among the nodes of its host.

A scheduler that is free to choose now and then runs two nodes on one core while another idles,
which a running stream notices as a step of twice the length. Which cores are taken is a matter
of file locks: nodes come to a host from several places and at any time, and the lock of one that
was killed is gone with it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pd.errors import ConfigError


class CoreClaim:
    """`cores` of this host that no other claim of this user has, until `close` or death."""

    def __init__(self, count: int, directory: Path | None = None) -> None:
        """Claim `count` of the cores this process may use. ConfigError if fewer are left."""
        if not hasattr(os, "sched_setaffinity"):
            raise ConfigError("pin_cpus needs Linux; turn it off here")
        directory = directory or Path(tempfile.gettempdir()) / f"pd-cores-{os.getuid()}"
        allowed = sorted(os.sched_getaffinity(0))
        self._locks: list[int] = []
        cores: list[int] = []
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            guard = _open(directory / "claiming")
            try:
                # Two that claim at once would each take some and find too few for both.
                fcntl.flock(guard, fcntl.LOCK_EX)
                for core in allowed:
                    if len(cores) < count and self._take(directory / f"core-{core}"):
                        cores.append(core)
            finally:
                os.close(guard)
        except OSError as error:
            self.close()
            raise ConfigError(f"pin_cpus cannot use {directory}: {error.strerror}") from None
        if len(cores) < count:
            self.close()
            raise ConfigError(
                f"pin_cpus: a node wants {count} of the {len(allowed)} cores it may use, and other "
                f"nodes left {len(cores)}; lower threads_per_node or turn pin_cpus off"
            )
        self.cores = tuple(cores)

    def pin(self) -> None:
        """Keep every thread of this process to the cores; those it starts later will follow."""
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread), self.cores)

    def close(self) -> None:
        """Leave the cores to others. Threads stay where they are."""
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks.clear()

    def _take(self, path: Path) -> bool:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True


def _open(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
