"""A simulated node process: a real `NodeCore` over an oracle engine, and what it knows of peers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cell.network import Address, Link
from cell.oracle import OracleEngine
from pd.node.core import NodeCore
from pd.outbox import Expect
from pd.types import BatchPlan


@dataclass(eq=False)
class SimNode:
    """`peers` are the epochs it knows the other processes by; `expected` what its transport
    accepts; `plan` the step in flight, with the block tables as they were when it began."""

    core: NodeCore
    engine: OracleEngine
    address: Address
    expected: dict[int, Expect] = field(default_factory=dict)
    plan: BatchPlan | None = None
    tables: dict[int, list[int]] = field(default_factory=dict)
    peers: dict[str, int] = field(default_factory=dict)
    frozen: bool = False
    link: Link = field(init=False)

    @property
    def idle(self) -> bool:
        core = self.core
        return self.plan is None and not (
            core.prefill.tasks or core.decode.handoffs or core.decode.scheduler.running
            or len(core.publisher) or len(core.fetcher) or len(core.server)
        )  # fmt: skip

    def begin_step(self, now: float) -> None:
        plan = self.core.plan(now)
        if plan is not None:
            self.plan = plan
            seqs = [*(chunk.seq for chunk in plan.chunks), *plan.decodes]
            self.tables = {id(seq): list(seq.blocks) for seq in seqs}

    def finish_step(self, now: float) -> None:
        assert self.plan is not None
        samples = self.engine.execute(self.plan, self.tables)
        self.plan, self.tables = None, {}
        self.core.commit(samples, now)

    def check(self) -> None:
        """Assert that every block has exactly the holders that it should have."""
        core, pool = self.core, self.core.pool
        pool.check()
        holds = self.holders()
        for block in range(pool.num_blocks):
            assert pool.holds(block) == holds[block], (
                f"block {block} of {self.address.id} has {pool.holds(block)} holders, "
                f"not {holds[block]}"
            )
        assert core.decode._incoming_seqs == sum(
            len(h.work.indices)
            for h in core.decode.handoffs.values()
            if h.transfer is not None or (h.task is not None and h.task.granted)
        ), "sequences on their way in are miscounted"
        assert core.decode.scheduler.num_tokens == sum(
            len(seq.tokens) for seq in core.decode.scheduler.running.values()
        )
        assert core.prefill.waiting_tokens == sum(
            task.counted for task in core.prefill.tasks.values() if not task.cancelled
        ), "prompt tokens to compute are miscounted"
        for task in core.prefill.scheduler.running.values():
            assert task.counted == task.num_remaining, task
        if self.plan is not None:
            self._check_step(self.plan, holds)

    def holders(self) -> Counter[int]:
        """How many holders each block should have, from what the node has at hand."""
        core, holds = self.core, Counter[int]()
        for task in core.prefill.tasks.values():
            holds.update(task.lead.blocks)
        for handoff in core.decode.handoffs.values():
            if handoff.task is None:  # the task of a local one holds its blocks
                holds.update(handoff.table)
        scheduler = core.decode.scheduler
        for seq in (*scheduler.running.values(), *scheduler._doomed):
            holds.update(seq.blocks)
        holds.update(scheduler._copied)
        for offer in core.publisher._offers.values():
            holds.update(offer.blocks)
        for fetching in core.fetcher._fetches.values():
            holds.update(fetching.transfer.blocks)
        for _, blocks, _ in core.server._serving.values():
            holds.update(blocks)
        return holds

    def reads(self, transfer_id: int) -> set[int]:
        """Blocks that are held for pushes of this transfer."""
        core = self.core
        task = core.prefill.tasks.get(transfer_id)
        if task is not None:
            return set(task.lead.blocks)
        if transfer_id in core.publisher:
            return set(core.publisher._offers[transfer_id].blocks)
        if transfer_id in core.server:
            return set(core.server._serving[transfer_id][1])
        return set()

    def writes(self, transfer_id: int) -> set[int]:
        """Blocks that this transfer may fill."""
        handoff = self.core.decode.handoffs.get(transfer_id)
        if handoff is not None:
            return set(handoff.table)
        fetching = self.core.fetcher._fetches.get(transfer_id)
        return set() if fetching is None else set(fetching.transfer.blocks)

    def _check_step(self, plan: BatchPlan, holds: Counter[int]) -> None:
        """What the step in flight reads and writes is held, and written by nobody else."""
        size = self.core.pool.block_size
        written: Counter[int] = Counter()
        for chunk in plan.chunks:
            first, end = chunk.start // size, chunk.start + chunk.num_tokens
            written.update(self.tables[id(chunk.seq)][first : -(-end // size)])
        for table in self.tables.values():
            assert all(holds[block] for block in table), "a step uses a block that is free"
        written.update(target for _, target in plan.copies)
        copied = {target for _, target in plan.copies}
        for seq in plan.decodes:
            # A sequence that ended while its step runs has its table kept in `tables`.
            position = len(seq.tokens) - 1
            block = self.tables[id(seq)][position // size]
            written.update(() if block in copied else (block,))
        shared = [block for block, writers in written.items() if writers > 1]
        assert not shared, f"two sequences of a step write into blocks {shared}"
