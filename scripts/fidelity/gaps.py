"""What a step of vLLM takes beside its kernels, from runs on another GPU with another model.

Kernel tables do not say it: time between kernels, the host, what a framework adds. It is
estimated a layer, as most of it is between kernels, from published closed-loop runs of Qwen3-32B
on H100s at the smallest batch there is, where every step is nearly the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fidelity.published import operator_tables
from pd.cost.fit import DENSE_KNOTS, fit
from pd.cost.load import StepLoad
from pd.cost.model import CostModel
from pd.cost.shape import SHAPES
from pd.cost.tables import rows

MODEL, PATH, SYSTEM, BACKEND = "qwen3-32b", "Qwen/Qwen3-32B", "h100_sxm", "vllm"
BATCH, MIN_OUTPUT = 8, 512


@dataclass(frozen=True)
class Gap:
    """Of one run, in seconds: measured TPOT, that of the kernels alone, the difference a layer."""

    tp: int
    num_prompt: int
    num_output: int
    measured_s: float
    kernels_s: float

    @property
    def gap_s(self) -> float:
        return (self.measured_s - self.kernels_s) / SHAPES[MODEL].layers


def gaps(folder: Path) -> list[Gap]:
    operators = operator_tables(folder, "h100")
    models: dict[int, CostModel] = {}
    found = []
    for row in runs(folder):
        tp, prompt, output = int(row["tp_size"]), int(row["isl"]), int(row["osl"])
        if tp not in models:
            models[tp] = fit(operators.samples(SHAPES[MODEL], tp), max_knots=DENSE_KNOTS)
        kernels_s = closed_loop_tpot_s(models[tp], BATCH, prompt, output)
        measured_s = float(row["silicon_tpot_ms"]) * 1e-3
        found.append(Gap(tp, prompt, output, measured_s, kernels_s))
    return found


def median_gap_s(found: list[Gap]) -> float:
    return statistics.median(gap.gap_s for gap in found)


def runs(folder: Path) -> Iterator[dict[str, str]]:
    for row in rows(folder / "aic_silicon_e2e.csv.gz", "model_path", "silicon_tpot_ms"):
        if (
            (row["model_path"], row["system"], row["backend"]) == (PATH, SYSTEM, BACKEND)
            and row["mode"] == "agg"
            and not row["precision"]  # BF16
            and int(row["batch_size"]) == BATCH
            and int(row["osl"]) >= MIN_OUTPUT
        ):
            yield row


def closed_loop_tpot_s(model: CostModel, batch: int, num_prompt: int, num_output: int) -> float:
    """Mean time of an output token where `batch` requests are always there: while one decodes,
    each of the others is replaced once, and its prompt rides on one of the steps."""
    context = batch * (num_prompt + num_output // 2)
    step = StepLoad.decode(batch, context)
    with_prompt = StepLoad.decode(batch - 1, context) + StepLoad.chunk(num_prompt)
    extra = model.step_s(with_prompt) - model.step_s(step)
    return model.step_s(step) + (batch - 1) / num_output * extra
