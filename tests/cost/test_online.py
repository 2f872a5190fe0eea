"""What a node learns of its own speed: it gets there, stays in bounds, one odd step is little."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.cost.curve import Curve
from pd.cost.load import Phase
from pd.cost.model import Attention, CostModel, Link, StepLoad
from pd.cost.online import HIGHEST, LOWEST, OnlineModel

MODEL = CostModel(
    linear=Curve([(8, 0.01), (512, 0.2)]),
    attention=Attention(pair_s=1e-8, decode=Curve([(100, 0.001), (10_000, 0.05)])),
    links={"shm": Link(0.0, 1e9)},
)
LOADS: dict[Phase, StepLoad] = {
    "prefill": StepLoad.chunk(300),
    "decode": StepLoad.decode(8, 4000),
    "mixed": StepLoad.chunk(64) + StepLoad.decode(8, 4000),
}
PHASES = st.sampled_from(list(LOADS))


@given(st.dictionaries(PHASES, st.floats(0.2, 5.0), min_size=1), st.integers(0, 99))
def test_each_phase_learns_its_own_factor(truth: dict[Phase, float], seed: int) -> None:
    rng, online = random.Random(seed), OnlineModel(MODEL)
    for _ in range(300):
        for phase, factor in truth.items():
            load = LOADS[phase]
            online.observe(load, MODEL.step_s(load) * factor * rng.uniform(0.95, 1.05))
    for phase, factor in truth.items():
        assert online.factor(phase) == pytest.approx(factor, rel=0.05)
        assert online.step_s(LOADS[phase]) == pytest.approx(
            factor * MODEL.step_s(LOADS[phase]), rel=0.05
        )
    assert set(online.factors) == set(truth)


@given(st.lists(st.tuples(PHASES, st.floats(allow_nan=True, allow_infinity=True)), max_size=60))
def test_factors_stay_in_bounds_whatever_is_observed(steps: list[tuple[Phase, float]]) -> None:
    online = OnlineModel(MODEL)
    for phase, seconds in steps:
        online.observe(LOADS[phase], seconds)
    for phase in LOADS:
        assert LOWEST * 0.999 <= online.factor(phase) <= HIGHEST * 1.001


def test_nothing_observed_changes_nothing() -> None:
    online = OnlineModel(MODEL)
    online.observe(StepLoad(), 1.0)
    assert online.factors == {}
    assert online.step_s(LOADS["mixed"]) == MODEL.step_s(LOADS["mixed"])
    assert online.decode_steps_s(8, 4000, 9) == MODEL.decode_steps_s(8, 4000, 9)
    assert online.transfer_s(10**9, "shm") == 1.0


def test_one_odd_step_moves_little() -> None:
    online, load = OnlineModel(MODEL), LOADS["decode"]
    for _ in range(100):
        online.observe(load, MODEL.step_s(load))
    online.observe(load, 1000.0)
    assert online.factor("decode") < 1.04


def test_a_phase_not_seen_has_the_mean_of_the_others() -> None:
    online = OnlineModel(MODEL, {"prefill": 2.0, "decode": 0.5})
    assert online.factor("mixed") == pytest.approx(1.0)
    assert online.prefill_s(100) == pytest.approx(2.0 * MODEL.prefill_s(100))
    assert online.decode_steps_s(8, 4000, 9) == pytest.approx(
        0.5 * MODEL.decode_steps_s(8, 4000, 9)
    )
    assert OnlineModel(MODEL, online.factors).factors == pytest.approx(online.factors)
