"""Where requests' TTFT goes, live and simulated: means of its stages.

Live ones are read from the gateway's `/metrics` before and after a run; the simulator notes the
same things. `http` is what the client saw more than the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fidelity.agreement import Times

STAGES = ("queue", "fetch", "compute", "transfer", "first_step")
_FAMILY = "pd_stage_seconds"

Sums = dict[str, tuple[float, float]]  # by stage: seconds, of how many requests


async def read(http: httpx.AsyncClient) -> Sums:
    """What the gateway has counted until now."""
    response = await http.get("/metrics")
    response.raise_for_status()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(response.text):
        if family.name == _FAMILY:
            for sample in family.samples:
                found.setdefault(sample.labels["stage"], {})[sample.name] = sample.value
    return {
        stage: (values[f"{_FAMILY}_sum"], values[f"{_FAMILY}_count"])
        for stage, values in found.items()
    }


def between(before: Sums, after: Sums, requests: Sequence[Times]) -> dict[str, float]:
    """Mean seconds of the requests in between, and of what HTTP adds to their TTFT."""
    means = {}
    for stage, (seconds, count) in after.items():
        were_s, were = before.get(stage, (0.0, 0.0))
        if count > were:
            means[stage] = (seconds - were_s) / (count - were)
    seen = sum(each.ttft_s or 0.0 for each in requests) / len(requests)
    means["http"] = seen - sum(means.get(stage, 0.0) for stage in ("queue", "fetch", "compute"))
    return means


class Notes:
    """Hears what a simulated cell notes of requests that are submitted from `since_s` on."""

    def __init__(self, since_s: float) -> None:
        self._since_s = since_s
        self._lives: dict[str, dict[str, float]] = {}

    def __call__(self, now: float, kind: str, about: str, more: Mapping[str, Any]) -> None:
        if kind == "submit" and now >= self._since_s:
            self._lives[about] = {"submit": now}
        life = self._lives.get(about)
        if life is None:
            return
        if kind == "prefilled":
            life.update(more)
        elif kind == "first token":
            life["first"] = now
        elif kind == "handed over":
            life["moved"] = now

    def means(self) -> dict[str, float]:
        lives = [life for life in self._lives.values() if "first" in life and "compute_s" in life]
        if not lives:
            return {}
        spent: dict[str, list[float]] = {stage: [] for stage in STAGES[:4]}
        for life in lives:
            ttft = life["first"] - life["submit"]
            spent["queue"].append(ttft - life["fetch_s"] - life["compute_s"])
            spent["fetch"].append(life["fetch_s"])
            spent["compute"].append(life["compute_s"])
            if "moved" in life:
                spent["transfer"].append(max(0.0, life["moved"] - life["first"]))
        return {stage: sum(values) / len(values) for stage, values in spent.items() if values}
