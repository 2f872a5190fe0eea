"""The prefill scheduler by itself: budgets, chunks, blocks and order."""

from __future__ import annotations

import itertools
from collections import Counter

from cell.workload import make_request
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks import BlockPool
from kvstore.prefix import block_hashes
from kvstore.transfer import OutgoingTransfer
from pd.policies.order import OrderPolicy
from pd.types import PrefillChunk, Work
from prefill_node.scheduler import PrefillScheduler, PrefillTask

ROOT = b"root"
ids = itertools.count(1)


def make_task(
    pool: BlockPool,
    prompt: tuple[int, ...],
    *,
    n: int = 1,
    priority: int = 0,
    arrived: float = 0.0,
) -> PrefillTask:
    number = next(ids)
    request = make_request(f"r{number}", prompt, n=n, priority=priority)
    hashes = block_hashes(prompt, pool.block_size, ROOT)
    task = PrefillTask(Work(request, tuple(range(n))), number, arrived, hashes)
    task.outgoing = OutgoingTransfer(number, "d0", 1)
    return task


def make_scheduler(
    num_blocks: int = 100, *, block_size: int = 4, max_num_seqs: int = 8, order: str = "fcfs"
) -> PrefillScheduler:
    pool = BlockPool(num_blocks, block_size)
    return PrefillScheduler(pool, OrderPolicy(order), max_num_seqs)  # type: ignore[arg-type]


def run(
    scheduler: PrefillScheduler, now: float, budget: int, *, release: bool = True
) -> tuple[PrefillChunk, ...]:
    """One step, after which finished prompts give their blocks back (unless told not to)."""
    chunks = scheduler.plan(now, budget)
    tasks = {id(task.lead): task for task in scheduler.running.values()}
    for chunk in chunks:
        if scheduler.commit(tasks[id(chunk.seq)], chunk) and release:
            scheduler.pool.release(chunk.seq.blocks)
            chunk.seq.blocks = []
    return chunks


def spans(chunks: tuple[PrefillChunk, ...]) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.num_tokens) for chunk in chunks]


def test_prompts_fill_up_what_the_one_before_leaves_of_the_budget() -> None:
    scheduler = make_scheduler()
    first, second = (make_task(scheduler.pool, tuple(range(k, k + 10))) for k in (0, 50))
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.remaining_tokens == 20
    assert spans(run(scheduler, 0.0, 8)) == [(0, 8)]
    assert spans(run(scheduler, 0.0, 8)) == [(8, 2), (0, 6)]
    assert spans(run(scheduler, 0.0, 8)) == [(6, 4)]
    assert run(scheduler, 0.0, 8) == ()
    assert scheduler.remaining_tokens == 0 and len(scheduler) == 0
    assert scheduler.pool.num_free == 100


def test_only_the_last_chunk_samples_and_every_output_does() -> None:
    scheduler = make_scheduler()
    task = make_task(scheduler.pool, tuple(range(9)), n=3)
    scheduler.add(task)
    assert run(scheduler, 0.0, 8)[0].sample == ()
    assert run(scheduler, 0.0, 8)[0].sample == task.seqs


def test_blocks_for_the_whole_prompt_or_none() -> None:
    scheduler = make_scheduler(num_blocks=5)
    small, large = (make_task(scheduler.pool, (k,) * size) for k, size in ((1, 12), (2, 12)))
    scheduler.add(small)
    scheduler.add(large)
    chunks = run(scheduler, 0.0, 8)
    assert [chunk.seq for chunk in chunks] == [small.lead]
    assert scheduler.pool.num_free == 2 and large.lead.blocks == []
    run(scheduler, 0.0, 8)  # ends, and lets go of its blocks
    assert [chunk.seq for chunk in run(scheduler, 0.0, 8)] == [large.lead]


def test_a_prompt_without_room_holds_back_what_comes_after_it() -> None:
    """Otherwise short prompts would starve a long one for ever."""
    scheduler = make_scheduler(num_blocks=4)
    running = make_task(scheduler.pool, (1,) * 12)
    large, small = make_task(scheduler.pool, (2,) * 16), make_task(scheduler.pool, (3,) * 2)
    for task in (running, large, small):
        scheduler.add(task)
    assert [c.seq for c in run(scheduler, 0.0, 99, release=False)] == [running.lead]
    assert run(scheduler, 0.0, 99) == ()
    scheduler.pool.release(running.lead.blocks)
    assert [c.seq for c in run(scheduler, 0.0, 99)] == [large.lead]


def test_at_most_max_num_seqs_run_at_once() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for k in range(5):
        scheduler.add(make_task(scheduler.pool, (k,) * 3))
    assert len(run(scheduler, 0.0, 99)) == 2


def test_a_cached_prefix_is_not_computed_again() -> None:
    scheduler = make_scheduler()
    prompt = tuple(range(10))
    scheduler.add(make_task(scheduler.pool, prompt))
    run(scheduler, 0.0, 99)
    scheduler.add(make_task(scheduler.pool, (*prompt[:8], 98, 99)))
    assert scheduler.remaining_tokens == 2
    assert spans(run(scheduler, 0.0, 99)) == [(8, 2)]
    assert scheduler.cache_hit_tokens == 8 and scheduler.remaining_tokens == 0


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token() -> None:
    scheduler = make_scheduler()
    for _ in range(2):
        task = make_task(scheduler.pool, tuple(range(8)))
        scheduler.add(task)
        chunks = run(scheduler, 0.0, 99)
    assert spans(chunks) == [(4, 4)] and chunks[0].sample == task.seqs


def test_a_block_is_registered_only_once_it_is_full() -> None:
    scheduler = make_scheduler()
    task = make_task(scheduler.pool, tuple(range(10)))
    scheduler.add(task)
    found = []
    for _ in range(5):
        run(scheduler, 0.0, 2)
        found.append(scheduler.pool.peek(task.hashes))
    assert found == [0, 1, 1, 2, 2]


def test_a_more_urgent_prompt_goes_between_the_chunks_of_another() -> None:
    scheduler = make_scheduler(order="priority")
    long = make_task(scheduler.pool, (1,) * 20, priority=1)
    scheduler.add(long)
    run(scheduler, 0.0, 8)
    urgent = make_task(scheduler.pool, (2,) * 6, priority=0)
    scheduler.add(urgent)
    chunks = run(scheduler, 0.0, 8)
    assert [c.seq for c in chunks] == [urgent.lead, long.lead]
    assert spans(chunks) == [(0, 6), (8, 2)]


def test_removing_a_task_wherever_it_stands_leaves_the_counters_right() -> None:
    scheduler = make_scheduler()
    waiting, running = make_task(scheduler.pool, (1,) * 10), make_task(scheduler.pool, (2,) * 10)
    scheduler.add(running)
    run(scheduler, 0.0, 4)
    scheduler.add(waiting)
    assert scheduler.remaining_tokens == 16
    assert scheduler.remove(waiting) and scheduler.remaining_tokens == 6
    assert scheduler.remove(running) and scheduler.remaining_tokens == 0
    assert not scheduler.remove(running) and not scheduler.remove(waiting)
    assert running.lead.blocks, "blocks stay the task's own"


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(0, 3), st.integers(1, 3)),
        min_size=1, max_size=12,
    ),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.sampled_from(["fcfs", "sjf", "edf", "priority"]),
    st.sampled_from([8, 12, 50]),
)  # fmt: skip
def test_every_token_is_computed_once_in_order_within_the_budget(  # type: ignore[no-untyped-def]
    shapes, budgets, order, num_blocks
) -> None:
    """`shapes` are (length, priority, arrival, kind of prompt): some share their beginning."""
    scheduler = make_scheduler(num_blocks, max_num_seqs=3, order=order)
    pool, policy = scheduler.pool, scheduler.policy
    tasks = [
        make_task(pool, tuple(range(kind, kind + length)), priority=priority, arrived=arrived)
        for length, priority, arrived, kind in shapes
    ]
    todo = sorted(tasks, key=lambda task: task.arrived)
    computed: Counter[int] = Counter()
    skipped: dict[int, int] = {}
    budget_of = itertools.cycle(budgets)
    for turn in range(2000):
        now = turn * 0.25
        while todo and todo[0].arrived <= now:
            scheduler.add(todo.pop(0))
        if not todo and not len(scheduler):
            break
        budget = next(budget_of)
        before = {task.transfer_id for task in scheduler.running.values()}
        chunks = scheduler.plan(now, budget)
        by_lead = {id(task.lead): task for task in tasks}
        assert sum(chunk.num_tokens for chunk in chunks) <= budget
        assert len({id(chunk.seq) for chunk in chunks}) == len(chunks)
        planned = [by_lead[id(chunk.seq)] for chunk in chunks]
        keys = [policy.key(task.work, task.arrived, now) for task in planned]
        assert keys == sorted(keys), "chunks are not in policy order"
        for task, chunk in zip(planned, chunks, strict=True):
            if task.transfer_id not in before:
                skipped[task.transfer_id] = chunk.start
                assert chunk.start % pool.block_size == 0
                assert len(task.lead.blocks) == -(-task.num_tokens // pool.block_size)
            assert chunk.start == skipped[task.transfer_id] + computed[task.transfer_id]
            assert chunk.num_tokens > 0
            computed[task.transfer_id] += chunk.num_tokens
            ends = chunk.start + chunk.num_tokens == task.num_tokens
            assert chunk.sample == (task.seqs if ends else ())
            assert scheduler.commit(task, chunk) == ends
            if ends:
                pool.release(task.lead.blocks)
        pool.check()
    else:
        raise AssertionError("not done after 2000 steps")
    for task in tasks:
        assert skipped[task.transfer_id] + computed[task.transfer_id] == task.num_tokens
        assert computed[task.transfer_id] >= 1
    assert scheduler.remaining_tokens == 0 and pool.num_free == pool.num_blocks
    assert scheduler.cache_hit_tokens == sum(skipped.values())
