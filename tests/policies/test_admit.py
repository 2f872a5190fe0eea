"""Admission: a bound on who waits, and when to come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pd.policies.admit import admit


def test_admission_is_a_bound_on_who_waits() -> None:
    assert admit(0, 1, 0.0) is None
    assert admit(511, 512, 1e9) is None
    refused = admit(512, 512, 20.0)
    assert refused is not None and refused.retry_after_s == 10.0
    assert "512" in refused.message and "10 s" in refused.message


@given(wait_s=st.floats(0, 1e12), waiting=st.integers(0, 10_000), limit=st.integers(0, 10_000))
def test_the_time_to_retry_is_sane(wait_s: float, waiting: int, limit: int) -> None:
    refused = admit(waiting, limit, wait_s)
    assert (refused is None) == (waiting < limit)
    assert refused is None or 1.0 <= refused.retry_after_s <= 60.0
