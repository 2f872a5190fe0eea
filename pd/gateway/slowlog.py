"""One line in the log for every request that missed its targets, and where its time went.

The line is JSON after a fixed word, for who collects logs; in an overload, when everything is
late, only some are written, and each says how many were not.
"""

from __future__ import annotations

import logging

import msgspec

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
        line = msgspec.json.encode({**_describe(running), "left_out": self._left_out}).decode()
        self._left_out = 0
        log.warning("slow_request %s", line)


def _describe(running: RunningRequest) -> dict[str, object]:
    request, timeline = running.record.request, running.timeline
    stages = timeline.stages
    return {
        "request_id": request.request_id,
        "tenant": request.tenant,
        "tenant_class": request.tenant_class,
        "priority": request.priority,
        "prompt_tokens": len(request.prompt),
        "output_tokens": running.record.num_output,
        "ttft_s": timeline.ttft_s,
        "ttft_target_s": request.slo.ttft_s,
        "tpot_s": timeline.tpot_s,
        "tpot_target_s": request.slo.tpot_s,
        "stages_s": {name: round(value, 6) for name, value in stages.items()},
        "prefill_node": running.prefill,
        "decode_node": running.decode,
        "interruptions": running.interruptions,
        "error": running.record.error,
    }
