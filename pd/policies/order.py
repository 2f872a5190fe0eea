"""In which order waiting work runs: first come, shortest first with aging, by deadline or by
priority.

Used for prefills and for hand-offs waiting for decode room alike, so that an order chosen
for one stage is not lost in the next.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pd.types import Request, Work

Order = Literal["fcfs", "sjf", "edf", "priority"]
Fairness = Literal["none", "vtc"]
Key = tuple[float, ...]
T = TypeVar("T")
_SWEEP_SLACK = 64


@dataclass(frozen=True, slots=True)
class OrderPolicy:
    """`aging_s` bounds starvation under "sjf" and "priority": work that waited this long
    goes before any that did not, oldest first. Under "edf" it is the time that work without a
    target has. With `fairness` tenants share, and the order is that within each; `burst_tokens` is
    how far one that comes back after a pause may be behind the others."""

    order: Order = "fcfs"
    aging_s: float = 10.0
    fairness: Fairness = "none"
    burst_tokens: float = 0.0

    @property
    def ages(self) -> bool:
        """Whether old work goes first, whatever its rank: the other orders starve nobody."""
        return self.order in ("sjf", "priority")

    def key(self, work: Work, arrived: float, now: float) -> Key:
        """Smaller runs earlier."""
        if self.order == "edf":
            return (0, self.deadline(work, arrived), arrived)
        if self.order == "fcfs" and work.output:
            return (-1, arrived, 0)  # a stream that was interrupted: it came before all that wait
        if self.order == "fcfs" or now - arrived >= self.aging_s:
            return (0, arrived, 0)
        if self.order == "priority":
            return (1, work.request.priority, arrived)
        return (1, work.num_tokens, arrived)

    def deadline(self, work: Work, arrived: float) -> float:
        """When its first token is due. A stream that was interrupted has been waiting since."""
        if work.output:
            return arrived
        target = work.request.slo.ttft_s
        return arrived + (self.aging_s if target is None else target)


@dataclass(slots=True)
class Entry(Generic[T]):
    item: T
    work: Work
    arrived: float
    number: int = 0
    queued: bool = True


class WaitingQueue(Generic[T]):
    """Items with their work, in policy order. Logarithmic in its length, removal included.

    A heap by rank and one by age are kept side by side; an entry taken from one is skipped
    when it surfaces in the other, or swept out once such entries are the majority.
    """

    def __init__(self, policy: OrderPolicy) -> None:
        self.policy = policy
        self._entries: dict[int, Entry[T]] = {}
        self._by_rank: list[tuple[Key, int, Entry[T]]] = []
        self._by_age: list[tuple[float, int, Entry[T]]] = []
        self._begun: dict[int, Entry[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def shared(self) -> bool:
        """Whether more than one tenant shares in what is waited for here, as far as is known."""
        return False

    def __iter__(self) -> Iterator[T]:
        return (entry.item for entry in self._entries.values())

    def push(self, item: T, work: Work, arrived: float) -> None:
        self._count += 1
        entry = Entry(item, work, arrived, self._count)
        self._entries[id(item)] = entry
        # An age of minus infinity: the rank of work that is still young.
        rank = self.policy.key(work, arrived, float("-inf"))
        heapq.heappush(self._by_rank, (rank, self._count, entry))
        if self.policy.ages:
            heapq.heappush(self._by_age, (arrived, self._count, entry))

    def peek(self, now: float) -> T | None:
        entry = self._first(now)
        return None if entry is None else entry.item

    def pop(self, now: float) -> T | None:
        entry = self._first(now)
        if entry is None:
            return None
        self.remove(entry.item)
        return entry.item

    def take(self, item: T, num_tokens: int) -> None:
        """It leaves to be served, which costs so many tokens of prompt."""
        self.remove(item)

    def generated(self, request: Request, num_tokens: int) -> None:
        """A request that was served here has so many tokens of output more."""

    # What is served in pieces, so that other work may come in between:
    def begin(self, item: T, num_tokens: int) -> None:
        """As `take`; until `ended` it is one of `begun`."""
        self._begun[id(item)] = self._entries[id(item)]
        self.take(item, num_tokens)

    def ended(self, item: T) -> None:
        """All of it was served, or it is no longer wanted."""
        self._begun.pop(id(item), None)

    def begun(self, now: float) -> list[T]:
        """What has begun, in the order in which it is to go on."""
        key = self.policy.key
        ordered = sorted(
            self._begun.values(), key=lambda each: (key(each.work, each.arrived, now), each.number)
        )
        return [entry.item for entry in ordered]

    def passes(self, item: T, begun: T, now: float) -> bool:
        """Whether waiting work goes before some that has begun."""
        return self.before(item, self._begun[id(begun)], now)

    def entry(self, item: T) -> Entry[T]:
        """Of what waits."""
        return self._entries[id(item)]

    def before(self, item: T, other: Entry[T], now: float) -> bool:
        """Whether the policy has what waits go before this one."""
        entry, key = self._entries[id(item)], self.policy.key
        return key(entry.work, entry.arrived, now) < key(other.work, other.arrived, now)

    def joins(self, item: T, tenants: AbstractSet[str]) -> bool:
        """Whether work that waits or has begun may share a step with these tenants'."""
        return True

    def remove(self, item: T) -> bool:
        entry = self._entries.pop(id(item), None)
        if entry is None:
            return False
        entry.queued = False
        limit = 2 * len(self._entries) + _SWEEP_SLACK
        if len(self._by_rank) > limit:
            self._by_rank = [row for row in self._by_rank if row[2].queued]
            heapq.heapify(self._by_rank)
        if len(self._by_age) > limit:
            self._by_age = [row for row in self._by_age if row[2].queued]
            heapq.heapify(self._by_age)
        return True

    def _first(self, now: float) -> Entry[T] | None:
        while self._by_age and not self._by_age[0][2].queued:
            heapq.heappop(self._by_age)
        while self._by_rank and not self._by_rank[0][2].queued:
            heapq.heappop(self._by_rank)
        if self._by_age and now - self._by_age[0][0] >= self.policy.aging_s:
            return self._by_age[0][2]
        return self._by_rank[0][2] if self._by_rank else None
