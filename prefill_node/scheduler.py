"""Which prompt tokens run in the next step. Pure: no clock, no socket, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.blocks import BlockPool
from kvstore.table import acquire
from kvstore.transfer import OutgoingTransfer
from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import PrefillChunk, Sequence, Work


@dataclass(slots=True, eq=False)
class PrefillTask:
    """One prompt on its way through a node.

    The sequences share the prompt, so it is computed once, into the blocks of the first
    one (`lead`). `hashes` are the chained hashes of the prompt's full blocks. A task with
    no `outgoing` transfer is local: it decodes where it prefills, in blocks reserved for it
    before it started. `dropped` are outputs that nobody wants any more.
    """

    work: Work
    transfer_id: int
    arrived: float
    hashes: list[bytes]
    outgoing: OutgoingTransfer | None = None
    granted: bool = False
    in_flight: bool = False
    cancelled: bool = False
    dropped: set[int] = field(default_factory=set)
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


class PrefillScheduler:
    """Chunked prefill under a token budget.

    Tasks run in policy order; a prompt longer than what is left of the budget runs in
    chunks over several steps, and the next prompts fill up the last of them. A task gets
    blocks for its whole prompt when it starts, so that two half-computed prompts can never
    wait for one another's blocks.
    """

    def __init__(self, pool: BlockPool, policy: OrderPolicy, max_num_seqs: int) -> None:
        self.pool = pool
        self.policy = policy
        self.max_num_seqs = max_num_seqs
        self.waiting: WaitingQueue[PrefillTask] = WaitingQueue(policy)
        self.running: dict[int, PrefillTask] = {}
        self.remaining_tokens = 0  # still to compute, waiting and running
        self.cache_hit_tokens = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, task: PrefillTask) -> None:
        self.waiting.push(task, task.work, task.arrived)
        self.remaining_tokens += task.num_remaining

    def remove(self, task: PrefillTask) -> bool:
        """Take a task out wherever it stands; its blocks stay its own. False if not here."""
        if self.waiting.remove(task) or self.running.pop(task.transfer_id, None) is not None:
            self.remaining_tokens -= task.num_remaining
            return True
        return False

    def plan(self, now: float, budget: int) -> tuple[PrefillChunk, ...]:
        """Chunks for one step, at most `budget` tokens and one chunk a task."""
        chunks: list[PrefillChunk] = []
        running = sorted(
            (self.policy.key(task.work, task.arrived, now), task.transfer_id, task)
            for task in self.running.values()
        )
        running.reverse()
        room = True
        while budget > 0:
            waiting_key = self.waiting.peek_key(now) if room else None
            if waiting_key is not None and (not running or waiting_key < running[-1][0]):
                started = self._start(now)
                if started is None:
                    room = False
                    continue
                task = started
            elif running:
                task = running.pop()[2]
            else:
                break
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
        for i in range(chunk.start // size, end // size):
            self.pool.register(lead.blocks[i], task.hashes[i])
        lead.num_computed = end
        self.remaining_tokens -= chunk.num_tokens
        if end < task.num_tokens:
            return False
        self.running.pop(task.transfer_id, None)
        return True

    def _start(self, now: float) -> PrefillTask | None:
        """Give the first waiting task its blocks; None if there is no room for it."""
        task = self.waiting.peek(now)
        if task is None or len(self.running) >= self.max_num_seqs:
            return None
        if task.outgoing is not None:
            blocks = acquire(self.pool, task.hashes, task.num_tokens, compute=True)
            if blocks is None:
                return None
            table, num_cached = blocks
            task.lead.blocks = table
            task.lead.table_version += 1
            skipped = num_cached * self.pool.block_size
            task.lead.num_computed = skipped
            self.remaining_tokens -= skipped
            self.cache_hit_tokens += skipped
        self.waiting.remove(task)
        self.running[task.transfer_id] = task
        return task
