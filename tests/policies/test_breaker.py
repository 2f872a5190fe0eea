"""When a node counts as slow, and when it is believed to be well again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pd.policies.breaker import Breaker, BreakerOptions, Circuit, expected_s

OPTIONS = BreakerOptions(factor=5.0, retry_s=10.0)


def fed(breaker: Breaker, *steps: float, now: float = 0.0) -> Breaker:
    for step_s in steps:
        breaker.observe(step_s, 0.01, now)
    return breaker


def test_a_few_slow_steps_are_nothing() -> None:
    breaker = fed(Breaker(OPTIONS), *[0.2] * 4, 0.01, *[0.2] * 4)
    assert breaker.admits and breaker.circuit is Circuit.CLOSED
    assert fed(breaker, 0.2).circuit is Circuit.OPEN


def test_it_is_tried_with_one_prompt_and_trusted_again() -> None:
    breaker = fed(Breaker(OPTIONS), *[0.2] * 5)
    assert not breaker.admits and not breaker.tick(9.9)
    assert breaker.tick(10.0) and breaker.admits
    breaker.sent()
    assert not breaker.admits
    fed(breaker, 0.01, 0.02, now=11.0)
    assert breaker.circuit is Circuit.HALF_OPEN
    assert fed(breaker, 0.01, now=12.0).circuit is Circuit.CLOSED
    assert breaker.at_rest and breaker.admits


def test_it_is_left_alone_longer_while_it_stays_slow() -> None:
    breaker = fed(Breaker(OPTIONS), *[0.2] * 5)
    now, waits = 0.0, []
    for _ in range(6):
        since = now
        while not breaker.tick(now):
            now += 1.0
        waits.append(now - since)
        fed(breaker, 0.2, 0.2, now=now)
    assert waits == [10.0, 20.0, 40.0, 80.0, 80.0, 80.0]


def test_one_slow_step_while_it_is_tried_is_chance() -> None:
    breaker = fed(Breaker(OPTIONS), *[0.2] * 5)
    assert breaker.tick(10.0)
    breaker.sent()
    fed(breaker, 0.01, 0.2, now=11.0)
    assert breaker.circuit is Circuit.HALF_OPEN and breaker.admits  # with one more prompt
    fed(breaker, 0.01, 0.2, now=12.0)
    assert breaker.circuit is Circuit.HALF_OPEN
    assert fed(breaker, 0.01, now=12.0).circuit is Circuit.CLOSED


def test_two_slow_steps_in_a_row_while_it_is_tried_are_not() -> None:
    breaker = fed(Breaker(OPTIONS), *[0.2] * 5)
    assert breaker.tick(10.0)
    assert fed(breaker, 0.01, 0.2, 0.2, now=11.0).circuit is Circuit.OPEN
    assert not breaker.tick(30.9) and breaker.tick(31.0)  # twice as long as before


def test_off() -> None:
    assert fed(Breaker(BreakerOptions(factor=0.0)), *[9.0] * 50).circuit is Circuit.CLOSED


def test_peers_count_before_the_node_itself() -> None:
    assert expected_s(1.0, [0.1, 0.2, 5.0]) == 0.2
    assert expected_s(1.0, []) == 1.0
    assert expected_s(None, []) is None
    assert expected_s(0.0, []) is not None


@given(st.lists(st.floats(0.001, 0.049), max_size=60))
def test_steps_within_the_factor_never_open_it(steps: list[float]) -> None:
    assert fed(Breaker(OPTIONS), *steps).admits
