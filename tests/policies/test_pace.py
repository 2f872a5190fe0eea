"""What is learnt of a node from its snapshots: step times, and how fast outputs end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.linear import OnlineLinear
from pd.policies.pace import EventRate, Pace
from pd.types import NodeSnapshot, StepTime

coefficients = st.tuples(*(st.floats(0, 10) for _ in range(3)))


@given(coefficients, st.integers(0, 1000))
def test_a_linear_truth_is_found(truth: tuple[float, float, float], seed: int) -> None:
    rng = random.Random(seed)
    model = OnlineLinear(3)
    for _ in range(300):
        x = (1.0, rng.uniform(0, 64), rng.uniform(0, 1e5))
        model.add(x, sum(c * v for c, v in zip(truth, x, strict=True)))
    for x in ((1.0, 32.0, 5e4), (1.0, 60.0, 9e4)):
        true = sum(c * v for c, v in zip(truth, x, strict=True))
        assert model.predict(x) == pytest.approx(true, rel=0.02, abs=1e-6)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1e6), st.floats(1e-6, 10)),
        min_size=1,
        max_size=40,
    )
)
def test_more_work_is_never_predicted_to_take_less(
    samples: list[tuple[float, float, float]],
) -> None:
    model = OnlineLinear(3)
    for seqs, context, value in samples:
        model.add((1.0, seqs, context), value)
    assert all(c >= 0.0 for c in model.coefficients)
    assert model.predict((1.0, 2.0, 3.0)) <= model.predict((1.0, 5.0, 30.0))


def test_a_load_that_never_changes_is_predicted_as_it_is() -> None:
    model = OnlineLinear(3)
    for _ in range(50):
        model.add((1.0, 8.0, 4000.0), 0.02)
    assert model.predict((1.0, 8.0, 4000.0)) == pytest.approx(0.02, rel=0.01)
    # Nothing says what a sequence adds: no feature gets all of it.
    assert 0.02 < model.predict((1.0, 16.0, 8000.0)) < 0.04


def test_what_is_held_is_not_forgotten() -> None:
    """A thousand samples of one kind say nothing of what the other feature costs."""
    model = OnlineLinear(2, memory=50)
    for x in ((1.0, 0.0), (1.0, 10.0), (1.0, 20.0)):
        model.hold(x, 1.0 + 0.5 * x[1], 3.0)
    for _ in range(1000):
        model.add((1.0, 1.0), 1.5)
    assert model.num_samples == 1003
    assert model.predict((1.0, 20.0)) == pytest.approx(11.0, rel=0.02)


def test_what_is_held_gives_way_to_what_is_seen() -> None:
    model = OnlineLinear(2)
    for x in ((1.0, 0.0), (1.0, 10.0), (1.0, 20.0)):
        model.hold(x, 1.0 + 0.5 * x[1], 3.0)
    for i in range(2000):
        model.add((1.0, float(i % 20)), 2.0 + 1.0 * (i % 20))
    assert model.predict((1.0, 15.0)) == pytest.approx(17.0, rel=0.1)


def test_what_has_changed_is_learnt_anew() -> None:
    model = OnlineLinear(2, memory=50)
    for i in range(500):
        model.add((1.0, float(i % 7)), 1.0)
    for i in range(500):
        model.add((1.0, float(i % 7)), 3.0)
    assert model.predict((1.0, 3.0)) == pytest.approx(3.0, rel=0.01)


def test_nothing_is_known_before_anything_was_seen() -> None:
    assert OnlineLinear(3).coefficients == (0.0, 0.0, 0.0)
    pace = Pace()
    assert pace.step_s(1, 1) is None and pace.tpot_s(1, 1) is None


def step(
    number: int, step_s: float, seqs: int, prompt_tokens: int = 0, prefilled: int = 0
) -> NodeSnapshot:
    return NodeSnapshot(
        "n", "mixed", 1, steps=number, step_s=step_s, step_seqs=seqs, step_context=100 * seqs,
        step_prompt_tokens=prompt_tokens, prefill_tokens=prefilled,
    )  # fmt: skip


def test_a_step_that_two_snapshots_tell_of_counts_once() -> None:
    pace = Pace()
    for number in range(1, 5):
        for _ in range(10):
            pace.observe(step(number, 0.01, 4))
    assert pace.step_s(4, 400) is None
    pace.observe(step(5, 0.01, 4))
    assert pace.step_s(4, 400) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("told", ["all", "those with a prompt"])
def test_prompts_that_ride_along_count_as_often_as_they_do(told: str) -> None:
    """Every fourth step carries 100 tokens of prompt, at a tenth of a millisecond each. A node
    need not tell of the others, which it does not as soon as they are over."""
    pace, prefilled = Pace(), 0
    for number in range(1, 4000):
        tokens = 100 if number % 4 == 0 else 0
        prefilled += tokens
        seqs = 1 + number % 7
        if tokens or told == "all" or number % 41 == 0:
            step_s = 0.005 + 0.001 * seqs + 1e-4 * tokens
            pace.observe(step(number, step_s, seqs, tokens, prefilled))
    assert pace.step_s(8, 800) == pytest.approx(0.013, rel=0.05)
    assert pace.step_s(8, 800, 100) == pytest.approx(0.023, rel=0.05)
    assert pace.tpot_s(8, 800) == pytest.approx(0.0155, rel=0.06)


def test_a_rate_is_events_over_time() -> None:
    rate = EventRate(window_s=10.0)
    assert rate.per_s(5.0) == 0.0
    for i in range(400):
        rate.count(100.0 + i / 4)
    assert rate.per_s(200.0) == pytest.approx(4.0, rel=0.05)
    assert rate.per_s(210.0) < 2.0
    assert rate.per_s(300.0) < 0.01


def test_a_young_rate_is_not_taken_for_a_high_or_a_low_one() -> None:
    rate = EventRate(window_s=20.0)
    for i in range(6):
        rate.count(i / 2)
    assert rate.per_s(3.0) == pytest.approx(2.0, rel=0.25)
    burst = EventRate(window_s=20.0)
    for _ in range(3):
        burst.count(1.0)
    assert burst.per_s(1.0) < 4.0


FIRST = [
    StepTime(0.02 + 0.002 * seqs + 1e-6 * context + 1e-3 * tokens, seqs, context, tokens, tokens)
    for seqs, context, tokens in (
        (0, 0, 400), (0, 0, 100), (1, 64, 0), (1, 1000, 0), (16, 1024, 0), (16, 16_000, 0),
        (8, 512, 100),
    )
]  # fmt: skip


def test_a_node_that_has_timed_steps_is_known_before_its_first_request() -> None:
    assert Pace().step_s(1, 100) is None
    pace = Pace(FIRST)
    assert pace.step_s(8, 2000) == pytest.approx(0.038, rel=0.05)
    assert pace.step_s(0, 0, 200, 200) == pytest.approx(0.22, rel=0.05)


def test_steps_of_one_sequence_do_not_blur_what_many_take() -> None:
    """Times that scatter by a third, all of one sequence: without the first steps the slope is
    whatever they make of it."""
    rng = random.Random(7)
    pace = Pace(FIRST)
    for step in range(1, 400):
        taken = 0.022 * rng.uniform(0.8, 1.3)
        pace.observe(
            NodeSnapshot("d", "decode", 1, steps=step, step_s=taken, step_seqs=1, step_context=100)
        )
    assert pace.step_s(16, 1600) == pytest.approx(0.054, rel=0.2)
    assert pace.per_seq_s(100) == pytest.approx(0.0021, rel=0.3)
