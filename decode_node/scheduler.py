"""Which sequences decode in the next step, and where their next token's KV goes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq

from kvstore.blocks import BlockPool
from kvstore.prefix import chain
from kvstore.table import num_blocks
from pd.outbox import Drawn
from pd.types import Sampled, Sequence

MAX_STEPS = 1 << 20  # in a row


class DecodeScheduler:
    """Continuous batching: every running sequence runs one token in every step.

    Blocks are taken when a sequence reaches them. When none is free the sequence with the
    least claim (lowest priority, then latest arrival) is preempted: its blocks go back and
    its gateway has it prefilled again elsewhere, so that no long prefill ever runs between
    two decode steps.

    `publish` is given the full blocks of every sequence that leaves, unless for want of room.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        publish: Callable[[list[bytes], list[int]], None] | None = None,
    ) -> None:
        self.pool = pool
        self._publish = publish
        self.max_num_seqs = max_num_seqs
        self.running: dict[tuple[str, int], Sequence] = {}
        self.num_tokens = 0  # context of all running sequences
        self.num_of_tenant: Counter[str] = Counter()  # of those, only tenants that have any
        self.preemptions = 0
        self._forked: set[tuple[str, int]] = set()  # may share the block they write next
        self._in_flight: tuple[Sequence, ...] = ()
        self._doomed: list[Sequence] = []  # ended while their step was in flight
        self._copied: list[int] = []  # sources of the copies in flight

    def __len__(self) -> int:
        return len(self.running)

    def start(self, seq: Sequence, *, shared: bool) -> None:
        """Take in a sequence whose table holds the KV of all its tokens but the last.

        Its `hashes` are the root key and then one a full block, so that the chain goes on.
        """
        self.running[seq.key] = seq
        self.num_tokens += seq.num_tokens
        self.num_of_tenant[seq.request.tenant] += 1
        if shared:
            self._forked.add(seq.key)

    def remove(self, seq: Sequence, *, publish: bool = True) -> None:
        """End a sequence; what its step in flight may still write to stays held till then."""
        if publish and self._publish is not None:
            self._publish(seq.hashes[1:], seq.blocks)
        del self.running[seq.key]
        self.num_tokens -= seq.num_tokens
        tenant = seq.request.tenant
        self.num_of_tenant[tenant] -= 1
        if not self.num_of_tenant[tenant]:
            del self.num_of_tenant[tenant]
        self._forked.discard(seq.key)
        if seq in self._in_flight:
            self._doomed.append(seq)
        else:
            self._release(seq)

    def plan(self) -> tuple[tuple[Sequence, ...], tuple[tuple[int, int], ...], list[Sequence]]:
        """One step: (sequences to run, blocks to copy first, sequences preempted for room)."""
        copies: dict[tuple[str, int], tuple[int, int]] = {}
        preempted: list[Sequence] = []
        size, forked = self.pool.block_size, self._forked
        needy = [
            seq
            for seq in self.running.values()
            if seq.num_computed == len(seq.blocks) * size or (forked and seq.key in forked)
        ]
        for seq in needy:
            while seq.key in self.running and not self._make_room(seq, copies):
                victim = max(
                    self.running.values(),
                    key=lambda s: (s.request.priority, s.request.arrival_s, s.index),
                )
                copies.pop(victim.key, None)
                self.remove(victim, publish=False)
                self.preemptions += 1
                preempted.append(victim)
        if not self.running:
            self._release_copied()  # no step will run, so nothing will read them
        self._in_flight = tuple(self.running.values())
        return self._in_flight, tuple(copies.values()), preempted

    def steps_ahead(self, decodes: tuple[Sequence, ...]) -> int:
        """How often the step in flight, of these sequences, can run in a row if nothing else
        happens: until one may end, or no block is free for one to grow into. 1 at least."""
        if decodes != tuple(self.running.values()):
            return 1
        steps = MAX_STEPS
        for seq in decodes:
            # The last token is there and not computed: it is what the step in flight runs.
            left = seq.num_prompt + seq.params.max_tokens - seq.num_computed - 1
            if left < steps:
                steps = left
            if seq.stop_ids:
                return 1
        while steps > 1 and not self._has_room(steps):
            steps //= 2
        return max(1, steps)

    def _has_room(self, steps: int) -> bool:
        """Whether there are blocks for so many steps in a row of all that run."""
        size, num_free = self.pool.block_size, self.pool.num_free
        return (
            len(self.running) * (steps // size + 1) <= num_free or self._growth(steps) <= num_free
        )

    def _growth(self, steps: int) -> int:
        """Blocks that so many steps take beside those that `plan` gave to the first."""
        size = self.pool.block_size
        return sum(
            max(0, num_blocks(seq.num_computed + steps, size) - len(seq.blocks))
            for seq in self.running.values()
        )

    def commit(self, decodes: Seq[Sequence], samples: Seq[Sampled], times: int = 1) -> list[Drawn]:
        """Take what the step drew. Sequences that end are removed, those that ended while
        it ran are skipped. It may have run several `times` in a row, at most `steps_ahead`, and
        drawn the same each time."""
        self._in_flight = ()
        rows = list(zip(decodes, samples, strict=True))
        if self._doomed:
            rows = [row for row in rows if row[0] not in self._doomed]
            for seq in self._doomed:
                self._release(seq)
            self._doomed.clear()
        self._release_copied()
        size = self.pool.block_size
        if times > 1:  # all of them took their blocks before the first of them ended
            for seq, _ in rows:
                if seq.num_computed + times > len(seq.blocks) * size:
                    self._grow(seq, times)
        self.num_tokens += times * len(rows)
        drawn: list[Drawn] = []
        for seq, sampled in rows:
            before = seq.num_computed
            seq.num_computed = after = before + times
            reason = seq.append(sampled.token, times)
            if after // size > before // size:
                for block in range(before // size, after // size):
                    self._register(seq, block)
            if reason is not None:
                self.remove(seq)
            drawn.append((seq, sampled, reason))
        return drawn

    def _make_room(self, seq: Sequence, copies: dict[tuple[str, int], tuple[int, int]]) -> bool:
        """See that the block of the next token is there and the sequence's alone."""
        index = seq.num_computed // self.pool.block_size
        new = index == len(seq.blocks)
        if new or self.pool.is_shared(seq.blocks[index]):
            if not self.pool.can_allocate(1):
                return False
            (block,) = self.pool.allocate(1)
            if new:
                seq.blocks.append(block)
            else:
                source, seq.blocks[index] = seq.blocks[index], block
                copies[seq.key] = (source, block)
                # The copy reads the source during the step: it is let go of after it.
                self._copied.append(source)
            seq.table_version += 1
        self._forked.discard(seq.key)
        return True

    def _grow(self, seq: Sequence, steps: int) -> None:
        """Give it the blocks that so many steps have written to."""
        lacking = num_blocks(seq.num_computed + steps, self.pool.block_size) - len(seq.blocks)
        seq.blocks += self.pool.allocate(lacking)
        seq.table_version += 1

    def _register(self, seq: Sequence, block: int) -> None:
        """Make a block that has just become full findable by its prefix."""
        size = self.pool.block_size
        tokens = seq.tokens[block * size : (block + 1) * size]
        seq.hashes.append(chain(seq.hashes[-1], tokens))
        self.pool.register(seq.blocks[block], seq.hashes[-1])

    def _release_copied(self) -> None:
        self.pool.release(self._copied)
        self._copied.clear()

    def _release(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks = []
        seq.table_version += 1
