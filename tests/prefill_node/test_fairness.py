"""Tenants in the prefill scheduler: the service gap, who yields to whom, and who shares a step."""

from __future__ import annotations

import itertools
from dataclasses import replace

from cell.workload import make_request
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks import BlockPool
from kvstore.prefix import block_hashes
from kvstore.transfer import OutgoingTransfer
from pd.policies.fairness import PROMPT_COST
from pd.policies.order import OrderPolicy
from pd.types import PrefillChunk, Work
from prefill_node.scheduler import PrefillScheduler, PrefillTask

LONGEST = 30
ids = itertools.count(1)


def scheduler_of(burst: float = 0.0, order: str = "fcfs") -> PrefillScheduler:
    policy = OrderPolicy(order, fairness="vtc", burst_tokens=burst)  # type: ignore[arg-type]
    return PrefillScheduler(BlockPool(4000, 4), policy, max_num_seqs=64)


def add(
    scheduler: PrefillScheduler, tenant: str, length: int, now: float = 0.0, weight: float = 1.0
) -> PrefillTask:
    number = next(ids)
    prompt = tuple(1000 * number + i for i in range(length))
    request = make_request(f"r{number}", prompt, arrival_s=now)
    request = replace(request, tenant=tenant, weight=weight)
    task = PrefillTask(Work(request, (0,)), number, now, block_hashes(prompt, 4, b"root"))
    task.outgoing = OutgoingTransfer(number, "d0", 1)
    scheduler.add(task)
    return task


def step(scheduler: PrefillScheduler, now: float, budget: int) -> list[tuple[str, int]]:
    """Run one; who was given how many tokens, in order."""
    chunks: tuple[PrefillChunk, ...] = scheduler.plan(now, budget)
    tasks = {id(task.lead): task for task in scheduler.running.values()}
    for chunk in chunks:
        if scheduler.commit(tasks[id(chunk.seq)], chunk):
            scheduler.pool.release(chunk.seq.blocks)
            chunk.seq.blocks = []
    return [(chunk.seq.request.tenant, chunk.num_tokens) for chunk in chunks]


def waits(scheduler: PrefillScheduler, tenant: str) -> bool:
    tasks = [*scheduler.waiting, *scheduler.running.values()]
    return any(task.work.request.tenant == tenant for task in tasks)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(1, LONGEST)),
        min_size=10, max_size=80,
    ),
    st.integers(1, 50),
    st.sampled_from([0.0, 25.0]),
)  # fmt: skip
def test_backlogged_tenants_are_never_further_apart_than_the_bound(
    arrivals: list[tuple[int, str, int]], budget: int, burst: float
) -> None:
    """By tokens computed, chunk for chunk, after every step. The burst counts once: between two
    that were there already there is none."""
    scheduler = scheduler_of(burst)
    bound = 2 * PROMPT_COST * LONGEST + burst
    served = dict.fromkeys("abc", 0.0)
    spans: dict[tuple[str, str], list[float]] = {}
    coming = list(reversed(arrivals))
    now = 0.0
    while coming or len(scheduler):
        for _ in range(coming[-1][0] if coming else 1):
            now += 1.0
            given_to = step(scheduler, now, budget)
            assert given_to or not len(scheduler), "work waits and nothing runs"
            for tenant, num_tokens in given_to:
                served[tenant] += PROMPT_COST * num_tokens
            for f, g in itertools.combinations("abc", 2):
                if waits(scheduler, f) and waits(scheduler, g):
                    gaps = spans.setdefault((f, g), [])
                    gaps.append(served[f] - served[g])
                    assert max(gaps) - min(gaps) <= bound
                else:
                    spans.pop((f, g), None)
        if coming:
            _, tenant, length = coming.pop()
            add(scheduler, tenant, length, now)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, LONGEST)), min_size=1, max_size=60),
    st.sampled_from(["fcfs", "sjf", "edf", "priority"]),
    st.integers(1, 40),
    st.sampled_from([0.0, 100.0]),
)
def test_everything_is_computed_whatever_the_order(
    prompts: list[tuple[str, int]], order: str, budget: int, burst: float
) -> None:
    scheduler = scheduler_of(burst, order)
    for number, (tenant, length) in enumerate(prompts):
        add(scheduler, tenant, length, number * 0.1)
        if number % 3 == 0:
            step(scheduler, number * 0.1, budget)
    for turn in range(2000):
        if not len(scheduler):
            break
        assert step(scheduler, 10.0 + turn, budget)
    assert len(scheduler) == 0 and scheduler.remaining_tokens == 0
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not scheduler.waiting.begun(0.0)


def test_who_comes_back_goes_before_a_long_prompt_that_has_begun() -> None:
    scheduler = scheduler_of()
    for _ in range(3):
        add(scheduler, "heavy", 30)
    assert step(scheduler, 0.0, 10) == [("heavy", 10)]
    add(scheduler, "light", 35, 1.0)  # longer than what it puts off
    assert step(scheduler, 1.0, 20) == [("light", 20)]
    # What it was given is more than the other was when its prompt began, but it was begun first.
    assert step(scheduler, 2.0, 20) == [("heavy", 20)]
    assert step(scheduler, 3.0, 20) == [("light", 15), ("heavy", 5)]


def test_a_step_of_one_that_is_owed_it_has_nobody_else_in_it() -> None:
    scheduler = scheduler_of(burst=20.0)
    for _ in range(4):
        add(scheduler, "heavy", 30)
    step(scheduler, 0.0, 70)  # two are computed, and the third began when 60 had been given
    add(scheduler, "light", 8, 1.0)
    add(scheduler, "light", 8, 1.0)
    assert step(scheduler, 1.0, 100) == [("light", 8), ("light", 8)]
    add(scheduler, "light", 8, 2.0)  # with this one 24: 4 more than it was behind the third
    assert step(scheduler, 2.0, 50) == [("light", 8), ("heavy", 20)]
    assert step(scheduler, 3.0, 50) == [("heavy", 30)]


def test_equals_fill_up_one_anothers_steps() -> None:
    scheduler = scheduler_of(burst=100.0)
    for tenant in "abcdefgh":
        add(scheduler, tenant, 5)
    assert sum(tokens for _, tokens in step(scheduler, 0.0, 40)) == 40


def test_endless_small_prompts_do_not_keep_out_what_has_begun() -> None:
    scheduler = scheduler_of(burst=20.0)
    long = add(scheduler, "heavy", 30)
    step(scheduler, 0.0, 5)
    for turn in range(100):
        add(scheduler, "light", 4, float(turn))
        add(scheduler, "light", 4, float(turn))
        step(scheduler, float(turn), 4)
    assert long.num_remaining == 0


def test_the_policys_order_holds_within_a_tenant_also_for_what_has_begun() -> None:
    scheduler = scheduler_of(order="sjf")
    add(scheduler, "a", 30)
    step(scheduler, 0.0, 5)
    add(scheduler, "a", 6, 1.0)
    assert step(scheduler, 1.0, 4) == [("a", 4)]
    assert sorted(task.num_remaining for task in scheduler.running.values()) == [2, 25]
    assert step(scheduler, 2.0, 4) == [("a", 2), ("a", 2)], "the short one first"
