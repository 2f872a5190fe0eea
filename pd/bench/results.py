"""A bench as plain data for a JSON file, and several runs as one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from pd.bench.endpoint import Endpoint
from pd.bench.measure import Measured
from pd.bench.search import RateSearch
from pd.types import SLO
from pd.workload.arrival import Workload
from pd.workload.outcome import Spread, Summary, summarise


def run_data(measured: Measured) -> dict[str, Any]:
    return {
        "url": measured.url,
        "rate": measured.rate,
        **summary_data(measured.summary),
        "stopped_s": measured.stopped_s,
        "problems": dict(problems(measured).most_common(10)),
    }


def summary_data(summary: Summary) -> dict[str, Any]:
    """Times in seconds; None where nothing was measured."""
    return {
        "requests": summary.num_requests,
        "ok": summary.num_ok,
        "rejected": summary.num_rejected,
        "errors": summary.num_errors,
        "met": summary.num_met,
        "attainment": summary.attainment,
        "goodput": summary.goodput,
        "throughput": summary.throughput,
        "tokens_per_s": summary.tokens_per_s,
        "duration_s": summary.duration_s,
        **{
            name: _spread(getattr(summary, name))
            for name in ("ttft_s", "tpot_s", "itl_s", "late_s")
        },
    }


def problems(measured: Measured) -> Counter[str]:
    """What was said of requests that did not finish, and how often."""
    return Counter(each.detail for each in measured.outcomes if each.detail)


def endpoint_data(endpoint: Endpoint) -> dict[str, Any]:
    values = asdict(endpoint)
    del values["api_key"]
    return values


def workload_data(workload: Workload) -> dict[str, Any]:
    count = max(1, len(workload))
    return {
        "name": workload.name,
        "requests": len(workload),
        "duration_s": workload.duration_s,
        "rate": workload.rate if math.isfinite(workload.rate) else None,
        "mean_prompt_tokens": workload.num_prompt_tokens / count,
        "mean_output_tokens": workload.num_output_tokens / count,
    }


def search_data(plan: RateSearch) -> dict[str, Any]:
    """`rate` is None where no rate held; `bracketed` false where every rate did."""
    best = plan.best
    return {
        "rate": best.rate if best else None,
        "attainment": best.attainment if best else None,
        "goal": plan.goal,
        "tolerance": plan.tolerance,
        "bracketed": plan.bracketed,
        "trials": [
            {
                "rate": each.rate,
                "attainment": each.attainment,
                "runs": len(each.runs),
                "gave_up": each.gave_up,
                "holds": each.holds(plan.goal),
            }
            for each in plan.trials
        ],
    }


def pooled(runs: Sequence[Measured], slo: SLO | None) -> Summary:
    """Runs one after another as one: all their requests, the sum of their durations."""
    outcomes = [outcome for each in runs for outcome in each.counted]
    duration_s = sum(each.summary.duration_s for each in runs)
    return replace(summarise(outcomes, slo), duration_s=duration_s)


def _spread(spread: Spread) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(spread).items()}
