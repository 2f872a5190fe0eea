"""Cost models: never negative, never faster by more work, the same after a round trip."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.cost.curve import Curve
from pd.cost.model import Attention, CostModel, Link, StepLoad
from pd.cost.store import from_json, to_json
from pd.errors import ConfigError
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work

SECONDS = st.floats(0.0, 1.0, allow_nan=False)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    counts = sorted(draw(st.sets(st.integers(1, 5000), max_size=6)))
    seconds = sorted(draw(st.lists(SECONDS, min_size=len(counts), max_size=len(counts))))
    return Curve(zip(counts, seconds))


MODELS = st.builds(
    CostModel,
    overhead_s=SECONDS,
    linear=curves(),
    output=curves(),
    attention=st.builds(
        Attention, SECONDS, SECONDS, SECONDS, curves(), SECONDS, curves(), SECONDS, SECONDS
    ),
    links=st.dictionaries(
        st.sampled_from(["local", "shm", "tcp", "nccl"]),
        st.builds(Link, SECONDS, st.floats(1.0, 1e12)),
    ),
    about=st.dictionaries(st.text(), st.text()),
)
COUNTS = st.integers(0, 10**7)
LOADS = st.builds(StepLoad, COUNTS, st.floats(0, 1e9), COUNTS, COUNTS, COUNTS, COUNTS)


@given(MODELS, LOADS)
def test_no_step_is_negative_and_no_work_takes_no_time(model: CostModel, load: StepLoad) -> None:
    assert 0.0 <= model.step_s(load) < math.inf
    assert model.step_s(StepLoad()) == 0.0


@given(MODELS, LOADS, st.sampled_from([field.name for field in fields(StepLoad)]), COUNTS)
def test_more_of_any_work_is_never_faster(
    model: CostModel, load: StepLoad, name: str, more: int
) -> None:
    heavier = replace(load, **{name: getattr(load, name) + more})
    slack = 1e-12 * model.step_s(heavier)  # sums of floats round
    assert model.step_s(heavier) >= model.step_s(load) - slack


@given(MODELS, st.integers(1, 300), st.integers(1, 100_000), st.integers(0, 60))
def test_decode_steps_together_take_as_long_as_one_by_one(
    model: CostModel, seqs: int, context: int, steps: int
) -> None:
    one_by_one = math.fsum(
        model.step_s(StepLoad.decode(seqs, context + i * seqs)) for i in range(steps)
    )
    together = model.decode_steps_s(seqs, context, steps)
    assert together == pytest.approx(one_by_one, rel=1e-9, abs=1e-12)


@given(MODELS, st.integers(1, 300), st.integers(1, 100_000), st.integers(0, 60), st.integers(0, 60))
def test_a_run_of_decode_steps_can_be_cut_anywhere(
    model: CostModel, seqs: int, context: int, first: int, rest: int
) -> None:
    whole = model.decode_steps_s(seqs, context, first + rest)
    parts = model.decode_steps_s(seqs, context, first)
    parts += model.decode_steps_s(seqs, context + first * seqs, rest)
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-12)


@given(MODELS)
def test_json_round_trip_gives_an_equal_model(model: CostModel) -> None:
    assert from_json(json.loads(json.dumps(to_json(model)))) == model


@given(model=MODELS)
def test_a_file_reads_back_as_it_was_written(
    model: CostModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("models") / "model.json"
    model.save(path)
    assert CostModel.load(path) == model


@given(MODELS, st.integers(0, 500), st.integers(0, 500), st.integers(1, 100))
def test_prefill_in_chunks_is_the_sum_of_its_steps(
    model: CostModel, new: int, cached: int, chunk: int
) -> None:
    starts = range(0, new, chunk)
    steps = [model.step_s(StepLoad.chunk(min(chunk, new - s), cached + s)) for s in starts]
    assert model.prefill_s(new, cached, chunk) == pytest.approx(sum(steps))


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 299))
def test_a_chunk_split_has_the_same_pairs(tokens: int, start: int, cut: int) -> None:
    cut = min(cut, tokens)
    parts = StepLoad.chunk(cut, start) + StepLoad.chunk(tokens - cut, start + cut)
    assert parts.prefill_pairs == StepLoad.chunk(tokens, start).prefill_pairs
    assert parts.prefill_tokens == tokens


def sequence(computed: int) -> Sequence:
    request = Request("r", "g", tuple(range(2, 12)), SamplingParams())
    seq = Sequence(Work(request, (0,)), 0)
    seq.num_computed = computed
    return seq


def test_the_load_of_a_plan() -> None:
    seq = sequence(0)
    chunks = (PrefillChunk(seq, 4, 3), PrefillChunk(seq, 0, 5))
    load = StepLoad.of(BatchPlan(chunks, (sequence(7), sequence(9))))
    # 3 tokens that see 5, 6 and 7 keys; 5 that see 1 to 5.
    assert load == StepLoad(8, 18 + 15, 2, 2, 8 + 10, 7 + 5)
    assert load == StepLoad.chunk(3, 4) + StepLoad.chunk(5) + StepLoad.decode(2, 18)
    assert (load.tokens, load.rows) == (10, 4)


def test_a_curve_is_flat_before_its_first_point_and_goes_on_after_its_last() -> None:
    curve = Curve([(8, 1.0), (16, 1.0), (32, 3.0)])
    assert [curve(n) for n in (0, 1, 8, 16, 24, 32, 40)] == [0, 1, 1, 1, 2, 3, 4]
    assert Curve([(10, 2.0)])(20) == 4.0
    assert Curve()(7) == 0.0


@pytest.mark.parametrize(
    "points", [[(2, 1), (2, 2)], [(0, 1)], [(1, 2), (2, 1)], [(1, -1)], [(1, math.nan)]]
)
def test_a_curve_that_falls_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ConfigError):
        Curve(points)


@given(curves(), st.integers(1, 6000), st.integers(1, 500), st.integers(0, 80))
def test_a_curves_sum_is_that_of_its_terms(curve: Curve, start: int, step: int, count: int) -> None:
    terms = math.fsum(curve(start + i * step) for i in range(count))
    assert curve.sum(start, step, count) == pytest.approx(terms, rel=1e-9, abs=1e-12)


def test_a_transfer_takes_its_latency_and_its_bytes() -> None:
    model = CostModel(links={"shm": Link(0.001, 1e9)})
    assert model.transfer_s(2_000_000, "shm") == pytest.approx(0.003)
    with pytest.raises(ConfigError, match="no path 'tcp'; it has shm"):
        model.transfer_s(1, "tcp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "format"),
        ({"step": []}, "step must be a mapping"),
        ({"step": {"overhead_s": -1.0}}, "overhead_s must be 0 or more"),
        ({"step": {"overhead_s": True}}, "must be a number"),
        ({"step": {"linear": [[1, 2, 3]]}}, r"step.linear must be a list of \[count, seconds\]"),
        ({"step": {"linear": [[2, 1], [1, 1]]}}, "step.linear: a curve's counts"),
        ({"step": {"atention": {}}}, "step has no 'atention'"),
        ({"step": {"attention": {"pairs": 1}}}, "step.attention has no 'pairs'"),
        ({"links": {"shm": {"latency_s": 0}}}, "links.shm lacks bytes_per_s"),
        ({"links": {"shm": {"latency_s": 0, "bytes_per_s": 0}}}, "a bandwidth above 0"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(to_json(CostModel()) | change))
    with pytest.raises(ConfigError, match=message) as caught:
        CostModel.load(path)
    assert "model.json" in str(caught.value)


def test_what_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        CostModel.load(tmp_path / "absent.json")
    (tmp_path / "text").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        CostModel.load(tmp_path / "text")
