#!/usr/bin/env python
"""Predictions for GPUs against published measurements: scripts/check_fidelity_gpu.py --help

1. Llama-3.1-8B on an RTX PRO 6000: a cost model fitted to published times of vLLM's kernels and
   one live node core on a virtual clock, against the 300 requests that vLLM really served.
2. Disaggregated runs of two models on several GPUs: rooflines, against their mean TTFT and TPOT,
   alone and with two numbers calibrated on the runs of one kind of GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchlib.environment import environment
from benchlib.report import percentile, show_table, write_json
from fidelity.disagg import NONE, calibrate, predict, runs
from fidelity.gaps import MODEL, gaps, median_gap_s
from fidelity.one_node import Asked, Served, serve
from fidelity.published import DEFAULT_DIR, RTX, layer_tables

from pd.cost.fit import DENSE_KNOTS, fit
from pd.cost.model import CostModel
from pd.cost.shape import SHAPES
from pd.cost.tables import rows
from pd.node.core import NodeLimits
from pd.report.chart import Line, Panel, write_chart

LIMITS = NodeLimits(max_num_batched_tokens=2048, max_num_seqs=128)
CALIBRATED_ON = "h200_sxm"
NUM_BLOCKS = 32768  # as many as the GPU has room for; none is ever preempted
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.mean,
    "median": statistics.median,
    "p90": lambda values: percentile(values, 0.90),
    "p99": lambda values: percentile(values, 0.99),
}
TO_BEAT = {("TTFT", "mean"): -0.040, ("TTFT", "median"): -0.086, ("TTFT", "p90"): -0.044,
           ("TTFT", "p99"): -0.020, ("TPOT", "mean"): -0.010, ("TPOT", "median"): 0.0,
           ("TPOT", "p90"): 0.005, ("TPOT", "p99"): 0.006}  # fmt: skip


def requests(folder: Path) -> tuple[list[Asked], list[Served]]:
    """What was asked and what vLLM made of it, in the order of arrival."""
    found = list(rows(folder / f"{RTX}_vllm_measured.csv.gz", "arrival_s", "ttft_ms", "tpot_ms"))
    asked = [
        Asked(float(row["arrival_s"]), int(row["input_toks"]), int(row["output_toks"]))
        for row in found
    ]
    served = [Served(float(r["ttft_ms"]) * 1e-3, float(r["tpot_ms"]) * 1e-3) for r in found]
    return asked, served


def compare(real: Sequence[Served], predicted: Sequence[Served]) -> dict[str, Any]:
    """{metric: {statistic: {measured_s, predicted_s, error}}}, and errors request by request."""
    report: dict[str, Any] = {}
    for metric, get in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        measured = [float(getattr(each, get)) for each in real]
        guessed = [float(getattr(each, get)) for each in predicted]
        report[metric] = {
            name: {
                "measured_s": of(measured),
                "predicted_s": of(guessed),
                "error": of(guessed) / of(measured) - 1,
            }
            for name, of in STATISTICS.items()
        }
        sizes = [abs(g / m - 1) for g, m in zip(guessed, measured, strict=True)]
        report[metric]["median_error_of_a_request"] = statistics.median(sizes)
    return report


def one_gpu(folder: Path) -> tuple[dict[str, Any], list[Served], list[Served]]:
    """The report, what was measured and what was predicted with gaps."""
    kernels = fit(layer_tables(folder), max_knots=DENSE_KNOTS)
    layers = SHAPES["llama-3.1-8b"].layers
    of_others = gaps(folder)
    gap_s = median_gap_s(of_others)
    stepping = replace(kernels, overhead_s=gap_s * layers)
    asked, real = requests(folder)
    predictions = {
        "kernels alone": serve(asked, kernels.step_s, LIMITS, num_blocks=NUM_BLOCKS),
        "kernels and gaps": serve(asked, stepping.step_s, LIMITS, num_blocks=NUM_BLOCKS),
    }
    report = {
        "fit": kernels.fit,
        "gap_us_a_layer": gap_s * 1e6,
        "gap_from": f"{len(of_others)} runs of {MODEL} by vLLM on H100s",
        "overhead_ms": stepping.overhead_s * 1e3,
        **{name: compare(real, found) for name, found in predictions.items()},
        "to_beat": {f"{metric} {name}": error for (metric, name), error in TO_BEAT.items()},
        "sensitivity": sensitivity(asked, real, kernels),
    }
    return report, real, predictions["kernels and gaps"]


def sensitivity(
    asked: list[Asked], real: list[Served], kernels: CostModel
) -> dict[str, dict[str, float]]:
    """Errors of the means by the overhead assumed: how much hangs on that one number."""
    found = {}
    for overhead_ms in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        model = replace(kernels, overhead_s=overhead_ms * 1e-3)
        errors = compare(real, serve(asked, model.step_s, LIMITS, num_blocks=NUM_BLOCKS))
        found[f"{overhead_ms:g} ms"] = {
            f"{metric} {name}": errors[metric][name]["error"]
            for metric in ("TTFT", "TPOT")
            for name in ("mean", "median", "p99")
        }
    return found


def disaggregated(folder: Path) -> dict[str, Any]:
    """Errors by model and GPU: of rooflines alone, and of those calibrated on one GPU's runs."""
    listed = list(runs(folder))
    calibration = calibrate([run for run in listed if run.gpu == CALIBRATED_ON])
    report: dict[str, Any] = {"calibrated_on": CALIBRATED_ON, "calibration": vars(calibration)}
    for name, applied in (("roofline", NONE), ("calibrated", calibration)):
        groups: dict[str, list[tuple[float, float]]] = {}
        details: list[dict[str, Any]] = []
        for run in listed:
            guess = predict(run, applied)
            if guess is None:
                details.append({"id": run.id, "skipped": "the roofline does not cover it"})
                continue
            error = guess.ttft_s / run.ttft_s - 1, guess.tpot_s / run.tpot_s - 1
            where = "calibrated on" if run.gpu == CALIBRATED_ON else "all others"
            for label in (where, run.gpu):
                groups.setdefault(f"{run.model}, {label}", []).append(error)
            details.append(
                {
                    "id": run.id, "concurrency": run.concurrency, "prefill": vars(run.prefill),
                    "decode": vars(run.decode), "measured_ttft_s": run.ttft_s,
                    "predicted_ttft_s": guess.ttft_s, "measured_tpot_s": run.tpot_s,
                    "predicted_tpot_s": guess.tpot_s,
                }
            )  # fmt: skip
        report[name] = {
            "groups": {label: group(found) for label, found in sorted(groups.items())},
            "runs": details,
        }
    return report


def group(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    report: dict[str, Any] = {"runs": len(found)}
    for place, metric in enumerate(("TTFT", "TPOT")):
        errors = [each[place] for each in found]
        sizes = [abs(error) for error in errors]
        report[metric] = {
            "median_error": statistics.median(sizes),
            "p90_error": percentile(sizes, 0.9),
            "median_bias": statistics.median(errors),
        }
    return report


def show(one: dict[str, Any], many: dict[str, Any]) -> None:
    rows_ = [
        [f"{metric} {name}", f"{one['kernels alone'][metric][name]['measured_s'] * 1e3:,.1f}",
         *(f"{one[kind][metric][name]['error']:+.1%}" for kind in ("kernels alone",
                                                                  "kernels and gaps")),
         f"{TO_BEAT[metric, name]:+.1%}"]
        for metric in ("TTFT", "TPOT")
        for name in STATISTICS
    ]  # fmt: skip
    headings = ["", "vLLM, ms", "kernels alone", "and gaps", "LLMServingSim"]
    show_table("RTX PRO 6000, Llama-3.1-8B, 300 requests: error", headings, rows_)
    print(f"gaps: {one['gap_us_a_layer']:.1f} us a layer, {one['overhead_ms']:.2f} ms a step")
    rows_ = [
        [label, str(each["runs"]),
         *(f"{kind['groups'][label][metric]['median_error']:.0%} "
           f"({kind['groups'][label][metric]['median_bias']:+.0%})"
           for kind in (many["roofline"], many["calibrated"])
           for metric in ("TTFT", "TPOT"))]
        for label, each in many["roofline"]["groups"].items()
    ]  # fmt: skip
    headings = [
        "disaggregated runs",
        "number",
        "TTFT",
        "TPOT",
        "TTFT calibrated",
        "TPOT calibrated",
    ]
    show_table("median error (bias) of rooflines", headings, rows_)
    print(f"calibrated on {many['calibrated_on']}: {many['calibration']}")


def draw(path: Path, real: Sequence[Served], predicted: Sequence[Served]) -> None:
    """Shares of requests by TTFT and TPOT, measured and predicted."""
    panels = []
    for title, get, ticks in (
        ("TTFT", "ttft_s", (0.03, 0.1, 0.3, 1, 3, 10, 30)),
        ("TPOT", "tpot_s", (0.015, 0.02, 0.025, 0.03, 0.035, 0.04)),
    ):
        lines = [
            Line(name, cumulative([getattr(each, get) for each in found]), colour, dash, dots=False)
            for name, found, colour, dash in (
                ("vLLM, measured", real, "#0f172a", ""),
                ("predicted", predicted, "#dc2626", "5 3"),
            )
        ]
        labels = [(tick, f"{tick:g}") for tick in ticks]
        panels.append(Panel(f"{title} of 300 requests", f"{title}, s", "%", labels, lines))
    write_chart(path, "Llama-3.1-8B on an RTX PRO 6000: share of requests served as fast", panels)


def cumulative(values: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(values)
    return [(value, 100 * (i + 1) / len(ordered)) for i, value in enumerate(ordered)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/fidelity_gpu.json"))
    parser.add_argument("--chart", type=Path, default=Path("docs/fidelity_gpu.svg"))
    args = parser.parse_args()
    about = environment()
    one, real, predicted = one_gpu(args.profiles)
    many = disaggregated(args.profiles)
    show(one, many)
    write_json(args.json, {"environment": about, "one_gpu": one, "disaggregated": many})
    draw(args.chart, real, predicted)


if __name__ == "__main__":
    main()
