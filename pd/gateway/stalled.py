"""Connections whose clients hardly read: found, and cut off."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

PROGRESS_BYTES = 16 << 10  # what a client has to take within the time limit


class StallGuard:
    """Watches what is left of answers that have been written as a whole: nobody waits for these.

    Their connection is cut off once its client took less than `PROGRESS_BYTES` of them, or of
    the rest if that is less, in `timeout_s`. To close it politely would be to wait for the
    client once more. A stream that is still written to is its writer's business (see `writer`).
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._marks: dict[Any, tuple[int, float]] = {}  # bytes left, and since when

    def look(self, connections: Iterable[Any], now: float) -> int:
        """Cut off what has stalled, of uvicorn's connections; returns how many."""
        marks: dict[Any, tuple[int, float]] = {}
        cut = 0
        for connection in connections:
            transport, cycle = connection.transport, connection.cycle
            if cycle is not None and not cycle.response_complete:
                continue
            left = transport.get_write_buffer_size()
            if not left:
                continue
            mark, since_s = self._marks.get(transport, (left, now))
            # More than before: that is another answer.
            if left > mark or left <= mark - PROGRESS_BYTES:
                mark, since_s = left, now
            if now - since_s > self._timeout_s:
                transport.abort()
                cut += 1
                continue
            marks[transport] = (mark, since_s)
        self._marks = marks
        if cut:
            log.info("%d clients were cut off: they left their answers unread", cut)
        return cut
