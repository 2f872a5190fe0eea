"""Rates that hold: the same by whole runs, decided early, found again, broken off in time."""

from __future__ import annotations

import math
import time

import pytest
from tuning import make_problem

from pd.tune.candidate import Candidate, Group
from pd.tune.trial import Task, find_rate, probe, run
from pd.tune.workers import Workers

PROBLEM = make_problem(2)
MIXED = Candidate.of((Group("mixed", 2, "small"),), {"max_num_batched_tokens": 512})
SPLIT = Candidate.of((Group("prefill", 1, "small"), Group("decode", 1, "small")), {})


@pytest.mark.parametrize("candidate", [MIXED, SPLIT])
@pytest.mark.parametrize("rate", [0.5, 12.0, 60.0])
def test_an_early_verdict_is_that_of_the_whole_run(candidate: Candidate, rate: float) -> None:
    early = probe(PROBLEM, candidate, 240, rate, math.inf)
    whole = run(PROBLEM, candidate, 240, rate).summary(PROBLEM.slo)
    assert early.holds == (whole.attainment >= PROBLEM.goal)
    assert early.ended <= 240 and early.met <= whole.num_met


def test_the_highest_rate_holds_and_the_next_does_not() -> None:
    found = find_rate(PROBLEM, Task(MIXED, 240, 1.0, 0.05))
    assert found.finished and found.rate < found.limit <= found.rate * 1.0501
    assert run(PROBLEM, MIXED, 240, found.rate).summary(PROBLEM.slo).attainment >= 0.9
    assert run(PROBLEM, MIXED, 240, found.limit).summary(PROBLEM.slo).attainment < 0.9
    again = find_rate(PROBLEM, Task(MIXED, 240, 1.0, 0.05))
    assert again.probes == found.probes
    elsewhere = find_rate(PROBLEM, Task(MIXED, 240, 50.0, 0.05))
    assert elsewhere.rate == pytest.approx(found.rate, rel=0.1)


def test_below_the_floor_is_one_run() -> None:
    found = find_rate(PROBLEM, Task(MIXED, 240, 500.0, 0.05, floor=400.0))
    assert found.finished and not found.rate and len(found.probes) == 1


def test_nothing_begins_after_the_deadline() -> None:
    found = find_rate(PROBLEM, Task(MIXED, 240, 1.0, 0.05, deadline=time.monotonic() - 1))
    assert not found.finished and not found.probes and not found.rate


def test_a_prompt_that_fits_no_node_is_an_error_of_its_candidate() -> None:
    tiny = MIXED.with_options(kv_cache_gib=1e-5)
    found = find_rate(PROBLEM, Task(tiny, 240, 1.0, 0.05))
    assert found.error and not found.rate


def test_processes_find_the_same() -> None:
    tasks = [Task(each, 50, 2.0, 0.2) for each in (MIXED, SPLIT)]
    with Workers(PROBLEM, 1) as here, Workers(PROBLEM, 2) as there:
        assert [each.probes for each in here.all(find_rate, tasks)] == [
            each.probes for each in there.all(find_rate, tasks)
        ]
        assert {each.rate for each in there.each(find_rate, tasks)} == {
            each.rate for each in here.each(find_rate, tasks)
        }


def test_a_rate_is_not_held_by_too_few_requests() -> None:
    """All at once they are over before anybody could be late."""
    lenient = Task(MIXED, 50, 1000.0, 0.1)
    assert find_rate(PROBLEM, lenient).rate > 200
    strict = Task(MIXED, 50, 1000.0, 0.1, span_s=2.0)
    found = find_rate(PROBLEM, strict)
    assert 0 < found.rate <= len(PROBLEM.workload) / 2.0
    assert all(each.requests >= each.rate * 2.0 for each in found.probes)
