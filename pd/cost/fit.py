"""Fitting a `CostModel` to measured steps.

The model is a sum of terms, each linear in a coefficient that must not be negative: a curve is a
sum of ramps between its knots. So the fit is one non-negative least-squares problem, of relative
errors, robust against outliers, and every phase weighs the same however often it was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pd.cost.curve import Curve
from pd.cost.load import PHASES, Sample, StepLoad
from pd.cost.model import Attention, CostModel
from pd.cost.nnls import robust_nnls
from pd.errors import ConfigError

MIN_SAMPLES = 8  # of prefill and of decode steps each
MIN_SIZES = 3  # different chunk sizes and batch sizes among them
_CLOSEST = 1.05  # ratio of two knots
# Few enough for the hundred or so steps of a profile, which have noise.
_MAX_KNOTS = {"linear": 20, "output": 4, "decode": 10, "mixed": 6}
# For thousands of steps without: chosen by the error on a fifth of them held out.
DENSE_KNOTS = {"linear": 64, "output": 8, "decode": 32, "mixed": 24}


def fit(
    samples: Iterable[Sample],
    *,
    about: Mapping[str, Any] | None = None,
    max_knots: Mapping[str, int] | None = None,
    context_s: float = 0.0,
) -> CostModel:
    """The model that fits best. ConfigError says which steps are missing where there are too few.

    What a mixed step costs beyond its two halves is fitted only if there are mixed steps, and
    reading a token's KV only if some prompts begin after others' KV: else it is `context_s`, since
    whole prompts read as many tokens as they compute, and nothing tells the two apart.
    Links are not: set them with `dataclasses.replace`.
    """
    import numpy as np

    samples = list(samples)
    _check(samples)
    terms = _Terms(samples, {**_MAX_KNOTS, **(max_knots or {})}, context_s)
    matrix = np.array([terms.row(sample.load) for sample in samples])
    seconds = np.array([sample.seconds - terms.known_s(sample.load) for sample in samples])
    counts = {phase: sum(sample.load.phase == phase for sample in samples) for phase in PHASES}
    weights = np.array([counts[sample.load.phase] ** -0.5 for sample in samples])
    model = terms.model(robust_nnls(matrix, seconds, weights).tolist())
    return replace(model, about=dict(about or {}), fit=errors(model, samples))


def errors(model: CostModel, samples: Iterable[Sample]) -> dict[str, Any]:
    """Relative errors of a model: {phase: {samples, mean, p95, bias}}, those of all phases under
    "all". `bias` is the mean with its sign: above 0 where the model says too much."""
    by_phase: dict[str, list[float]] = {}
    for sample in samples:
        error = model.step_s(sample.load) / sample.seconds - 1.0
        by_phase.setdefault(sample.load.phase, []).append(error)
    found: dict[str, list[float]] = {p: by_phase[p] for p in PHASES if p in by_phase}
    found["all"] = [error for each in by_phase.values() for error in each]
    return {phase: _summary(each) for phase, each in found.items() if each}


def _summary(found: Sequence[float]) -> dict[str, float]:
    sizes = sorted(abs(error) for error in found)
    return {
        "samples": len(sizes),
        "mean": sum(sizes) / len(sizes),
        "p95": sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))],
        "bias": sum(found) / len(found),
    }


def _check(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if not 0.0 < sample.seconds < float("inf") or not sample.load.tokens:
            raise ConfigError(f"a step must have work and take time: {sample}")
    prefills = [s.load.prefill_tokens for s in samples if s.load.phase == "prefill"]
    decodes = [s.load.decode_seqs for s in samples if s.load.phase == "decode"]
    for name, of, sizes in (("prefill", "chunk", prefills), ("decode", "batch", decodes)):
        if len(sizes) < MIN_SAMPLES or len(set(sizes)) < MIN_SIZES:
            raise ConfigError(
                f"a fit needs at least {MIN_SAMPLES} {name} steps of at least {MIN_SIZES} {of} "
                f"sizes, but there are {len(sizes)} of {len(set(sizes))}: measure more"
            )


def knots(values: Iterable[float], most: int) -> list[float]:
    """At most so many of the values, evenly spread over their logarithms, first and last among
    them. A curve with a knot where nothing was measured could be anything there, and one with two
    close together follows the noise between them."""
    distinct = sorted({value for value in values if value > 0})
    if len(distinct) > most:
        low, ratio = distinct[0], distinct[-1] / distinct[0]
        wanted = [low * ratio ** (i / (most - 1)) for i in range(most)]
        distinct = sorted({_nearest(distinct, w) for w in wanted})
    kept = distinct[:1]
    for value in distinct[1:]:
        if value >= _CLOSEST * kept[-1]:
            kept.append(value)
        elif value == distinct[-1] and len(kept) > 1:
            kept[-1] = value
    return kept if kept[-1:] == distinct[-1:] else [*kept, *distinct[-1:]]


def _nearest(values: Sequence[float], wanted: float) -> float:
    return min(values, key=lambda value: abs(value / wanted - 1))


class _Ramps:
    """A curve's terms: a constant at its first knot, then the rise from each knot to the next."""

    def __init__(self, places: Sequence[float], *, constant: bool) -> None:
        self.places, self.constant = places, constant

    def __len__(self) -> int:
        return max(0, len(self.places) - (not self.constant))

    def row(self, x: float) -> list[float]:
        if not self.places:
            return []
        row = [1.0 if x > 0 else 0.0] if self.constant else []
        last = len(self.places) - 1
        for i in range(last):
            low, high = self.places[i], self.places[i + 1]
            share = max(0.0, (x - low) / (high - low))
            row.append(share if i + 1 == last else min(1.0, share))
        return row

    def curve(self, rises: Sequence[float]) -> Curve:
        if not self.places or not any(rises):
            return Curve()
        if not self.constant:
            rises = [0.0, *rises]
        points, seconds = [], 0.0
        for place, rise in zip(self.places, rises, strict=True):
            seconds += rise
            points.append((place, seconds))
        return Curve(points)


class _Terms:
    """The columns of the least-squares problem, and the way from its solution to a model."""

    def __init__(
        self, samples: Sequence[Sample], most: Mapping[str, int], context_s: float
    ) -> None:
        loads = [sample.load for sample in samples]
        self.has_context = any(load.prefill_context > load.prefill_tokens for load in loads)
        self.context_s = context_s
        mixed = [load for load in loads if load.num_chunks and load.decode_seqs]
        # One constant for a whole step: the floor of its linear layers and its overhead.
        self.linear = _Ramps(knots([load.tokens for load in loads], most["linear"]), constant=True)
        self.output = _Ramps(knots([load.rows for load in loads], most["output"]), constant=False)
        context = [load.decode_context for load in loads]
        self.decode = _Ramps(knots(context, most["decode"]), constant=True)
        beside = [load.decode_context for load in mixed]
        self.mixed = _Ramps(knots(beside, most["mixed"]), constant=True)
        self.has_mixed = bool(mixed)

    def row(self, load: StepLoad) -> list[float]:
        both = load.num_chunks > 0 and load.decode_seqs > 0
        row = [
            *self.linear.row(load.tokens),
            *self.output.row(load.rows),
            *self.decode.row(load.decode_context),
            load.prefill_pairs,
            float(load.prefill_context) if self.has_context else 0.0,
            float(load.num_chunks),
            float(load.decode_seqs),
        ]
        if self.has_mixed:
            row += self.mixed.row(load.decode_context if both else 0)
            row += [load.decode_seqs, load.prefill_tokens * load.decode_seqs] if both else [0, 0]
        return row

    def known_s(self, load: StepLoad) -> float:
        """What of a step is not to be found."""
        return 0.0 if self.has_context else self.context_s * load.prefill_context

    def model(self, solution: Sequence[float]) -> CostModel:
        rest = list(solution)

        def take(count: int) -> list[float]:
            taken = rest[:count]
            del rest[:count]
            return taken

        linear = self.linear.curve(take(len(self.linear)))
        output = self.output.curve(take(len(self.output)))
        decode = self.decode.curve(take(len(self.decode)))
        pair_s, context_s, chunk_s, decode_seq_s = take(4)
        if not self.has_context:
            context_s = self.context_s
        mixed, mixed_seq_s, pad_s = Curve(), 0.0, 0.0
        if self.has_mixed:
            mixed = self.mixed.curve(take(len(self.mixed)))
            mixed_seq_s, pad_s = take(2)
        attention = Attention(
            pair_s, context_s, chunk_s, decode, decode_seq_s, mixed, mixed_seq_s, pad_s
        )
        return CostModel(linear=linear, output=output, attention=attention)


def split(samples: Sequence[Sample], every: int = 5) -> tuple[list[Sample], list[Sample]]:
    """(to fit, to check): every so many of a phase's samples is held out, the first and last of
    its sizes never."""
    fitted: list[Sample] = []
    held: list[Sample] = []

    def order(sample: Sample) -> tuple[int, int]:
        return sample.load.tokens, sample.load.decode_context

    for phase in PHASES:
        members = sorted((s for s in samples if s.load.phase == phase), key=order)
        for place, sample in enumerate(members):
            inner = 0 < place < len(members) - 1
            (held if inner and place % every == every // 2 else fitted).append(sample)
    return fitted, held
