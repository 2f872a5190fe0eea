"""Order policies, and the waiting queue against the plainest model of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from cell.workload import make_request
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import SLO, Work


def work(num_tokens: int = 4, priority: int = 0) -> Work:
    return Work(make_request("r", tuple(range(num_tokens)), priority=priority), (0,))


def filled(policy: OrderPolicy, *items: tuple[str, Work, float]) -> WaitingQueue[str]:
    queue: WaitingQueue[str] = WaitingQueue(policy)
    for item in items:
        queue.push(*item)
    return queue


def drained(queue: WaitingQueue[str], now: float) -> list[str]:
    return list(iter(lambda: queue.pop(now), None))


def test_first_come_first_served_ignores_length_and_priority() -> None:
    queue = filled(
        OrderPolicy("fcfs"),
        ("second", work(1, priority=-9), 2.0),
        ("first", work(99, priority=9), 1.0),
    )
    assert drained(queue, 3.0) == ["first", "second"]


def test_an_interrupted_stream_came_before_all_that_wait() -> None:
    def resumed() -> Work:
        return Work(make_request("r", (1, 2)), (0,), output=(7,), attempt=1)

    queue = filled(
        OrderPolicy("fcfs"),
        ("first", work(), 1.0), ("again", resumed(), 3.0), ("before", resumed(), 2.0),
    )  # fmt: skip
    assert drained(queue, 4.0) == ["before", "again", "first"]


def test_shortest_first_counts_the_tokens_to_prefill_of_a_resumed_prompt_too() -> None:
    resumed = Work(make_request("r", (1, 2)), (0,), output=(7,) * 10, attempt=1)
    queue = filled(
        OrderPolicy("sjf"), ("resumed", resumed, 0.0), ("short", work(3), 0.0), ("one", work(1), 1)
    )
    assert drained(queue, 1.0) == ["one", "short", "resumed"]


def test_lower_priority_numbers_run_first_and_arrival_breaks_ties() -> None:
    queue = filled(
        OrderPolicy("priority"),
        ("late", work(priority=1), 2.0),
        ("early", work(priority=1), 1.0),
        ("urgent", work(priority=-1), 3.0),
    )
    assert drained(queue, 3.0) == ["urgent", "early", "late"]


@pytest.mark.parametrize("order", ["sjf", "priority"])
def test_what_waited_long_enough_goes_first_oldest_first(order: str) -> None:
    queue = filled(
        OrderPolicy(order, aging_s=10.0),  # type: ignore[arg-type]
        ("old", work(90, priority=9), 0.0),
        ("older", work(99, priority=9), -1.0),
        ("young", work(1, priority=0), 9.5),
    )
    assert queue.peek(8.9) == "young"
    assert queue.peek(9.0) == "older"  # exactly the age is old enough
    assert drained(queue, 10.0) == ["older", "old", "young"]


def test_the_earliest_deadline_goes_first() -> None:
    def due(ttft_s: float | None) -> Work:
        return Work(replace(make_request("r"), slo=SLO(ttft_s)), (0,))

    resumed = replace(due(9.0), output=(5,), attempt=1)
    queue = filled(
        OrderPolicy("edf", aging_s=4.0),
        ("no target", due(None), 0.0),
        ("late", due(5.0), 0.0),
        ("urgent", due(0.5), 3.0),
        ("interrupted", resumed, 3.2),
    )
    assert drained(queue, 100.0) == ["interrupted", "urgent", "no target", "late"]


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60)), min_size=1, max_size=6),
    st.floats(0, 100),
)
def test_no_order_of_what_waits_is_less_late_than_by_deadline(
    prompts: list[tuple[int, int]], now: float
) -> None:
    """Jackson's rule, against every permutation; so if any meets all deadlines, this one does."""

    def lateness(order: Iterable[int]) -> int:
        end, worst = 0, -(10**9)
        for i in order:
            end += prompts[i][0]
            worst = max(worst, end - prompts[i][1])
        return worst

    queue: WaitingQueue[int] = WaitingQueue(OrderPolicy("edf"))
    for i, (length, target) in enumerate(prompts):
        request = replace(make_request("r", tuple(range(length))), slo=SLO(float(target)))
        queue.push(i, Work(request, (0,)), now)
    best = min(map(lateness, itertools.permutations(range(len(prompts)))))
    assert lateness(iter(lambda: queue.pop(now), None)) == best


def test_endless_short_jobs_starve_no_long_one() -> None:
    """A server that short jobs alone keep busy for ever: once old, the long one is next."""
    queue: WaitingQueue[str] = WaitingQueue(OrderPolicy("sjf", aging_s=10.0))
    queue.push("long", work(1000), 0.0)
    now, served = 0.0, ""
    while served != "long":
        queue.push(f"short at {now}", work(1), now)
        served = queue.pop(now) or ""
        now += 1.0
        assert now <= 12.0, "it waits for ever"
    assert now > 10.0, "it was not its turn yet"


@pytest.mark.parametrize("order", ["fcfs", "sjf", "edf", "priority"])
def test_equals_leave_in_the_order_they_came(order: str) -> None:
    names = [f"item {i}" for i in range(20)]
    queue = filled(OrderPolicy(order), *((name, work(), 1.0) for name in names))  # type: ignore[arg-type]
    assert drained(queue, 2.0) == names


def test_an_empty_queue_has_nothing() -> None:
    queue: WaitingQueue[str] = WaitingQueue(OrderPolicy("sjf"))
    assert queue.peek(0.0) is None and queue.pop(0.0) is None
    assert len(queue) == 0 and not queue.remove("never there")


@given(
    order=st.sampled_from(["sjf", "priority"]),
    arrivals=st.lists(
        st.tuples(st.floats(0, 60), st.integers(1, 50), st.integers(-3, 3)), min_size=1, max_size=60
    ),
    service_s=st.floats(0.1, 5.0),
    aging_s=st.floats(0.0, 20.0),
)
def test_starvation_is_bounded(order, arrivals, service_s, aging_s) -> None:  # type: ignore[no-untyped-def]
    """Once an item has aged, only those that arrived before it still go first."""
    policy = OrderPolicy(order, aging_s=aging_s)
    queue: WaitingQueue[tuple[int, float]] = WaitingQueue(policy)
    coming = sorted(arrivals)
    items = [(number, arrived) for number, (arrived, _, _) in enumerate(coming)]
    now, left = 0.0, 0
    while left < len(items) or len(queue):
        while left < len(items) and coming[left][0] <= now:
            arrived, length, priority = coming[left]
            queue.push(items[left], work(length, priority), arrived)
            left += 1
        waiting = list(queue)
        taken = queue.pop(now)
        if taken is not None:
            aged = [item for item in waiting if now - item[1] >= aging_s]
            if aged:
                assert taken[1] == min(arrived for _, arrived in aged)
        now += service_s


@pytest.mark.parametrize("order", ["fcfs", "sjf", "priority"])
def test_a_queue_that_is_never_empty_does_not_grow(order: str) -> None:
    """Short prompts keep coming and long ones leave by age: what has left is not kept."""
    queue: WaitingQueue[object] = WaitingQueue(OrderPolicy(order, aging_s=1.0))  # type: ignore[arg-type]
    queue.push("always here", work(1, priority=-5), 1e9)
    for i in range(2000):
        item = ("long", i)
        queue.push(item, work(50, priority=5), float(i))
        assert queue.remove(item)
    assert len(queue._by_rank) + len(queue._by_age) < 300


@dataclass(eq=False)
class Item:
    work: Work
    arrived: float
    number: int


class QueueMachine(RuleBasedStateMachine):
    """The queue against a list that is searched from end to end."""

    @initialize(
        order=st.sampled_from(["fcfs", "sjf", "priority"]), aging=st.sampled_from([0, 2, 9])
    )
    def start(self, order, aging) -> None:  # type: ignore[no-untyped-def]
        self.policy = OrderPolicy(order, aging_s=aging)
        self.queue: WaitingQueue[Item] = WaitingQueue(self.policy)
        self.items: list[Item] = []
        self.now = 0.0
        self.numbers = itertools.count()

    @rule(length=st.integers(1, 5), priority=st.integers(0, 2), ago=st.integers(0, 3))
    def push(self, length: int, priority: int, ago: int) -> None:
        item = Item(work(length, priority), self.now - ago, next(self.numbers))
        self.items.append(item)
        self.queue.push(item, item.work, item.arrived)

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def pop(self) -> None:
        assert self.queue.pop(self.now) is self.first()
        if self.items:
            self.items.remove(self.first())  # type: ignore[arg-type]

    @precondition(lambda self: self.items)
    @rule(which=st.integers(0, 1000))
    def remove(self, which: int) -> None:
        item = self.items.pop(which % len(self.items))
        assert self.queue.remove(item)
        assert not self.queue.remove(item)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        first = self.first()
        assert self.queue.peek(self.now) is first
        assert len(self.queue) == len(self.items)
        assert set(self.queue) == set(self.items)

    def first(self) -> Item | None:
        return min(
            self.items,
            key=lambda item: (self.policy.key(item.work, item.arrived, self.now), item.number),
            default=None,
        )


TestQueueMachine = QueueMachine.TestCase
