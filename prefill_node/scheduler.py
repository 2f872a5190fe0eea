"""Which prompt tokens run in the next step. Pure: no clock, no socket, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.blocks import BlockPool
from kvstore.table import acquire
from kvstore.transfer import OutgoingTransfer
from pd.policies.fairness import waiting_queue
from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import PrefillChunk, Sequence, Source, Work


@dataclass(slots=True, eq=False)
class PrefillTask:
    """One prompt on its way through a node.

    The sequences share the prompt, so it is computed once, into the blocks of the first
    one (`lead`). `hashes` are the chained hashes of the prompt's full blocks. A task with
    no `outgoing` transfer is local: it decodes where it prefills, in blocks reserved for it
    before it started. `sources` may have leading blocks that this node lacks; while they are
    fetched, and until there is room where it will decode (`granted`), it is not `scheduled`.
    `dropped` are outputs that nobody wants any more; `counted` is what it adds to the tokens that
    the node says it has yet to compute. `fetch_s` is how long it has been fetching, since
    `fetching_since` while it is; `computing_since` when the first step with a chunk of it began.
    """

    work: Work
    transfer_id: int
    arrived: float
    hashes: list[bytes]
    outgoing: OutgoingTransfer | None = None
    sources: list[Source] = field(default_factory=list)
    fetching: bool = False
    granted: bool = False
    scheduled: bool = False
    in_flight: bool = False
    cancelled: bool = False
    dropped: set[int] = field(default_factory=set)
    counted: int = 0
    fetch_s: float = 0.0
    fetching_since: float = 0.0
    computing_since: float | None = None
    seqs: tuple[Sequence, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.seqs = tuple(Sequence(self.work, index) for index in self.work.indices)

    @property
    def lead(self) -> Sequence:
        return self.seqs[0]

    @property
    def num_tokens(self) -> int:
        return self.work.num_tokens

    @property
    def num_remaining(self) -> int:
        return self.work.num_tokens - self.lead.num_computed

    def reusable(self, block_size: int) -> list[bytes]:
        """Keys of the blocks that may come from a cache: the last token has to run, for its
        logits."""
        return self.hashes[: (self.num_tokens - 1) // block_size]


class PrefillScheduler:
    """Chunked prefill under a token budget.

    Tasks run in policy order; a prompt longer than what is left of the budget runs in
    chunks over several steps, and the next prompts fill up the last of them. A task gets
    blocks for its whole prompt when it starts, so that two half-computed prompts can never
    wait for one another's blocks. A task that begins with blocks which another is computing
    right now waits for them, where they are at least half of what it lacks.
    """

    def __init__(self, pool: BlockPool, policy: OrderPolicy, max_num_seqs: int) -> None:
        self.pool = pool
        self.policy = policy
        self.max_num_seqs = max_num_seqs
        self.waiting: WaitingQueue[PrefillTask] = waiting_queue(policy)
        self.running: dict[int, PrefillTask] = {}
        self.remaining_tokens = 0  # still to compute, waiting and running
        self.cache_hit_tokens = 0
        self._computing: dict[bytes, PrefillTask] = {}  # blocks that running tasks will register
        self._deferred: dict[bytes, list[PrefillTask]] = {}  # tasks that wait for such a block

    def __len__(self) -> int:
        count = len(self.waiting) + len(self.running)
        if self._deferred:
            count += sum(len(tasks) for tasks in self._deferred.values())
        return count

    @property
    def most_computed(self) -> int:
        """Tokens that the running prompt which is furthest has; 0 if none runs."""
        return max((task.lead.num_computed for task in self.running.values()), default=0)

    def add(self, task: PrefillTask) -> None:
        self.waiting.push(task, task.work, task.arrived)
        self._count(task, self.to_compute(task))

    def to_compute(self, task: PrefillTask) -> int:
        """Tokens of a task that is not running yet which no cache here has."""
        size = self.pool.block_size
        num_cached = self.pool.peek(task.reusable(size)) * size
        return task.num_tokens - max(num_cached, task.lead.num_computed)

    def _count(self, task: PrefillTask, tokens: int) -> None:
        self.remaining_tokens += tokens - task.counted
        task.counted = tokens

    def remove(self, task: PrefillTask) -> bool:
        """Take a task out wherever it stands; its blocks stay its own. False if not here."""
        if self._runs_no_more(task):
            self._computes_no_more(task)
        elif not self.waiting.remove(task) and not self._undefer(task):
            return False
        self._count(task, 0)
        return True

    def plan(self, now: float, budget: int) -> tuple[PrefillChunk, ...]:
        """Chunks for one step, at most `budget` tokens and one chunk a task."""
        chunks: list[PrefillChunk] = []
        running = self.waiting.begun(now)
        running.reverse()
        tenants: set[str] = set()
        room = True
        while budget > 0:
            first = self.waiting.peek(now) if room else None
            if first is not None and (not running or self.waiting.passes(first, running[-1], now)):
                if not self.waiting.joins(first, tenants):
                    break
                keys = first.reusable(self.pool.block_size)
                num_cached = self.pool.peek(keys)
                if self._defer(first, keys, num_cached):
                    continue
                if not self._start(first, keys, num_cached):
                    room = False
                    continue
                task = first
            elif running and self.waiting.joins(running[-1], tenants):
                task = running.pop()
            else:
                break
            tenants.add(task.work.request.tenant)
            num_tokens = min(budget, task.num_remaining)
            start = task.lead.num_computed
            last = start + num_tokens == task.num_tokens
            chunks.append(PrefillChunk(task.lead, start, num_tokens, task.seqs if last else ()))
            budget -= num_tokens
        return tuple(chunks)

    def commit(self, task: PrefillTask, chunk: PrefillChunk) -> bool:
        """The chunk has run. True if it was the prompt's last."""
        lead, size = task.lead, self.pool.block_size
        end = chunk.start + chunk.num_tokens
        keys = task.hashes[chunk.start // size : end // size]
        self.pool.register_all(lead.blocks[chunk.start // size : end // size], keys)
        self._computed(task, keys)
        lead.num_computed = end
        self._count(task, task.num_remaining)
        if end < task.num_tokens:
            return False
        self._runs_no_more(task)
        return True

    def _runs_no_more(self, task: PrefillTask) -> bool:
        """False if it had not begun."""
        if self.running.pop(task.transfer_id, None) is None:
            return False
        self.waiting.ended(task)
        return True

    def _start(self, task: PrefillTask, keys: list[bytes], num_cached: int) -> bool:
        """Give a waiting task its blocks, if there is room for it; `num_cached` of `keys`, the
        blocks that may come from the cache, are there."""
        if len(self.running) >= self.max_num_seqs:
            return False
        before = task.lead.num_computed
        if task.outgoing is not None:
            blocks = acquire(self.pool, task.hashes, task.num_tokens, compute=True)
            if blocks is None:
                return False
            task.lead.blocks, num_cached = blocks
            task.lead.table_version += 1
            task.lead.num_computed = num_cached * self.pool.block_size
        elif num_cached * self.pool.block_size > before:
            self._replace_by_cached(task.lead, keys[:num_cached])
        self.cache_hit_tokens += task.lead.num_computed - before
        self._count(task, task.num_remaining)
        self.waiting.begin(task, task.num_remaining)
        self.running[task.transfer_id] = task
        for key in task.hashes[task.lead.num_computed // self.pool.block_size :]:
            self._computing.setdefault(key, task)
        return True

    def _replace_by_cached(self, lead: Sequence, keys: list[bytes]) -> None:
        """Blocks that were computed since this sequence was given its own, in their place."""
        own = lead.blocks[: len(keys)]
        lead.blocks[: len(keys)] = self.pool.match(keys)
        self.pool.release(own)
        lead.table_version += 1
        lead.num_computed = len(keys) * self.pool.block_size

    # -------------------------------------------------------------- the same prompt, twice
    def _defer(self, task: PrefillTask, keys: list[bytes], num_cached: int) -> bool:
        """Let it wait if another task computes the blocks it would begin with."""
        lacking = keys[num_cached:]
        shared = 0
        for key in lacking:
            if key not in self._computing:
                break
            shared += 1
        if not shared or 2 * shared < len(lacking):
            return False
        self.waiting.remove(task)
        self._deferred.setdefault(lacking[0], []).append(task)
        return True

    def _undefer(self, task: PrefillTask) -> bool:
        for key, tasks in self._deferred.items():
            if task in tasks:
                tasks.remove(task)
                if not tasks:
                    del self._deferred[key]
                return True
        return False

    def _computes_no_more(self, task: PrefillTask) -> None:
        self._computed(task, task.hashes[task.lead.num_computed // self.pool.block_size :])

    def _computed(self, task: PrefillTask, keys: list[bytes]) -> None:
        """It does not compute these blocks any longer: who waits for them need not."""
        computing, deferred = self._computing, self._deferred
        for key in keys:
            if computing.get(key) is task:
                del computing[key]
                if key in deferred:
                    for waiting in deferred.pop(key):
                        self.waiting.push(waiting, waiting.work, waiting.arrived)
