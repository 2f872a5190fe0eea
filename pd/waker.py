"""Waking a thread that waits in a poll."""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Waker:
    """A pipe: any thread may `wake`, one thread polls `fileno()` and then calls `drain`.

    A pipe and not a ZeroMQ socket, because those belong to one thread each.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        """Wakes since the last `drain` count once; after `close` they do nothing."""
        with self._lock:  # without it a late wake could write into somebody else's descriptor
            if not self._closed:
                with suppress(BlockingIOError):  # a full pipe is readable as well
                    os.write(self._write, b"\0")

    def drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._read)
                os.close(self._write)
