"""Rate limits: what is let in over any span of time, and what refusals promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.bucket import Bucket, RateLimiter


@given(
    rate=st.floats(0.1, 100),
    capacity=st.floats(0.5, 200),
    asks=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 300)), min_size=1, max_size=60),
)
def test_any_span_takes_no_more_than_the_rate_and_one_bucket(
    rate: float, capacity: float, asks: list[tuple[float, float]]
) -> None:
    bucket = Bucket(rate, capacity)
    now, taken = 0.0, []
    for gap, amount in asks:
        now += gap
        if bucket.wait_s(amount, now) == 0.0:
            bucket.take(amount, now)
            taken.append((now, amount))
    for i, (start, _) in enumerate(taken):
        for j in range(i, len(taken)):
            # The last one may take more than is left.
            before = sum(amount for _, amount in taken[i:j])
            span = taken[j][0] - start
            assert before <= capacity + rate * span + 1e-6


@given(st.floats(0.1, 100), st.floats(0.5, 50), st.floats(0, 100), st.floats(0, 200))
def test_after_the_wait_it_says_there_is_enough(
    rate: float, capacity: float, taken: float, amount: float
) -> None:
    bucket = Bucket(rate, capacity)
    bucket.take(taken, 0.0)
    wait_s = bucket.wait_s(amount, 0.0)
    if wait_s > 1e-3:
        assert bucket.wait_s(amount, wait_s * 0.5) > 0
    assert bucket.wait_s(amount, wait_s + 1e-6) < 1e-5


def test_a_steady_stream_at_the_rate_is_never_refused() -> None:
    bucket = Bucket(10.0, 1.0)
    for tick in range(1000):
        assert bucket.wait_s(1.0, tick * 0.1) < 1e-9
        bucket.take(1.0, tick * 0.1)


def test_more_than_a_bucket_goes_when_it_is_full_and_is_paid_off_after() -> None:
    bucket = Bucket(1.0, 10.0)
    assert bucket.wait_s(50.0, 0.0) == 0.0
    bucket.take(50.0, 0.0)
    assert bucket.level(0.0) == -40.0
    assert bucket.wait_s(1.0, 0.0) == 41.0
    assert bucket.full_in_s(40.0) == 10.0


def test_what_is_given_back_never_overfills_and_time_never_runs_back() -> None:
    bucket = Bucket(1.0, 5.0)
    bucket.take(-100.0, 10.0)
    assert bucket.level(10.0) == 5.0
    bucket.take(5.0, 10.0)
    assert bucket.level(3.0) == 0.0 and bucket.level(11.0) == 1.0


@pytest.mark.parametrize(("rate", "capacity"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_bucket_that_never_fills_is_a_mistake(rate: float, capacity: float) -> None:
    with pytest.raises(ValueError, match="lets nothing in"):
        Bucket(rate, capacity)


def test_a_refused_request_counts_against_neither_limit() -> None:
    limiter = RateLimiter(requests_per_s=2.0, tokens_per_min=60.0)
    assert limiter.admit(1, 59, 0.0) is None
    refusal = limiter.admit(1, 10, 0.0)
    assert refusal is not None and "60 tokens a minute" in refusal.message
    assert refusal.retry_after_s == pytest.approx(9.0)
    assert limiter.requests is not None and limiter.requests.level(0.0) == 1.0
    assert limiter.admit(1, 1, 0.0) is None
    refusal = limiter.admit(1, 0, 0.0)
    assert refusal is not None and "2 requests a second" in refusal.message
    assert refusal.retry_after_s == pytest.approx(0.5)


def test_output_is_paid_for_when_it_is_known() -> None:
    limiter = RateLimiter(None, 60.0)
    assert limiter.admit(5, 10, 0.0) is None
    limiter.generated(100, 0.0)
    refusal = limiter.admit(1, 1, 0.0)
    assert refusal is not None and refusal.retry_after_s == pytest.approx(51.0)
    assert limiter.admit(1, 1, 51.0) is None


def test_no_limit_is_no_limit() -> None:
    limiter = RateLimiter(None, None)
    assert all(limiter.admit(1000, 10**9, 0.0) is None for _ in range(100))
