"""The quantile of observed over predicted TTFT that admission allows for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.lateness import Lateness


def test_nothing_was_late_before_the_first() -> None:
    assert Lateness().factor == 1.0


def test_it_settles_where_99_of_100_are_below() -> None:
    rng, lateness = random.Random(1), Lateness()
    ratios = [rng.uniform(0.8, 1.3) for _ in range(20000)]
    late = 0
    for number, ratio in enumerate(ratios):
        late += number > 2000 and ratio > lateness.factor
        lateness.observe(1.0, ratio, 1.0)
    assert 0.002 < late / 18000 < 0.02
    assert 1.2 < lateness.factor < 1.4


def test_it_comes_down_again() -> None:
    lateness = Lateness()
    for _ in range(5):
        lateness.observe(1.0, 3.0, 1.0)
    high = lateness.factor
    for _ in range(5000):
        lateness.observe(1.0, 1.0, 1.0)
    assert high > 1.2 and lateness.factor == pytest.approx(1.0, abs=0.06)


def test_it_does_not_stay_high_where_only_shorter_waits_are_let_in() -> None:
    """Who decides by the factor lets nothing in whose wait times the factor is over the target: at
    2 that is half of it, and of such it has to learn that they are in time again."""
    lateness = Lateness()
    for _ in range(100):
        lateness.observe(1.0, 3.0, 1.0)
    assert lateness.factor == pytest.approx(2.0)
    for number in range(4000):
        predicted = 0.01 * (number % 100) / lateness.factor  # up to what would still be let in
        lateness.observe(predicted, predicted, 1.0)
    assert lateness.factor < 1.2


def test_short_waits_say_nothing() -> None:
    lateness = Lateness()
    for _ in range(100):
        lateness.observe(0.1, 0.2, 1.0)
    assert lateness.factor == 1.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=100))
def test_it_stays_between_one_and_two(seen: list[tuple[float, float, float]]) -> None:
    lateness = Lateness()
    for predicted, observed, target in seen:
        lateness.observe(predicted, observed, target)
        assert 1.0 <= lateness.factor <= 2.0 + 1e-9
