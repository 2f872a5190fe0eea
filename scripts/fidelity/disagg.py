"""Published disaggregated runs, and what a roofline and two queues say of them.

The runs are closed loops: always `concurrency` requests, each waiting for a prefill worker, then
decoding on one of the decode workers. Mean value analysis of the prefill workers (Schweitzer and
Seidmann's approximations) and the decode step at the batch that follows give TTFT and TPOT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pd.cost.load import StepLoad
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
_ROUNDS = 200


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
    prefill_busy: float


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


def predict(run: Run) -> Predicted | None:
    """None where the model does not cover the run, as where heads cannot be split so."""
    try:
        prefill, decode = (_model(run, workers) for workers in (run.prefill, run.decode))
    except ConfigError:
        return None
    return closed_loop(run, prefill, decode)


def _model(run: Run, workers: Workers) -> CostModel:
    gpu = GPUS[_SHAPES_OF_GPUS.get(run.gpu, run.gpu)]
    return roofline(
        gpu, SHAPES[run.model], tp=workers.tp, dp=workers.dp, precision=run.precision,
        kv_bytes=1.0 if run.precision != "bf16" else 2.0,
    )  # fmt: skip


def closed_loop(run: Run, prefill: CostModel, decode: CostModel) -> Predicted:
    """A prefill worker with dp takes as many prompts at once; its service is a step of them."""
    at_once = run.prefill.dp
    load = StepLoad()
    for _ in range(at_once):
        load += StepLoad.chunk(run.num_prompt)
    service_s = prefill.step_s(load) / at_once
    servers, num = run.prefill.count, run.concurrency
    latency_s = prefill.step_s(load)
    context = run.num_prompt + run.num_output / 2
    tpot_s = decode.step_s(StepLoad.decode(1, int(context)))
    waiting = 0.0
    ttft_s = latency_s
    rate = 0.0
    for _ in range(_ROUNDS):
        # Seidmann: servers as one that is as fast, after a delay of the rest of the service.
        queue_s = service_s / servers * (1 + waiting * (num - 1) / num)
        ttft_s = max(latency_s, latency_s - service_s / servers + queue_s)
        rate = num / (ttft_s + run.num_output * tpot_s)
        waiting = 0.5 * waiting + 0.5 * min(num, rate * queue_s)
        batch = max(1.0, rate * run.num_output * tpot_s / run.decode.count)
        step_s = decode.step_s(StepLoad.decode(round(batch), round(batch * context)))
        tpot_s = 0.5 * tpot_s + 0.5 * step_s
    return Predicted(ttft_s, tpot_s, min(1.0, rate * service_s / servers))
