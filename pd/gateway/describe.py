"""A request as a gateway tells of it: in its log, on the live page, over HTTP."""

from __future__ import annotations

from typing import Any

from pd.gateway.stream import RunningRequest

# Where each part of a request's life happens, besides its nodes.
_AT_PREFILL = ("queue", "fetch", "compute")


def outcome_of(running: RunningRequest) -> str:
    """How it ended, or "running"."""
    if not running.record.finished:
        return "running"
    complete = all(seq.finish in ("stop", "length") for seq in running.record.sequences)
    return running.outcome or ("finished" if complete else "cancelled")


def describe(running: RunningRequest, now: float) -> dict[str, Any]:
    """Plain data. Times of `spans` and `interruptions` are seconds after its arrival."""
    record, timeline = running.record, running.timeline
    request, arrival_s = record.request, timeline.arrival_s

    def place(part: str) -> str:
        if part == "admit":
            return "coordinator"
        return running.prefill if part in _AT_PREFILL else running.decode

    over = record.finished
    return {
        "request_id": request.request_id,
        "trace_id": running.trace_id,
        "tenant": request.tenant,
        "tenant_class": request.tenant_class,
        "priority": request.priority,
        "outcome": outcome_of(running),
        "attained": running.attained() if over else None,
        "missed": list(running.missed()) if over else [],
        "prompt_tokens": len(request.prompt),
        "output_tokens": record.num_output,
        "sequences": len(record.sequences),
        "ttft_s": timeline.ttft_s,
        "ttft_target_s": request.slo.ttft_s,
        "tpot_s": timeline.tpot_s,
        "tpot_target_s": request.slo.tpot_s,
        "e2e_s": (timeline.end_s or now) - arrival_s,
        "stages_s": {name: round(value, 6) for name, value in timeline.stages.items()},
        "spans": [
            {
                "name": span.name,
                "start_s": round(span.start_s - arrival_s, 6),
                "end_s": round(span.end_s - arrival_s, 6),
                "where": place(span.name),
            }
            for span in timeline.spans(now)
        ],
        "prefill_node": running.prefill,
        "decode_node": running.decode,
        "placement": _placement(running),
        "attempts": record.attempts,
        "kv_moved_bytes": running.moved_bytes,
        "interruptions": [
            {"at_s": round(each.at_s - arrival_s, 6), "reason": each.reason}
            for each in timeline.interruptions
        ],
        "num_interruptions": running.interruptions,
        "error": record.error,
    }


def _placement(running: RunningRequest) -> dict[str, Any] | None:
    """Why it runs where it does; None before it was placed."""
    for seq in running.record.sequences:
        if seq.admitted is not None:
            return {
                "cached_tokens": seq.admitted.cached_tokens,
                "fetch_from": seq.admitted.fetch_from,
                "predicted_ttft_s": seq.admitted.predicted_ttft_s,
            }
    return None
