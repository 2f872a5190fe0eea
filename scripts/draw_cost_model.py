#!/usr/bin/env python
"""Draws measured steps and the cost model fitted to them: scripts/draw_cost_model.py --help

Dots are the medians that `pd profile --samples` wrote, lines the model between them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from pd.cost.library import find
from pd.cost.load import Sample, StepLoad
from pd.cost.model import CostModel
from pd.cost.store import load_samples
from pd.report.chart import Line, Panel, write_chart

_COLOURS = ("#0f172a", "#2563eb", "#dc2626", "#059669", "#d97706")
_MOST = 5
Place = tuple[int, float]  # which line a sample is on, and where


def prefill_panel(model: CostModel, samples: Iterable[Sample]) -> Panel:
    """One chunk's step by its tokens, a line for what is cached before."""

    def place(load: StepLoad) -> Place:
        return load.prefill_context - load.prefill_tokens, load.prefill_tokens

    chunks = [s for s in samples if s.load.phase == "prefill" and s.load.num_chunks == 1]
    lines = _lines(
        model, chunks, place, "{} cached", lambda start, n: StepLoad.chunk(round(n), start)
    )
    return Panel("a chunk after cached tokens", "tokens of the chunk", "ms", _ticks(lines), lines)


def decode_panel(model: CostModel, samples: Iterable[Sample]) -> Panel:
    """A decode step by its batch, a line for the context of each sequence."""

    def place(load: StepLoad) -> Place:
        return load.decode_context // load.decode_seqs, load.decode_seqs

    steps = [s for s in samples if s.load.phase == "decode"]
    lines = _lines(
        model, steps, place, "context {}",
        lambda each, n: StepLoad.decode(round(n), round(n) * each),
    )  # fmt: skip
    return Panel("a decode step", "sequences", "ms", _ticks(lines), lines)


def _lines(
    model: CostModel,
    samples: Iterable[Sample],
    place: Callable[[StepLoad], Place],
    name: str,
    load: Callable[[int, float], StepLoad],
) -> list[Line]:
    dots: dict[int, list[tuple[float, float]]] = {}
    for sample in samples:
        key, x = place(sample.load)
        dots.setdefault(key, []).append((x, 1e3 * sample.seconds))
    keys = sorted(key for key in dots if len(dots[key]) > 2)
    shown = [keys[i * (len(keys) - 1) // max(1, min(_MOST, len(keys)) - 1)]
             for i in range(min(_MOST, len(keys)))]  # fmt: skip
    lines = []
    for key, colour in zip(shown, _COLOURS):
        found = sorted(dots[key])
        xs = range(round(found[0][0]), round(found[-1][0]) + 1)
        curve = [(float(x), 1e3 * model.step_s(load(key, x))) for x in xs]
        lines.append(Line(name.format(key), found, colour, width=0.0))
        lines.append(Line(name.format(key), curve, colour, dots=False))
    return lines


def _ticks(lines: Iterable[Line]) -> list[tuple[float, str]]:
    top = max(x for line in lines for x, _ in line.points)
    return [(float(1 << i), str(1 << i)) for i in range(round(top).bit_length())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a cost model's name or file")
    parser.add_argument("samples", type=Path, help="the steps it was fitted to")
    parser.add_argument("--out", type=Path, default=Path("docs/cost_model.svg"))
    args = parser.parse_args()
    model, samples = find(args.model), load_samples(args.samples)
    title = f"{model.about['model']} on {model.about['hardware']}: measured (dots) and fitted"
    write_chart(args.out, title, [prefill_panel(model, samples), decode_panel(model, samples)])


if __name__ == "__main__":
    main()
