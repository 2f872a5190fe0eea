"""Virtual token counters: the published bound on the service gap, weights, and bookkeeping."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.fairness import (
    OUTPUT_COST,
    PROMPT_COST,
    FairQueue,
    VirtualCounters,
    waiting_queue,
)
from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import Request, SamplingParams, Work

BATCH_TOKENS = 60  # M: what fits into the batch
LONGEST_PROMPT = 25


@dataclass(eq=False)
class Job:
    work: Work
    left: int

    @property
    def tenant(self) -> str:
        return self.work.request.tenant

    @property
    def size(self) -> int:
        return len(self.work.request.prompt) + self.work.request.params.max_tokens


def job(tenant: str, num_prompt: int, num_output: int, weight: float = 1.0) -> Job:
    params = SamplingParams(max_tokens=num_output)
    request = Request("r", "g", (1,) * num_prompt, params, tenant=tenant, weight=weight)
    return Job(Work(request, (0,)), num_output)


class Server:
    """Continuous batching: a step lets in what fits, then draws a token of all that runs."""

    def __init__(self) -> None:
        self.queue: FairQueue[Job] = FairQueue(OrderPolicy())
        self.running: list[Job] = []
        self.service: dict[str, float] = {}
        self.now = 0.0

    def submit(self, each: Job) -> None:
        self.queue.push(each, each.work, self.now)

    def give(self, tenant: str, cost: float) -> None:
        self.service[tenant] = self.service.get(tenant, 0.0) + cost

    def step(self) -> None:
        self.now += 1.0
        while (first := self.queue.peek(self.now)) is not None:
            if sum(each.size for each in self.running) + first.size > BATCH_TOKENS:
                break
            num_prompt = len(first.work.request.prompt)
            self.queue.take(first, num_prompt)
            self.give(first.tenant, PROMPT_COST * num_prompt)
            self.running.append(first)
        for each in self.running:
            self.queue.generated(each.work.request, 1)
            self.give(each.tenant, OUTPUT_COST)
            each.left -= 1
        self.running = [each for each in self.running if each.left]

    def waits(self, tenant: str) -> bool:
        return any(each.tenant == tenant for each in self.queue)


jobs = st.builds(
    job, st.sampled_from("abc"), st.integers(1, LONGEST_PROMPT), st.integers(1, 30)
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), jobs), min_size=10, max_size=120))
def test_backlogged_tenants_are_never_further_apart_than_the_bound(
    arrivals: list[tuple[int, Job]],
) -> None:
    server = Server()
    bound = 2 * max(PROMPT_COST * LONGEST_PROMPT, OUTPUT_COST * BATCH_TOKENS)
    spans: dict[tuple[str, str], list[float]] = {}
    coming = list(reversed(arrivals))
    while coming or len(server.queue):
        for _ in range(coming[-1][0] if coming else 1):
            server.step()
            for f, g in itertools.combinations("abc", 2):
                # A span ends where one of the two has nothing waiting.
                if server.waits(f) and server.waits(g):
                    gap = server.service.get(f, 0.0) - server.service.get(g, 0.0)
                    spans.setdefault((f, g), []).append(gap)
                    gaps = spans[f, g]
                    assert max(gaps) - min(gaps) <= bound
                else:
                    spans.pop((f, g), None)
        if coming:
            server.submit(coming.pop()[1])


@given(st.lists(jobs, min_size=1, max_size=60))
def test_no_room_is_left_unused_while_somebody_waits(all_jobs: list[Job]) -> None:
    server = Server()
    for each in all_jobs:
        server.submit(each)
    while (first := server.queue.peek(server.now)) is not None:
        before = len(server.queue)
        fits = sum(each.size for each in server.running) + first.size <= BATCH_TOKENS
        server.step()
        assert not fits or len(server.queue) < before


def test_a_tenant_that_sends_ten_times_as_much_gets_no_more() -> None:
    server = Server()
    for _ in range(200):
        server.submit(job("heavy", 10, 10))
    for _ in range(20):
        server.submit(job("light", 10, 10))
    while server.waits("light"):
        server.step()
    assert server.service["heavy"] <= server.service["light"] + 2 * OUTPUT_COST * BATCH_TOKENS


def test_service_follows_the_weights() -> None:
    server = Server()
    for _ in range(400):
        server.submit(job("gold", 10, 10, weight=3.0))
        server.submit(job("tin", 10, 10))
    for _ in range(600):
        server.step()
    assert server.waits("gold") and server.waits("tin")
    assert server.service["gold"] / server.service["tin"] == pytest.approx(3.0, rel=0.1)


def test_absence_is_not_saved_up() -> None:
    """Who comes back shares from then on, and does not keep everybody else out."""
    server = Server()
    for _ in range(300):
        server.submit(job("busy", 10, 10))
    for _ in range(300):
        server.step()
    before = server.service["busy"]
    for _ in range(300):
        server.submit(job("back", 10, 10))
    for _ in range(100):
        server.step()
    gained = server.service["busy"] - before
    assert gained == pytest.approx(server.service["back"], abs=2 * OUTPUT_COST * BATCH_TOKENS)
    assert gained > 0.4 * (gained + server.service["back"])


def test_the_policys_order_holds_within_a_tenant() -> None:
    queue: FairQueue[Job] = FairQueue(OrderPolicy("sjf"))
    long, short, other = job("a", 9, 1), job("a", 2, 1), job("b", 5, 1)
    for number, each in enumerate((long, short, other)):
        queue.push(each, each.work, float(number))
    order = []
    while (first := queue.peek(3.0)) is not None:
        queue.take(first, len(first.work.request.prompt))
        order.append(first)
    assert order == [other, short, long]
    assert len(queue) == 0 and list(queue) == [] and not queue.remove(long)


def test_what_is_removed_unserved_costs_nothing() -> None:
    queue: FairQueue[Job] = FairQueue(OrderPolicy())
    gone, stays = job("a", 9, 1), job("b", 9, 1)
    queue.push(gone, gone.work, 0.0)
    queue.push(stays, stays.work, 0.0)
    assert queue.remove(gone)
    assert queue.counters.service("a") == 0.0
    assert queue.peek(1.0) is stays and len(queue) == 1


def test_what_has_begun_is_put_off_for_who_was_given_no_more_when_it_began() -> None:
    queue: FairQueue[Job] = FairQueue(OrderPolicy("sjf"))
    begun, same, other = job("a", 50, 1), job("a", 5, 1), job("b", 80, 1)
    queue.push(begun, begun.work, 0.0)
    queue.begin(begun, 50)
    queue.push(same, same.work, 1.0)
    assert queue.passes(same, begun, 2.0), "within a tenant the policy decides"
    queue.push(other, other.work, 1.0)
    assert queue.passes(other, begun, 2.0) and queue.peek(2.0) is other
    queue.begin(other, 80)
    assert queue.begun(2.0) == [begun, other]
    queue.ended(begun)
    assert queue.begun(2.0) == [other] and queue.peek(2.0) is same
    plain: WaitingQueue[Job] = waiting_queue(OrderPolicy("sjf"))
    assert not isinstance(plain, FairQueue)


def test_who_comes_back_is_behind_by_no_more_than_the_burst() -> None:
    counters = VirtualCounters(burst=30.0)
    counters.joins("busy")
    counters.charge("busy", 100.0)
    counters.joins("back")
    assert counters.service("back") == 70.0
    counters.joins("begun", begun=60.0)
    assert counters.service("begun") == 30.0


def test_of_equals_who_came_back_last_is_first() -> None:
    counters = VirtualCounters()
    for tenant in ("a", "b", "c"):
        counters.joins(tenant)
    assert counters.least() == "c"
    counters.charge("c", 1.0)
    assert counters.least() == "b"


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "leave", "charge"]), st.sampled_from("abcde"), st.integers(0, 9)),  # noqa: E501
        max_size=200,
    )
)  # fmt: skip
def test_counters_against_the_plainest_model(
    events: list[tuple[str, str, int]],
) -> None:
    counters, model, waiting, last = VirtualCounters(), {}, set(), None
    for event, tenant, cost in events:
        if event == "join" and tenant not in waiting:
            floor = min((model.get(t, 0) for t in waiting), default=model.get(last, 0))
            model[tenant] = max(model.get(tenant, 0), floor)
            waiting.add(tenant)
            counters.joins(tenant)
        elif event == "leave" and tenant in waiting:
            waiting.discard(tenant)
            last = tenant
            counters.leaves(tenant)
        elif event == "charge":
            model[tenant] = model.get(tenant, 0) + cost
            counters.charge(tenant, cost)
        least = counters.least()
        assert (least is None) == (not waiting)
        if least is not None:
            assert model[least] == min(model[t] for t in waiting) == counters.service(least)


def test_tenants_that_are_gone_are_forgotten() -> None:
    counters = VirtualCounters()
    counters.joins("stays")
    for number in range(5000):
        counters.charge("stays", 1.0)
        counters.joins(f"t{number}")
        counters.leaves(f"t{number}")
        assert counters.least() == "stays"
    assert len(counters._service) < 200 and len(counters._heap) < 200
