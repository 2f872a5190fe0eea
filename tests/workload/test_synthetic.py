"""Generators: determinism, rates, burstiness, lengths, and what prompts share."""

from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.workload.lengths import Constant, Empirical, LogNormal, Uniform, parse_lengths
from pd.workload.prompts import prompt_tokens
from pd.workload.synthetic import (
    SharedPrefixes,
    Turns,
    conversations,
    independent,
    with_shared_prefixes,
)
from pd.workload.times import fixed_times, gamma_times, poisson_times


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_rate_and_the_burstiness_asked_for(cv: float) -> None:
    times = list(islice(gamma_times(4.0, cv, random.Random(1)), 40_000))
    gaps = [b - a for a, b in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_fixed_times_do_not_drift() -> None:
    times = list(islice(fixed_times(3.0), 3_000_001))
    assert times[0] == 0 and times[-1] == 1_000_000.0


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_must_be_positive(rate: float) -> None:
    for times in (poisson_times(rate, random.Random(0)), fixed_times(rate)):
        with pytest.raises(ValueError, match="rate"):
            next(times)
    with pytest.raises(ValueError, match="variation"):
        next(gamma_times(1.0, 0.0, random.Random(0)))


def test_lognormal_has_its_mean_and_spread() -> None:
    rng = random.Random(3)
    drawn = [LogNormal(500, 0.8).draw(rng) for _ in range(40_000)]
    assert statistics.mean(drawn) == pytest.approx(500, rel=0.03)
    assert statistics.stdev(drawn) == pytest.approx(400, rel=0.06)
    assert max(LogNormal(500, 2.0, 900).draw(rng) for _ in range(2_000)) == 900


def test_lengths_as_they_are_written() -> None:
    assert parse_lengths("512") == Constant(512)
    assert parse_lengths("100-900") == Uniform(100, 900)
    assert parse_lengths("lognormal:500") == LogNormal(500)
    assert parse_lengths("lognormal:500,0.5") == LogNormal(500, 0.5)
    assert parse_lengths("lognormal:500,0.5,900") == LogNormal(500, 0.5, 900)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "0", "-5", "9-3", "1.5", "lognormal:", "lognormal:1,2,3,4", "lognormal:nan",
        "lognormal:inf", "lognormal:5,-1", "gamma:3", "999999999999",
    ],
)  # fmt: skip
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_lengths(text)


@given(st.lists(st.integers(1, 10**6), min_size=1), st.integers(0, 2**32))
def test_empirical_lengths_are_among_those_seen(values: list[int], seed: int) -> None:
    assert Empirical(values).draw(random.Random(seed)) in values


@given(
    num=st.integers(0, 60),
    tokens=st.integers(0, 100),
    block=st.integers(1, 33),
    seed=st.integers(0, 1000),
)
def test_shared_prefixes_are_shared_to_the_token(
    num: int, tokens: int, block: int, seed: int
) -> None:
    shared = SharedPrefixes(3, tokens)
    made = [
        with_shared_prefixes(
            fixed_times(10.0), num, Uniform(1, 50), Constant(4), shared,
            block_tokens=block, seed=seed,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert made[0].arrivals == made[1].arrivals
    prompts = [prompt_tokens(each, block, 50_000) for each in made[0]]
    assert [len(each) for each in prompts] == [each.num_prompt for each in made[0]]
    length = tokens // block * block
    assert len({each[:length] for each in prompts}) <= 3


@settings(max_examples=60)
@given(
    num=st.integers(0, 60),
    head=st.integers(0, 40),
    block=st.integers(1, 33),
    most=st.integers(100, 400),
    think=st.floats(0, 20),
    seed=st.integers(0, 1000),
)
def test_a_turn_begins_with_the_whole_conversation_before_it(
    num: int, head: int, block: int, most: int, think: float, seed: int
) -> None:
    workload = conversations(
        poisson_times(1.0, random.Random(seed)), num, Uniform(1, 60), Uniform(1, 30),
        Turns(Uniform(1, 5), think_s=think), SharedPrefixes(2, head),
        block_tokens=block, most_tokens=most, seed=seed,
    )  # fmt: skip
    assert len(workload) == num
    assert all(each.num_prompt <= most for each in workload)
    sessions: dict[str, list[int]] = {}
    for number, each in enumerate(workload):
        sessions.setdefault(each.session, []).append(number)
    texts = [prompt_tokens(each, block, 50_000) for each in workload]
    for numbers in sessions.values():
        for before, after in pairwise(numbers):
            asked = workload.arrivals[before]
            assert texts[after][: len(texts[before])] == texts[before]
            assert len(texts[after]) > len(texts[before]) + asked.num_output
    lasts = [texts[numbers[-1]] for numbers in sessions.values() if len(texts[numbers[-1]]) > 60]
    assert len(set(lasts)) == len(lasts), "two conversations are the same"


def test_conversations_are_the_earliest_turns_of_all() -> None:
    """Stopping at the number of turns must not thin out the end: every session that began
    before the last turn is there."""
    starts = list(islice(poisson_times(1.0, random.Random(5)), 5000))
    workload = conversations(
        iter(starts), 2000, Constant(10), Constant(10), Turns(Constant(8), think_s=20.0), seed=5
    )
    last = workload.arrivals[-1].time_s
    began = sum(start <= last for start in starts)
    assert len({each.session for each in workload}) == began


def test_messages_that_never_fit_are_an_error_not_a_hang() -> None:
    with pytest.raises(ValueError, match="too long"):
        conversations(
            fixed_times(1.0), 5, Constant(500), Constant(1), Turns(Constant(2)), most_tokens=100
        )


def test_independent_requests_are_all_different() -> None:
    workload = independent(fixed_times(100.0), 300, Constant(12), Constant(3))
    assert len({prompt_tokens(each, 16, 50_000) for each in workload}) == 300
    assert workload.rate == pytest.approx(100.0)
