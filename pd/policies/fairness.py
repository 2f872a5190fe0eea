"""Fair shares between tenants: the virtual token counter. Pure.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24). Every tenant has a
counter of the service it was given, a token of prompt counting 1 and one of output 2, divided by
its weight. Whenever there is room the tenant with the smallest counter goes first. One that comes
back after a while is lifted to the smallest of those that are served, less `burst_tokens`: beyond
that it cannot save up a share it did not use. Work is conserving, and of two tenants (of equal
weight) that both have work waiting all the time, in no span of time is one given more than the
other by over

    2 * max(PROMPT_COST * longest prompt, OUTPUT_COST * tokens that fit into the batch)

The paper computes a prompt in one step. Here it may take many, and who comes in between goes first
if its counter is not above what the other's was when that prompt began: the start tags of Goyal et
al., "Start-time Fair Queueing" (SIGCOMM '96), whose bound for prompts alone is the same.
A step has nobody else's prompts beside those of a tenant that is owed them: whose counter, with
them, is still not above the others'.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import Request, Work

PROMPT_COST = 1.0
OUTPUT_COST = 2.0

T = TypeVar("T")
_SLACK = 64


class VirtualCounters:
    """The counters, and which tenants wait. A decision takes logarithmic time in their number."""

    def __init__(self, burst: float = 0.0) -> None:
        """`burst` is how far below the others one that comes back may be."""
        self._burst = burst
        self._service: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._last_to_leave: str | None = None
        # Service, and of equals who came back last: the others have been served meanwhile. May hold
        # values that have grown since: a tenant's newest is the largest of its own.
        self._heap: list[tuple[float, int, str]] = []
        self._turns: dict[str, int] = {}  # of those that wait, when they came back; falling
        self._num_joined = 0

    def __len__(self) -> int:
        """Tenants that wait, or have more service than would be given to them for nothing."""
        return len(self._service)

    def service(self, tenant: str) -> float:
        return self._service.get(tenant, 0.0)

    def joins(self, tenant: str, begun: float | None = None) -> None:
        """It had nothing waiting, and now it has. `begun` is the least counter at which anything
        that is still being served began."""
        least = self.least()
        if least is None and begun is None:
            least = self._last_to_leave
        floor = 0.0 if least is None else self.service(least)
        if begun is not None:
            floor = begun if least is None else min(floor, begun)
        floor -= self._burst
        self._service[tenant] = max(self.service(tenant), floor)
        self._waiting.add(tenant)
        self._num_joined += 1
        self._turns[tenant] = -self._num_joined
        heapq.heappush(self._heap, self._entry(tenant))
        if len(self._service) > 2 * len(self._waiting) + _SLACK:
            self._forget_those_behind(floor)

    def leaves(self, tenant: str) -> None:
        """Nothing of it waits any more."""
        self._waiting.discard(tenant)
        self._turns.pop(tenant, None)
        self._last_to_leave = tenant

    def charge(self, tenant: str, cost: float) -> None:
        self._service[tenant] = self.service(tenant) + cost
        if tenant in self._waiting:
            heapq.heappush(self._heap, self._entry(tenant))
            if len(self._heap) > 2 * len(self._waiting) + _SLACK:
                self._heap = [self._entry(each) for each in self._waiting]
                heapq.heapify(self._heap)

    def least(self) -> str | None:
        """Of the tenants that wait the one that was given least; None if nobody waits."""
        heap = self._heap
        while heap:
            tenant = heap[0][2]
            if tenant in self._waiting and heap[0] == self._entry(tenant):
                return tenant
            heapq.heappop(heap)
        return None

    def _entry(self, tenant: str) -> tuple[float, int, str]:
        return self._service[tenant], self._turns[tenant], tenant

    def _forget_those_behind(self, floor: float) -> None:
        """Whoever has less than `floor` and does not wait would be lifted to it at least."""
        keep = {*self._waiting, self._last_to_leave}
        for tenant in [t for t, s in self._service.items() if s <= floor and t not in keep]:
            del self._service[tenant]


class FairQueue(WaitingQueue[T], Generic[T]):
    """A waiting queue for every tenant; within it the order is the policy's."""

    def __init__(self, policy: OrderPolicy) -> None:
        super().__init__(policy)
        self.counters = VirtualCounters(policy.burst_tokens)
        self._tags: dict[int, float] = {}  # of what has begun: its tenant's counter before it
        self._queues: dict[str, WaitingQueue[T]] = {}
        self._works: dict[int, Work] = {}

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._queues.values() for item in queue)

    @property
    def shared(self) -> bool:
        return len(self.counters) > 1

    def push(self, item: T, work: Work, arrived: float) -> None:
        tenant = work.request.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = WaitingQueue(self.policy)
            self.counters.joins(tenant, min(self._tags.values(), default=None))
        queue.push(item, work, arrived)
        self._works[id(item)] = work

    def peek(self, now: float) -> T | None:
        tenant = self.counters.least()
        return None if tenant is None else self._queues[tenant].peek(now)

    def remove(self, item: T) -> bool:
        work = self._works.pop(id(item), None)
        if work is None:
            return False
        tenant = work.request.tenant
        queue = self._queues[tenant]
        queue.remove(item)
        if not len(queue):
            del self._queues[tenant]
            self.counters.leaves(tenant)
        return True

    def take(self, item: T, num_tokens: int) -> None:
        request = self._works[id(item)].request
        # Charged while it still counts as waiting: the last one to leave lifts who comes next.
        self.counters.charge(request.tenant, PROMPT_COST * num_tokens / request.weight)
        self.remove(item)

    def generated(self, request: Request, num_tokens: int) -> None:
        self.counters.charge(request.tenant, OUTPUT_COST * num_tokens / request.weight)

    def begin(self, item: T, num_tokens: int) -> None:
        work = self._works[id(item)]
        tenant = work.request.tenant
        self._tags[id(item)] = self.counters.service(tenant)
        self._begun[id(item)] = self._queues[tenant].entry(item)
        self.take(item, num_tokens)

    def ended(self, item: T) -> None:
        super().ended(item)
        self._tags.pop(id(item), None)

    def begun(self, now: float) -> list[T]:
        """By their tags; the tags of one tenant are given out anew in the policy's order."""
        tags: dict[str, list[float]] = {}
        for key, entry in self._begun.items():
            tags.setdefault(entry.work.request.tenant, []).append(self._tags[key])
        for each in tags.values():
            each.sort(reverse=True)
        items = super().begun(now)
        places = [tags[self._begun[id(item)].work.request.tenant].pop() for item in items]
        order = sorted(range(len(items)), key=places.__getitem__)
        return [items[i] for i in order]

    def passes(self, item: T, begun: T, now: float) -> bool:
        tenant = self._works[id(item)].request.tenant
        if tenant == self._begun[id(begun)].work.request.tenant:
            return self._queues[tenant].before(item, self._begun[id(begun)], now)
        return self.counters.service(tenant) <= self._tags[id(begun)]

    def joins(self, item: T, tenants: AbstractSet[str]) -> bool:
        service = self.counters.service
        tag = self._tags.get(id(item))
        begun = self._begun.get(id(item))
        work = self._works[id(item)] if begun is None else begun.work
        tenant = work.request.tenant
        rank = service(tenant) if tag is None else tag
        return all(each == tenant or service(each) > rank for each in tenants)


def waiting_queue(policy: OrderPolicy) -> WaitingQueue[T]:
    """An empty queue of the discipline that the policy asks for."""
    return FairQueue(policy) if policy.fairness == "vtc" else WaitingQueue(policy)
