"""Workloads: scaling keeps what is shared, prompts are what their ids say."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome, Spread, percentile, summarise
from pd.workload.prompts import prompt_tokens


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    block = draw(st.integers(1, 600))
    now, arrivals = 0.0, []
    for _ in range(draw(st.integers(0, 12))):
        now += draw(st.floats(0, 10))
        num_prompt = draw(st.integers(1, 3000))
        count = -(-num_prompt // block)
        prefix = draw(st.sampled_from([(), tuple(range(count)), tuple(range(7, 7 + count))]))
        arrivals.append(Arrival(now, num_prompt, draw(st.integers(1, 900)), prefix))
    return Workload("drawn", arrivals, block)


@given(workloads(), st.floats(0.01, 10), st.floats(0.001, 3))
def test_scaling_keeps_order_ids_and_invariants(
    workload: Workload, time: float, length: float
) -> None:
    scaled = workload.scaled(time, length)  # the constructor checks the invariants
    for before, after in zip(workload, scaled, strict=True):
        assert after.prefix == before.prefix
        assert after.time_s == before.time_s * time
        if not before.prefix:
            assert abs(after.num_prompt - max(1, before.num_prompt * length)) <= 0.5
        else:
            block = scaled.block_tokens / workload.block_tokens
            assert abs(after.num_prompt - before.num_prompt * block) < 1
    assert scaled.duration_s == pytest.approx(workload.duration_s * time)
    longer = workload.scaled(time, length, output=2.0)
    assert [each.num_output for each in longer] == [2 * each.num_output for each in workload]
    assert [each.num_prompt for each in longer] == [each.num_prompt for each in scaled]


@given(workloads(), st.floats(0.1, 100))
def test_at_rate_gives_the_rate(workload: Workload, rate: float) -> None:
    last_s = max((each.time_s for each in workload), default=0.0)
    # Arrivals that differ by rounding errors only do so by others once they are scaled.
    assume(workload.duration_s == 0.0 or workload.duration_s > 1e-9 * last_s)
    if 0 < workload.rate < math.inf:
        assert workload.at_rate(rate).rate == pytest.approx(rate)
    else:
        with pytest.raises(ValueError, match="rate"):
            workload.at_rate(rate)


@given(workloads(), st.integers(1, 60_000), st.integers(0, 3))
def test_prompts_share_tokens_exactly_as_far_as_their_ids(
    workload: Workload, vocabulary: int, salt: int
) -> None:
    prompts = [prompt_tokens(each, workload.block_tokens, vocabulary, salt) for each in workload]
    for each, tokens in zip(workload, prompts, strict=True):
        assert len(tokens) == each.num_prompt
        assert all(0 <= token < vocabulary for token in tokens)
    for one, a in zip(workload, prompts, strict=True):
        for other, b in zip(workload, prompts, strict=True):
            same = 0
            while same < min(len(one.prefix), len(other.prefix)) and (
                one.prefix[same] == other.prefix[same]
            ):
                same += 1
            shared = min(same * workload.block_tokens, len(a), len(b))
            assert a[:shared] == b[:shared]


def test_another_salt_is_another_prompt() -> None:
    arrival = Arrival(0.0, 40, 1, (1, 2, 3))
    assert prompt_tokens(arrival, 16, 50_000) != prompt_tokens(arrival, 16, 50_000, salt=1)
    assert prompt_tokens(arrival, 16, 50_000) == prompt_tokens(arrival, 16, 50_000)


def test_prompts_are_the_same_in_every_version() -> None:
    assert prompt_tokens(Arrival(0.0, 4, 1, (9,)), 16, 1000) == (373, 443, 996, 718)
    assert prompt_tokens(Arrival(1.5, 4, 1), 16, 1000) == (757, 60, 147, 381)


@pytest.mark.parametrize(
    ("arrivals", "said"),
    [
        ([Arrival(-1.0, 1, 1)], "-1"),
        ([Arrival(2.0, 1, 1), Arrival(1.0, 1, 1)], "arrival 2"),
        ([Arrival(math.nan, 1, 1)], "nan"),
        ([Arrival(math.inf, 1, 1)], "inf"),
        ([Arrival(0.0, 0, 1)], "at least 1"),
        ([Arrival(0.0, 1, 0)], "at least 1"),
        ([Arrival(0.0, 513, 1, (1,))], "1 prefix ids for 513"),
        ([Arrival(0.0, 512, 1, (1, 2))], "2 prefix ids for 512"),
    ],
)
def test_what_is_no_workload_is_refused(arrivals: list[Arrival], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Workload("bad", arrivals)


def test_first_and_window() -> None:
    workload = Workload("w", [Arrival(float(i), 1, 1) for i in range(10)])
    assert len(workload.first(3)) == 3 and len(workload.first(99)) == 10
    window = workload.window(4.0, 7.0)
    assert [each.time_s for each in window] == [0.0, 1.0, 2.0]
    assert workload.rate == 1.0 and workload.first(1).rate == 0.0
    assert Workload("w", [Arrival(1.0, 1, 1)] * 3).rate == math.inf


def outcome(
    ttft: float | None, tpot: float | None, status: str = "ok", slo: SLO | None = None
) -> Outcome:
    return Outcome(Arrival(0.0, 8, 8, slo=slo), ttft, tpot, 8, status, 10.0)  # type: ignore[arg-type]


def test_goodput_counts_requests_within_both_targets() -> None:
    outcomes = [
        outcome(0.5, 0.05),
        outcome(0.5, 0.2),  # TPOT missed
        outcome(2.0, 0.05),  # TTFT missed
        outcome(0.5, None),  # one token: no TPOT to miss
        outcome(None, None, "rejected"),
        outcome(0.5, 0.05, "error"),
        outcome(2.0, 0.2, slo=SLO(3.0, 0.3)),  # its own, looser targets
    ]
    summary = summarise(outcomes, SLO(1.0, 0.1))
    assert summary.num_met == 3
    assert summary.goodput == pytest.approx(0.3)
    assert summary.attainment == pytest.approx(3 / 7)
    assert (summary.num_ok, summary.num_rejected, summary.num_errors) == (5, 1, 1)
    assert summary.throughput == pytest.approx(0.5)


def test_without_targets_whatever_finished_is_good() -> None:
    assert summarise([outcome(99.0, 99.0), outcome(None, None, "error")]).num_met == 1
    assert summarise([]).attainment == 1.0 and summarise([]).goodput == 0.0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_values_that_were_seen(values: list[float]) -> None:
    spread = Spread.of(values)
    assert {spread.p50, spread.p90, spread.p99} <= set(values)
    assert spread.p50 <= spread.p90 <= spread.p99 == percentile(sorted(values), 0.99)
    assert min(values) * (1 - 1e-9) <= spread.mean <= max(values) * (1 + 1e-9)


@given(st.integers(1, 400))
def test_p90_is_not_exceeded_by_nine_in_ten(count: int) -> None:
    values = [float(i) for i in range(1, count + 1)]
    p90 = Spread.of(values).p90
    assert sum(v <= p90 for v in values) >= 0.9 * count - 1e-9
    assert sum(v < p90 for v in values) < 0.9 * count
