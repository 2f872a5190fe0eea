"""How a gateway has been doing of late: one sample every few seconds, and so many of them.

What `/v1/history` shows. Columns, because that is what is drawn; bounded, because nobody asks for
it to be deleted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from pd.gateway.metrics import GatewayMetrics, Recent
from pd.messages import CellStatus
from pd.workload.outcome import percentile

INTERVAL_S = 2.0
WINDOW_S = 30.0  # over which percentiles are taken
MAX_SAMPLES = 900

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class History:
    """`tick` often; a sample is taken when it is due."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._samples: deque[dict[str, float | None]] = deque(maxlen=MAX_SAMPLES)
        self._next_s = float("-inf")
        self._counts: dict[str, float] = {}
        self._moved: dict[tuple[str, int], float] = {}  # bytes sent, by node and epoch

    def tick(self, now: float, wall_s: float, status: Callable[[], CellStatus]) -> None:
        if now < self._next_s:
            return
        first, elapsed_s = not self._counts, now - self._next_s + INTERVAL_S
        self._next_s = now + INTERVAL_S
        sample: dict[str, float | None] = {"t": round(wall_s, 3)}
        counts = self._metrics.totals()
        # What was counted since the sample before, a second.
        for name, value in counts.items():
            before = self._counts.get(name, value)
            sample[f"{name}_per_s"] = round((value - before) / elapsed_s, 4)
        self._counts = counts
        sample["running"], sample["waiting"] = self._metrics.in_flight()
        sample |= _percentiles("ttft", self._metrics.recent_ttft, now)
        sample |= _percentiles("tpot", self._metrics.recent_tpot, now)
        sample |= self._of_nodes(status(), elapsed_s)
        if not first:  # before there were counts there is nothing to compare with
            self._samples.append(sample)

    def columns(self, since: float = 0.0) -> dict[str, Any]:
        """All samples later than `since`, in Unix time; None where nothing was measured."""
        samples = [sample for sample in self._samples if (sample["t"] or 0.0) > since]
        names: Iterable[str] = self._samples[-1] if self._samples else ("t",)
        return {
            "interval_s": INTERVAL_S,
            "window_s": WINDOW_S,
            "columns": {name: [sample.get(name) for sample in samples] for name in names},
        }

    def _of_nodes(self, status: CellStatus, elapsed_s: float) -> dict[str, float | None]:
        serving = [node for node in status.nodes if node.get("role") != "pool"]
        moved: dict[tuple[str, int], float] = {}
        for node in serving:
            key = (str(node.get("id")), int(node.get("epoch", 0)))
            moved[key] = float(node.get("transferred_bytes", 0))
        # A process that was replaced begins at 0 again, under another epoch.
        sent = sum(value - self._moved.get(key, value) for key, value in moved.items())
        self._moved = moved
        return {
            "nodes": len(serving),
            "waiting_tokens": sum(float(node.get("waiting_tokens", 0)) for node in serving),
            "transferred_mb_per_s": round(max(0.0, sent) / 1e6 / elapsed_s, 4),
        }


def _percentiles(name: str, recent: Recent, now: float) -> dict[str, float | None]:
    values = sorted(recent.since(now - WINDOW_S))
    return {
        f"{name}_{label}": round(percentile(values, share), 6) if values else None
        for label, share in _QUANTILES.items()
    }
