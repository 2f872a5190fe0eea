"""How many requests a second a configuration should serve in time, without simulating it.

Prefill nodes are a queue with several servers (waits as in Sakasegawa's approximation, their tail
exponential), decode nodes a batch as large as the TPOT target, memory and the configuration let
it be (Little's law); mixed nodes are both, their steps longer while there are chunks in them, which
are of the best size that is allowed where nodes choose it.
This orders candidates and leaves out hopeless ones. What they are worth is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from pd.config import Config
from pd.cost.load import StepLoad
from pd.tune.candidate import Candidate, Group
from pd.tune.demand import Demand
from pd.tune.fleet import Fleet, NodeKind

_HALVINGS = 18
_ROUNDS = 8  # of the batch that makes the step time that makes the batch
_BATCH_SHARE = 0.9  # of the largest batch: arrivals are not even
_FULL = 0.97
_SMALLEST = 64  # tokens of a chunk that nodes choose themselves


class Estimator:
    """For one workload and fleet; `goal` is the share of requests that have to be in time."""

    def __init__(self, fleet: Fleet, base: Config, demand: Demand, goal: float) -> None:
        self.fleet = fleet
        self.base = base
        self.demand = demand
        self.goal = goal
        self._work = lru_cache(maxsize=None)(self._make_work)
        self._batch = lru_cache(maxsize=None)(self._make_batch)

    def rate(self, candidate: Candidate) -> float:
        """Requests a second, 0 where even an idle cell would miss too many."""
        config = candidate.config(self.base, self.fleet)
        chunk = config.scheduler.token_budget("cuda")
        seqs = config.scheduler.max_num_seqs
        groups = {group.role: group for group in candidate.groups}
        rate = 0.0
        if "prefill" in groups:
            prefill, decode = groups["prefill"], groups["decode"]
            work = self._work(prefill.kind, prefill.count, chunk)
            batch = self._batch(decode.kind, seqs)
            most = _BATCH_SHARE * decode.count * batch
            rate += self._highest(lambda each: each <= most and work.in_time(each) >= self.goal)
        if "mixed" in groups:
            mixed = groups["mixed"]
            sizes = _sizes(chunk) if self._adaptive(config) else [chunk]
            rate += max(self._mixed_rate(mixed, size, seqs) for size in sizes)
        return rate

    def _adaptive(self, config: Config) -> bool:
        """Whether mixed nodes make their chunks as small as their outputs need them."""
        return config.scheduler.chunk_sizes == "adaptive" and self.demand.slo.tpot_s is not None

    def _mixed_rate(self, group: Group, chunk: int, seqs: int) -> float:
        work = self._work(group.kind, group.count, chunk)
        kind = self.fleet.kind(group.kind)
        return self._highest(
            lambda each: self._mixed(each, kind, group.count, chunk, seqs, work) >= self.goal
        )

    def room(self, kind: NodeKind) -> float:
        """Tokens of KV on a node."""
        gib = self.base.cache.kv_cache_gib
        if gib is None:
            return float(kind.kv_tokens or math.inf)
        per_token = kind.cost.about.get("kv_bytes_per_token") or math.inf
        return gib * (1 << 30) / float(per_token)

    # -------------------------------------------------------------- parts
    def _highest(self, holds: Callable[[float], bool]) -> float:
        """The highest rate that holds, 0 if none does."""
        low, high = 0.0, 1e-3
        if not holds(1e-4):
            return 0.0
        while holds(high) and high < 1e6:
            low, high = high, high * 4
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _make_work(self, name: str, count: int, chunk: int) -> _Work:
        kind, demand = self.fleet.kind(name), self.demand
        kept = min(1.0, count * self.room(kind) / max(1, demand.distinct))
        cost = kind.cost
        full = cost.step_s(StepLoad(prefill_tokens=chunk, num_chunks=1)) / chunk
        times = []
        tokens = 0.0
        for prompt, again, _ in demand.prompts:
            cached = int(again * kept)
            new = prompt - cached
            tokens += new
            alone = cost.prefill_s(new, cached, chunk)
            attention = cost.attention.pair_s * StepLoad.chunk(new, cached).prefill_pairs
            # Many short prompts share a step; a long one has some to itself.
            times.append((alone if new >= chunk else new * full + attention, alone))
        return _Work(count, tuple(times), tokens / len(times), demand.slo.ttft_s or math.inf)

    def _make_batch(self, name: str, seqs: int) -> float:
        """Requests a second that one decode node gets through."""
        kind, demand = self.fleet.kind(name), self.demand
        target = demand.slo.tpot_s or math.inf
        low, high = 0, max(1, min(seqs, int(self.room(kind) / demand.context)))
        while low < high:
            middle = (low + high + 1) // 2
            if self._step_s(kind, middle) <= target:
                low = middle
            else:
                high = middle - 1
        return low / (demand.output * self._step_s(kind, low)) if low else 0.0

    def _step_s(self, kind: NodeKind, seqs: float) -> float:
        whole = max(1, round(seqs))
        return kind.cost.step_s(StepLoad.decode(whole, round(whole * self.demand.context)))

    def _mixed(
        self, rate: float, kind: NodeKind, count: int, chunk: int, seqs: int, work: _Work
    ) -> float:
        """The share of requests that mixed nodes serve in time."""
        demand, cost = self.demand, kind.cost
        each = rate / count
        tpot = alone = self._step_s(kind, 1)
        busy = beside = 0.0
        tokens = float(chunk)
        for _ in range(_ROUNDS):
            batch = each * demand.output * tpot
            if batch > min(seqs, _BATCH_SHARE * self.room(kind) / demand.context):
                return 0.0
            alone = self._step_s(kind, batch) if batch >= 1 else self._step_s(kind, 1)
            tokens = max(1.0, chunk - batch)
            pairs = (work.mean_s / work.tokens) * tokens  # seconds of a chunk without sequences
            whole = max(1, round(batch))
            context = round(whole * demand.context)
            beside = pairs + max(
                0.0,
                cost.step_s(StepLoad(round(tokens), 0.0, 1, whole, context))
                - cost.step_s(StepLoad(round(tokens), 0.0, 1)),
            )
            busy = each * work.tokens / tokens * beside
            if busy >= _FULL:
                return 0.0
            tpot = busy * beside + (1 - busy) * alone
        slower = beside / max(1e-9, (work.mean_s / work.tokens) * tokens)
        met = work.in_time(rate, slower)
        target = demand.slo.tpot_s
        if target is None:
            return met
        run = max(1.0, work.tokens / tokens)  # steps in a row that have chunks
        spread = math.sqrt(busy * (1 - busy)) * (beside - alone)
        shares = [
            _below((target - tpot) / max(1e-9, spread / math.sqrt(max(1.0, output / run))))
            for _, _, output in demand.prompts
        ]
        return met * sum(shares) / len(shares)


@dataclass(frozen=True)
class _Work:
    """Prompts and the nodes that compute them. `times` has (seconds of a node's time, seconds
    until its end when alone) of each."""

    count: int
    times: tuple[tuple[float, float], ...]
    tokens: float
    target_s: float

    @property
    def mean_s(self) -> float:
        return sum(taken for taken, _ in self.times) / len(self.times)

    def in_time(self, rate: float, slower: float = 1.0) -> float:
        """The share of first tokens within the target, at this many prompts a second."""
        mean = self.mean_s * slower
        load = rate * mean / self.count
        if load >= 1.0:
            return 0.0
        square = sum(taken * taken for taken, _ in self.times) / len(self.times) * slower**2
        waits = load ** (math.sqrt(2 * (self.count + 1)) - 1)
        wait_s = square / (2 * mean) * waits / (self.count * (1 - load))
        met = 0.0
        for _, alone in self.times:
            slack = self.target_s - alone * slower
            if slack >= 0.0:
                met += 1 - waits * math.exp(-min(700.0, slack * waits / max(wait_s, 1e-12)))
        return met / len(self.times)


def _sizes(chunk: int) -> list[int]:
    """Of chunks that may have up to so many tokens."""
    sizes = [chunk]
    while sizes[-1] >= 2 * _SMALLEST:
        sizes.append(sizes[-1] // 2)
    return sizes


def _below(deviations: float) -> float:
    """The normal distribution's share below so many standard deviations."""
    return 0.5 * math.erfc(-deviations / math.sqrt(2))
