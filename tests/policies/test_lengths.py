"""How long outputs are lately."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.lengths import OutputLengths, RecentMean


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 30)), min_size=1, max_size=60))
def test_a_mean_is_of_what_it_was_given(values: list[tuple[float, float]]) -> None:
    mean, now = RecentMean(), 0.0
    assert not mean.known and mean.value == 0.0
    for value, after_s in values:
        now += after_s
        mean.add(value, now)
    least, most = min(v for v, _ in values), max(v for v, _ in values)
    assert mean.known
    assert least * (1 - 1e-9) - 1e-9 <= mean.value <= most * (1 + 1e-9) + 1e-9


def test_a_mean_forgets_by_time_but_never_all_that_came() -> None:
    busy, rare = RecentMean(), RecentMean()
    for number in range(1000):
        busy.add(1.0, number / 100)
    for number in range(2000):
        busy.add(2.0, 10.0 + number / 100)
    assert busy.value == pytest.approx(2.0, abs=0.15)
    for number in range(100):
        rare.add(number % 2, 60.0 * number)
    assert rare.value == pytest.approx(0.5, abs=0.05)


def test_lengths_follow_what_is_asked_for_and_how_much_of_it_is_used() -> None:
    lengths = OutputLengths()
    assert lengths.mean is None
    lengths.asked(100, 0.0)
    assert lengths.mean == 100.0  # all of it, until one has ended
    for number in range(50):
        lengths.ended(20, 100, number / 10)
    assert lengths.mean == pytest.approx(20.0)
    for number in range(200):
        lengths.asked(400, 5.0 + number / 4)  # before one of them has ended
    assert lengths.mean == pytest.approx(80.0, rel=0.02)
    lengths.ended(0, 400, 60.0)  # nothing came of it: that says nothing
    assert lengths.mean == pytest.approx(80.0, rel=0.02)
