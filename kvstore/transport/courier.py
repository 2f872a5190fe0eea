"""A thread that carries blocks to or from one peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

from kvstore.transport.base import start_thread

Way = TypeVar("Way")


@dataclass(slots=True, eq=False)
class Errand(Generic[Way]):
    """Something to do with a way to a peer. `done` when it will not be touched any more, be it
    because it was done or because the courier gave up."""

    run: Callable[[Way], None]
    done: bool = False


class Courier(Generic[Way]):
    """Opens a way to a peer, and then does one errand after the other, until one fails.

    Both may block; that is what the thread is for. `failed(error)` is called from it, once.
    """

    def __init__(
        self, name: str, open_way: Callable[[], Way], failed: Callable[[Exception], object]
    ) -> None:
        self.opened = False
        self._open_way = open_way
        self._failed = failed
        self._errands: SimpleQueue[Errand[Way] | None] = SimpleQueue()
        self._closed = False
        self._lock = Lock()  # so that no errand comes after the last one was dropped
        self._thread = start_thread(self._run, name)

    def submit(self, run: Callable[[Way], None]) -> Errand[Way]:
        errand = Errand(run)
        with self._lock:
            if self._closed:
                errand.done = True
            else:
                self._errands.put(errand)
        return errand

    def close(self) -> None:
        """Start no errand any more; the one under way ends when it ends."""
        self._close()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _close(self) -> bool:
        """Drop what waits; whether the courier was at work until now."""
        with self._lock:
            closed, self._closed = self._closed, True
            while not self._errands.empty():
                left = self._errands.get()
                if left is not None:
                    left.done = True
            self._errands.put(None)
        return not closed

    def _run(self) -> None:
        try:
            way = self._open_way()
            self.opened = True
            while (errand := self._errands.get()) is not None:
                try:
                    errand.run(way)
                finally:
                    errand.done = True
            del way
        except Exception as error:
            if self._close():
                self._failed(error)
