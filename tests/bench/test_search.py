"""The search for the best rate, against servers whose limit is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.bench.search import RateSearch


def drive(plan: RateSearch, attainment_at: object, count: int = 100) -> int:
    """Runs until the plan is done; returns how many there were."""
    runs = 0
    while (rate := plan.next_rate()) is not None:
        plan.add(rate, round(count * attainment_at(rate)), count)  # type: ignore[operator]
        runs += 1
        assert runs < 200, "the search does not end"
    return runs


@given(st.floats(0.01, 1000), st.floats(0.05, 60), st.floats(0.01, 0.3), st.integers(1, 4))
def test_the_limit_of_a_sharp_server_is_found_within_the_tolerance(
    limit: float, start: float, tolerance: float, repeats: int
) -> None:
    plan = RateSearch(limit * start, tolerance=tolerance, repeats=repeats)
    drive(plan, lambda rate: 1.0 if rate <= limit else 0.2)
    assert plan.best is not None and plan.bracketed
    assert limit / (1 + tolerance) * (1 - 1e-9) <= plan.best.rate <= limit


@given(st.floats(0.5, 20), st.integers(0, 100))
def test_noise_does_not_make_it_endless_or_absurd(limit: float, seed: int) -> None:
    rng = random.Random(seed)
    plan = RateSearch(1.0, repeats=3)
    drive(
        plan,
        lambda rate: min(1.0, max(0.0, 1.0 - 0.1 * (rate / limit) ** 2 + rng.gauss(0, 0.02))),
    )
    assert plan.best is not None
    assert limit / 3 < plan.best.rate < limit * 3
    assert plan.best.attainment >= plan.goal


def test_nothing_holds_and_everything_holds() -> None:
    nothing = RateSearch(1.0, repeats=1)
    runs = drive(nothing, lambda rate: 0.0)
    assert nothing.best is None and runs == 7
    everything = RateSearch(1.0, repeats=1)
    drive(everything, lambda rate: 1.0)
    assert everything.best is not None and not everything.bracketed
    assert everything.best.rate == 2.0**12


def test_a_second_run_is_saved_where_it_could_not_change_the_verdict() -> None:
    plan = RateSearch(1.0, goal=0.9, repeats=2)
    plan.add(1.0, 50, 100)  # even 100 of the next 100 would be 75 %
    assert plan.next_rate() == 0.5
    plan.add(0.5, 85, 100)  # 95 of the next would do
    assert plan.next_rate() == 0.5
    plan.add(0.5, 96, 100)
    assert plan.best is not None and plan.best.rate == 0.5
    assert plan.best.attainment == pytest.approx(0.905)


def test_a_run_that_was_given_up_fails_its_rate() -> None:
    plan = RateSearch(4.0, repeats=3)
    plan.add(4.0, 3, 3, gave_up=True)
    assert plan.next_rate() == 2.0 and plan.best is None


def test_rates_end_where_all_requests_come_at_once() -> None:
    plan = RateSearch(1.0, repeats=1)
    plan.add(1.0, 8, 8)
    plan.add(2.0, 8, 8, all_at_once=True)
    assert plan.next_rate() is None and not plan.bracketed
    assert plan.best is not None and plan.best.rate == 2.0


def test_a_lucky_run_above_a_failing_rate_is_not_the_best() -> None:
    plan = RateSearch(1.0, repeats=1, tolerance=0.5)
    plan.add(1.0, 100, 100)
    plan.add(2.0, 100, 100)
    plan.add(4.0, 10, 100)
    rate = plan.next_rate()
    assert rate is not None and 2.0 < rate < 4.0
    plan.add(rate, 20, 100)
    assert plan.best is not None and plan.best.rate == 2.0


@pytest.mark.parametrize(
    "options",
    [{"start": 0.0}, {"start": 1.0, "goal": 0.0}, {"start": 1.0, "goal": 1.1},
     {"start": 1.0, "tolerance": 0.0}, {"start": 1.0, "repeats": 0}],
)  # fmt: skip
def test_a_search_without_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a search needs"):
        RateSearch(**options)  # type: ignore[arg-type]


def test_another_rate_than_asked_for_is_refused() -> None:
    plan = RateSearch(1.0, repeats=2)
    plan.add(1.0, 95, 100)
    with pytest.raises(ValueError, match="asked for"):
        plan.add(3.0, 95, 100)
