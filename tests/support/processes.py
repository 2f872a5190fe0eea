"""What other processes are doing, for tests that start some."""

from __future__ import annotations

import psutil

# Helpers of multiprocessing, which end with the process that uses them.
_HELPERS = ("resource_tracker", "forkserver")


def running(process: psutil.Process) -> bool:
    """It has not ended, and is a process that some test started rather than such a helper."""
    return _alive(process) and not any(name in describe(process.pid) for name in _HELPERS)


def describe(pid: int) -> str:
    try:
        return f"{pid}: {' '.join(psutil.Process(pid).cmdline())}"
    except psutil.NoSuchProcess:
        return f"{pid}: gone"


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
