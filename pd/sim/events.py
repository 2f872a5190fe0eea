"""The virtual clock: what is to happen, in order of time. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

_Entry = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class EventQueue:
    """Calls at times, in seconds. Of several at one time the one that was asked for first comes
    first, so that two messages from one sender stay in order."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now = start_s
        self.num_events = 0  # that have happened
        self.over = False  # who is in charge of a run says so, to end it
        self._heap: list[_Entry] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call then, or now if that time has passed."""
        if time_s < self.now:
            time_s = self.now
        heapq.heappush(self._heap, (time_s, next(self._order), call, args))

    def run(self) -> None:
        """Let things happen until it is `over` or nothing is left to happen."""
        heap, pop, happened = self._heap, heapq.heappop, 0
        while heap and not self.over:
            self.now, _, call, args = pop(heap)
            happened += 1
            call(*args)
        self.num_events += happened

    def run_until(self, time_s: float) -> None:
        """Let happen what is due until then, and set the clock to it."""
        while self._heap and self._heap[0][0] <= time_s:
            self.now, _, call, args = heapq.heappop(self._heap)
            self.num_events += 1
            call(*args)
        self.now = max(self.now, time_s)
