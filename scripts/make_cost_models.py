#!/usr/bin/env python
"""Makes the cost models that come with the package from published measurements.

    python scripts/make_cost_models.py [--profiles ../shared/profiles] [--out pd/cost/data]

Those measured by `pd profile` are in the same folder and are left alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchlib.report import show_table
from fidelity.published import DEFAULT_DIR, layer_tables, operator_tables

from pd.cost.fit import DENSE_KNOTS, fit
from pd.cost.library import names
from pd.cost.model import CostModel
from pd.cost.shape import SHAPES
from pd.cost.specs import GPUS, Efficiency, links_of, roofline

# GPU -> nodes of how many GPUs, of a model of 8 and of one of 70 billion parameters.
OPERATORS = {"a100": ((1,), (4, 8)), "h100": ((1,), (4, 8)), "h200": ((1,), (2, 4, 8))}
ROOFLINES = {"b200": ((1,), (2, 4))}
MODELS = ("llama-3.1-8b", "llama-3.1-70b")
AICONFIGURATOR = {
    "source": "measured operators of ai-dynamo/aiconfigurator, commit 095f58a5, added up",
    "licence": "Apache-2.0",
}
LLMSERVINGSIM = {
    "source": "measured layers of casys-kaist/LLMServingSim, commit 5daddb21 (vLLM 0.19), added up",
    "licence": "MIT",
}


def from_operators(gpu: str, model: str, tp: int, folder: Path) -> CostModel:
    shape = SHAPES[model]
    found = fit(
        operator_tables(folder, gpu).samples(shape, tp),
        about=about(model, gpu, tp),
        max_knots=DENSE_KNOTS,
        # Only whole prompts were measured: what reading their KV takes is the data sheet's.
        context_s=roofline(GPUS[gpu], shape, tp=tp).attention.context_s,
    )
    return finish(found, gpu, shape.layers, tp, AICONFIGURATOR)


def from_layers(folder: Path) -> CostModel:
    model, gpu = "llama-3.1-8b", "rtx-pro-6000"
    layers = SHAPES[model].layers
    found = fit(layer_tables(folder), about=about(model, gpu, 1), max_knots=DENSE_KNOTS)
    return finish(found, gpu, layers, 1, LLMSERVINGSIM)


def finish(found: CostModel, gpu: str, layers: int, tp: int, source: dict[str, str]) -> CostModel:
    """Kernels alone are not a step: what is between them, as in a roofline."""
    gap_s = Efficiency().gap_s * layers
    note = f"overhead_s is an estimate of {Efficiency().gap_s * 1e6:.0f} us a layer, see docs"
    return replace(
        found, overhead_s=gap_s, links=links_of(GPUS[gpu], tp),
        about={**found.about, **source, "note": note},
    )  # fmt: skip


def from_specs(gpu: str, model: str, tp: int) -> CostModel:
    found = roofline(GPUS[gpu], SHAPES[model], tp=tp)
    source = {
        "source": "roofline of data sheets as in ai-dynamo/aiconfigurator, commit 095f58a5",
        "licence": "Apache-2.0",
    }
    return replace(found, about={**found.about, **about(model, gpu, tp), **source})


def about(model: str, gpu: str, tp: int) -> dict[str, object]:
    shape = SHAPES[model]
    return {
        "model": model, "hardware": gpu, "gpus": tp, "tp": tp, "dtype": "bfloat16",
        "kv_bytes_per_token": 2 * shape.kv_values,
        "kv_tokens": int(0.9 * GPUS[gpu].memory_bytes * tp - 2 * shape.params)
        // (2 * shape.kv_values),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--out", type=Path, default=Path("pd/cost/data"))
    args = parser.parse_args()
    made = {"llama-3.1-8b-rtx-pro-6000": from_layers(args.profiles)}
    for gpu, sizes in OPERATORS.items():
        for model, tps in zip(MODELS, sizes):
            for tp in tps:
                made[name(model, gpu, tp)] = from_operators(gpu, model, tp, args.profiles)
    for gpu, sizes in ROOFLINES.items():
        for model, tps in zip(MODELS, sizes):
            for tp in tps:
                made[name(model, gpu, tp)] = from_specs(gpu, model, tp)
    for each, model in made.items():
        model.save(args.out / f"{each}.json")
    rows = [
        [each, *(f"{model.fit[p]['mean']:.1%}" if p in model.fit else "-"
                 for p in ("prefill", "decode", "mixed")),
         f"{model.prefill_s(2048) * 1e3:.1f}",
         f"{model.decode_steps_s(64, 64 * 2048, 1) * 1e3:.1f}"]
        for each, model in made.items()
    ]  # fmt: skip
    headings = ["model", "error prefill", "decode", "mixed", "2,048 tokens, ms", "64 x 2,048, ms"]
    show_table("cost models, mean relative error of the fit", headings, rows)
    print(f"{len(names())} models in {args.out}")


def name(model: str, gpu: str, tp: int) -> str:
    return f"{model}-{gpu}" + (f"-tp{tp}" if tp > 1 else "")


if __name__ == "__main__":
    main()
