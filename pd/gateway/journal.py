"""What a gateway remembers of late: the requests that ended, samples over time, decisions.

Everything here is bounded, and looked at by the live page and `pd top`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pd.gateway.decisions import Decisions
from pd.gateway.describe import describe
from pd.gateway.history import History
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.slowlog import SlowLog
from pd.gateway.stream import RunningRequest
from pd.gateway.tracing import Tracer
from pd.messages import CellStatus

MAX_ENDED = 200
MAX_RUNNING = 100  # shown at once


class Journal:
    """Told of every request that ended, every status of the cell, and of the time.

    `clock` is the gateway's, `wall` the time of day that others know.
    """

    def __init__(
        self,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        tracer: Tracer | None = None,
    ) -> None:
        self.history = History(metrics)
        self.decisions = Decisions()
        self._metrics = metrics
        self._slow_log = SlowLog()
        self._tracer = tracer
        self._clock = clock
        self._wall = wall
        self._ended: deque[dict[str, Any]] = deque(maxlen=MAX_ENDED)

    def ended(self, running: RunningRequest, now: float) -> None:
        self._metrics.ended(running)
        self._slow_log.ended(running, now)
        if running.outcome != "rejected":  # those are counted, and would crowd out all others
            self._ended.append(self._tell(running, now))
        if self._tracer is not None:
            self._tracer.ended(running, self._wall() - now)

    def rejected(self, status: int, message: str) -> None:
        """The coordinator turned a request away."""
        self.decisions.add("reject", f"requests are refused with {status}", message, self._wall())

    def resumed(self, running: RunningRequest, reason: str) -> None:
        """Work of a request was lost and is submitted again."""
        running.timeline.interrupted(self._clock(), reason)
        self.decisions.add("resume", "requests go on elsewhere", reason, self._wall())

    def status(self, status: CellStatus) -> None:
        self.decisions.status(status, self._wall())

    def tick(self, status: Callable[[], CellStatus]) -> None:
        self.history.tick(self._clock(), self._wall(), status)

    def recent(self, running: Iterable[RunningRequest], limit: int) -> dict[str, Any]:
        """Requests that run and requests that ended, newest first."""
        now = self._clock()
        latest = sorted(running, key=lambda each: each.timeline.arrival_s, reverse=True)
        return {
            "running": [self._tell(each, now) for each in latest[: min(limit, MAX_RUNNING)]],
            "ended": list(self._ended)[::-1][:limit],
        }

    def _tell(self, running: RunningRequest, now: float) -> dict[str, Any]:
        arrived = self._wall() - (now - running.timeline.arrival_s)
        return {"arrived_at": round(arrived, 3), **describe(running, now)}
