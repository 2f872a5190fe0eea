"""Where compiled CPU kernels are kept, so that a node compiles them once a machine, not a start.

Numba notices a change of the file a kernel is in, not of the files it imports, so each state of
the kernel sources gets a folder of its own. Import this module before any cached kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numba import config


def _cache_folder() -> Path | None:
    """A private writable folder for this state of the sources, or None where there is none."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("cpu_*.py")):
        digest.update(source.read_bytes())
    base = config.CACHE_DIR or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pd-kernels"
    )
    folder = Path(base) / digest.hexdigest()[:16]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


FOLDER = _cache_folder()

if FOLDER is not None:
    config.CACHE_DIR = str(FOLDER)


_held = threading.RLock()
_depth = 0


@contextmanager
def compile_lock() -> Iterator[None]:
    """Held by one process at a time, so that nodes which start together compile a kernel once:
    the first compiles and stores, the others load what it stored. A thread may take it again."""
    global _depth
    with _held:
        lock = None
        if FOLDER is not None and _depth == 0:
            lock = open(FOLDER / "lock", "w")  # noqa: SIM115  (held for the whole block)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            if lock is not None:
                lock.close()
