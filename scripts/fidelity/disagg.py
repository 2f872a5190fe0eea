"""Published disaggregated runs, and what rooflines say of them.

The rows say the GPUs and workers of each role, the concurrency and the nominal lengths; a roofline
for each role and a closed loop over them give the mean TTFT and TPOT. Two numbers that no data
sheet has can be calibrated on some of the runs, to predict others.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fidelity.closed_loop import Loop
from fidelity.closed_loop import run as closed_loop_run
from pd.cost.model import CostModel
from pd.cost.shape import SHAPES
from pd.cost.specs import GPUS, Precision, roofline
from pd.cost.tables import rows
from pd.errors import ConfigError

MODELS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-r1",  # the same architecture
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
}
_SHAPES_OF_GPUS = {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300"}
_MOST_REQUESTS = 5000  # in a loop of ten times its concurrency, as the published runs have; or 3


@dataclass(frozen=True)
class Workers:
    """Of one role: how many, and the GPUs of each, `tp` for a sequence's attention times `dp`."""

    count: int
    tp: int
    dp: int


@dataclass(frozen=True)
class Run:
    """One published run and what was measured, in seconds."""

    id: str
    model: str
    gpu: str
    backend: str
    precision: Precision
    num_prompt: int
    num_output: int
    concurrency: int
    prefill: Workers
    decode: Workers
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class Predicted:
    ttft_s: float
    tpot_s: float


def runs(folder: Path) -> Iterator[Run]:
    """Those of the models above whose row says how many workers there were, without repeats."""
    seen = set()
    for row in rows(folder / "aic_silicon_e2e.csv.gz", "mode", "silicon_ttft_ms"):
        found = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
        complete = found and row["prefill_num_workers"] and row["decode_num_workers"]
        if row["mode"] != "disagg" or row["model_path"] not in MODELS or not complete:
            continue
        assert found
        if row["precision"] not in ("bf16", "fp8", "fp4"):
            continue
        run = Run(
            row["id"], MODELS[row["model_path"]], row["system"], row["backend"],
            row["precision"],  # type: ignore[arg-type]
            int(row["isl"]), int(row["osl"]), int(found[1]),
            _workers(row, "prefill"), _workers(row, "decode"),
            float(row["silicon_ttft_ms"]) * 1e-3, float(row["silicon_tpot_ms"]) * 1e-3,
        )  # fmt: skip
        key = (run.model, run.gpu, run.backend, run.ttft_s, run.tpot_s)
        if key not in seen:
            seen.add(key)
            yield run


def _workers(row: dict[str, str], role: str) -> Workers:
    return Workers(
        int(row[f"{role}_num_workers"]),
        int(row[f"{role}_tp_size"]) * int(row[f"{role}_pp_size"]),
        int(row[f"{role}_attention_dp_size"] or 1),
    )


@dataclass(frozen=True)
class Calibration:
    """What data sheets do not say of an engine, as two numbers: how much longer a decode step is
    than the roofline's, and what a hand-off adds to every first token."""

    decode_factor: float = 1.0
    handoff_s: float = 0.0


NONE = Calibration()


def predict(run: Run, calibration: Calibration = NONE) -> Predicted | None:
    """None where the roofline does not cover the run, as where heads cannot be split so. A
    prefill worker with dp takes as many prompts at once."""
    try:
        prefill, decode = (_model(run, workers) for workers in (run.prefill, run.decode))
    except ConfigError:
        return None
    loop = Loop(
        run.concurrency, run.num_prompt, run.num_output, run.prefill.count, run.prefill.dp,
        run.decode.count, waves=max(3, min(10, _MOST_REQUESTS // run.concurrency)),
    )  # fmt: skip
    ttft_s, tpot_s = closed_loop_run(loop, prefill, decode, calibration.decode_factor)
    return Predicted(ttft_s + calibration.handoff_s, tpot_s)


def calibrate(sample: Sequence[Run]) -> Calibration:
    """The factor at which half of the predicted TPOT are too long, and then the hand-off at which
    the median error of TTFT is least."""
    found = NONE
    for _ in range(3):  # longer steps thin out the prompts, which changes TTFT, and the batches
        pairs = _pairs(sample, found)
        ratio = statistics.median(run.tpot_s / guess.tpot_s for run, guess in pairs)
        found = Calibration(found.decode_factor * ratio)
    pairs = _pairs(sample, found)
    handoffs_s = [step / 50 for step in range(100)]

    def error(handoff_s: float) -> float:
        return statistics.median(
            abs((guess.ttft_s + handoff_s) / run.ttft_s - 1) for run, guess in pairs
        )

    return Calibration(found.decode_factor, min(handoffs_s, key=error))


def _pairs(sample: Sequence[Run], calibration: Calibration) -> list[tuple[Run, Predicted]]:
    guesses = ((run, predict(run, calibration)) for run in sample)
    return [(run, guess) for run, guess in guesses if guess is not None]


def _model(run: Run, workers: Workers) -> CostModel:
    gpu = GPUS[_SHAPES_OF_GPUS.get(run.gpu, run.gpu)]
    return roofline(
        gpu, SHAPES[run.model], tp=workers.tp, dp=workers.dp, precision=run.precision,
        kv_bytes=1.0 if run.precision != "bf16" else 2.0,
    )  # fmt: skip
