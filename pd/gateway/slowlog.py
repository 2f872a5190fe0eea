"""One line in the log for every request that missed its targets, and where its time went.

The line has the whole timeline, as JSON after a fixed word (`pd.logs`); in an overload, when
everything is late, only some are written, and each says how many were not.
"""

from __future__ import annotations

import logging

from pd.gateway.describe import describe
from pd.gateway.stream import RunningRequest
from pd.policies.bucket import Bucket

log = logging.getLogger(__name__)

_LINES_PER_S = 1.0
_BURST = 20.0


class SlowLog:
    """Told of every request that ended; writes about those that missed a target."""

    def __init__(self) -> None:
        self._bucket = Bucket(_LINES_PER_S, _BURST)
        self._left_out = 0

    def ended(self, running: RunningRequest, now: float) -> None:
        if running.outcome in ("cancelled", "rejected") or running.attained() is not False:
            return
        if self._bucket.wait_s(1.0, now) > 0:
            self._left_out += 1
            return
        self._bucket.take(1.0, now)
        fields = {**describe(running, now), "left_out": self._left_out}
        self._left_out = 0
        ids = {"request_id": running.id, "trace_id": running.trace_id}
        log.warning("slow_request", extra={**ids, "fields": fields})
