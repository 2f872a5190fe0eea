"""Estimates: more nodes and later targets never make them lower, and they are near simulations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_cells import random_workload
from tuning import make_fleet, make_problem

from pd.tune.candidate import Candidate, Group
from pd.tune.demand import Demand
from pd.tune.estimate import Estimator
from pd.tune.result import rank_correlation
from pd.tune.trial import Task, find_rate
from pd.types import SLO

WORKLOAD = random_workload(3, count=240)


def rate(groups: dict[str, int], slo: SLO, **options: object) -> float:
    problem = make_problem(slo=slo)
    made = tuple(Group(role, count, "small") for role, count in groups.items())  # type: ignore[arg-type]
    estimator = Estimator(problem.fleet, problem.base, Demand.of(WORKLOAD, slo), 0.9)
    return estimator.rate(Candidate.of(made, {"max_num_batched_tokens": 512, **options}))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([{"mixed": 1}, {"prefill": 1, "decode": 1}, {"prefill": 2, "decode": 1}]),
    st.floats(0.2, 5.0), st.floats(0.02, 0.3), st.floats(1.0, 3.0),
)  # fmt: skip
def test_more_and_later_is_never_less(
    groups: dict[str, int], ttft_s: float, tpot_s: float, factor: float
) -> None:
    base = rate(groups, SLO(ttft_s, tpot_s))
    assert base >= 0
    assert rate(groups, SLO(ttft_s * factor, tpot_s)) >= base * 0.999
    assert rate(groups, SLO(ttft_s, tpot_s * factor)) >= base * 0.999
    assert rate({role: 2 * count for role, count in groups.items()}, SLO(ttft_s, tpot_s)) >= base


def test_targets_that_nothing_meets() -> None:
    assert rate({"mixed": 3}, SLO(0.001, None)) == 0.0
    assert rate({"prefill": 2, "decode": 1}, SLO(None, 0.001)) == 0.0


def test_what_prompts_share_is_known() -> None:
    demand = Demand.of(WORKLOAD, SLO())
    assert 0 < demand.distinct < WORKLOAD.num_prompt_tokens
    assert any(again for _, again, _ in demand.prompts)
    assert all(again < prompt for prompt, again, _ in demand.prompts)


@pytest.mark.parametrize("groups", [{"mixed": 2}, {"prefill": 1, "decode": 1}])
def test_an_estimate_is_near_what_is_simulated(groups: dict[str, int]) -> None:
    problem = make_problem(2, slo=SLO(0.5, 0.06))
    made = tuple(Group(role, count, "small") for role, count in groups.items())  # type: ignore[arg-type]
    candidate = Candidate.of(made, {"max_num_batched_tokens": 512})
    guess = rate(groups, problem.slo)
    found = find_rate(problem, Task(candidate, 240, guess, 0.1))
    assert found.finished and found.rate / 3 <= guess <= found.rate * 3


@pytest.mark.parametrize("tpot_s", [0.03, 0.06])
def test_chunks_that_adapt_are_of_the_best_size_allowed(tpot_s: float) -> None:
    sizes = (64, 128, 256, 512)
    slo = SLO(0.5, tpot_s)
    fixed = [
        rate({"mixed": 2}, slo, max_num_batched_tokens=size, chunk_sizes="fixed") for size in sizes
    ]
    adaptive = [rate({"mixed": 2}, slo, max_num_batched_tokens=size) for size in sizes]
    assert adaptive == pytest.approx([max(fixed[: i + 1]) for i in range(len(sizes))])
    assert max(fixed) > min(fixed)
    without = SLO(0.5, None)  # then nothing says how small
    assert rate({"mixed": 2}, without) == rate({"mixed": 2}, without, chunk_sizes="fixed")


def test_rank_correlation() -> None:
    assert rank_correlation([(1, 1), (2, 2)]) is None
    assert rank_correlation([(1, 5), (2, 6), (9, 7)]) == 1.0
    assert rank_correlation([(1, 7), (2, 6), (9, 5)]) == -1.0
    assert make_fleet().num_gpus == 3
