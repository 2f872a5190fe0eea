"""From a `BatchPlan` to the arrays the model reads.

Legend: T tokens of the flat batch, S sequences, R rows of logits, P block_size (tokens).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pd.types import BatchPlan, PrefillChunk, Sequence


@dataclass(frozen=True, slots=True)
class BatchArrays:
    """One step's inputs: chunks first, in plan order, then one token per decode.

    token_ids, positions, slots: int64 [T]; slot = block * P + offset.
    logit_rows: int64 [R], rows of the flat batch that a token is drawn from, ascending.
    draws: int64, for every drawn token its row of the logits; None if that is 0, 1, .. R - 1.
    block_tables: int32 [S, width], query_starts: int32 [S + 1], context_lens: int32 [S].
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    logit_rows: NDArray[np.int64]
    draws: NDArray[np.int64] | None
    block_tables: NDArray[np.int32]
    query_starts: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    num_prefill: int
    num_decode: int
    max_query_len: int
    max_context_len: int


class BatchBuilder:
    """Builds `BatchArrays`, keeping the block tables of running sequences between steps.

    Each decoding sequence has a row (`Sequence.slot`) in a persistent table, rewritten only
    when its `table_version` moved; so a step costs a few numpy calls whatever the batch.
    """

    def __init__(self, block_size: int, max_blocks_per_seq: int, capacity: int) -> None:
        self._block_size = block_size
        self._tables = np.zeros((capacity, max_blocks_per_seq), np.int32)
        self._lengths = [0] * capacity
        self._versions = [-1] * capacity
        self._owners: list[Sequence | None] = [None] * capacity
        self._free = list(range(capacity - 1, -1, -1))

    def build(self, plan: BatchPlan) -> BatchArrays:
        """The arrays of a plan that has at least one chunk or decode."""
        chunks, decodes = plan.chunks, plan.decodes
        rows = self._rows(decodes)
        num_prefill, num_decode = len(chunks), len(decodes)
        query_lens = np.ones(num_prefill + num_decode, np.int32)
        query_lens[:num_prefill] = [chunk.num_tokens for chunk in chunks]
        query_starts = np.zeros(num_prefill + num_decode + 1, np.int32)
        np.cumsum(query_lens, out=query_starts[1:])

        num_chunk_tokens = int(query_starts[num_prefill])
        total = int(query_starts[-1])
        token_ids = np.empty(total, np.int64)
        positions = np.empty(total, np.int64)
        slots = np.empty(total, np.int64)
        context_lens = np.empty(num_prefill + num_decode, np.int32)

        positions[num_chunk_tokens:] = [seq.num_computed for seq in decodes]
        token_ids[num_chunk_tokens:] = [seq.tokens[-1] for seq in decodes]
        context_lens[num_prefill:] = positions[num_chunk_tokens:] + 1
        context_lens[:num_prefill] = [chunk.start + chunk.num_tokens for chunk in chunks]
        max_context_len = int(context_lens.max())

        width = -(-max_context_len // self._block_size)
        block_tables = np.zeros((num_prefill + num_decode, width), np.int32)
        known = min(width, self._tables.shape[1])
        block_tables[num_prefill:, :known] = self._tables[rows, :known]
        slots[num_chunk_tokens:] = self._slots(
            block_tables[num_prefill:], positions[num_chunk_tokens:]
        )
        for index, chunk in enumerate(chunks):
            span = slice(int(query_starts[index]), int(query_starts[index + 1]))
            end = chunk.start + chunk.num_tokens
            token_ids[span] = chunk.seq.tokens[chunk.start : end]
            positions[span] = np.arange(chunk.start, end)
            blocks = chunk.seq.blocks[: -(-end // self._block_size)]
            block_tables[index, : len(blocks)] = blocks
            slots[span] = self._slots(block_tables[index], positions[span])

        logit_rows, draws = _logit_rows(chunks, query_starts, num_decode)
        return BatchArrays(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            logit_rows=logit_rows,
            draws=draws,
            block_tables=block_tables,
            query_starts=query_starts,
            context_lens=context_lens,
            num_prefill=num_prefill,
            num_decode=num_decode,
            max_query_len=int(query_lens.max()),
            max_context_len=max_context_len,
        )

    def _slots(self, tables: NDArray[np.int32], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of positions [N] in one table [width], or in N tables [N, width]."""
        ordinal, offset = np.divmod(positions, self._block_size)
        if tables.ndim == 1:
            blocks = tables[ordinal]
        else:
            blocks = tables[np.arange(len(positions)), ordinal]
        return blocks.astype(np.int64) * self._block_size + offset

    def _rows(self, decodes: Seq[Sequence]) -> NDArray[np.int64]:
        """The persistent table row of each decoding sequence, brought up to date."""
        for seq in decodes:
            row = seq.slot
            if row < 0 or row >= len(self._owners) or self._owners[row] is not seq:
                row = self._assign(seq, decodes)
            if self._versions[row] != seq.table_version:
                self._refresh(row, seq)
        return np.array([seq.slot for seq in decodes], np.int64)

    def _refresh(self, row: int, seq: Sequence) -> None:
        length = len(seq.blocks)
        if length > self._tables.shape[1]:
            wider = np.zeros((len(self._owners), 2 * length), np.int32)
            wider[:, : self._tables.shape[1]] = self._tables
            self._tables = wider
        self._tables[row, :length] = seq.blocks
        self._tables[row, length : self._lengths[row]] = 0
        self._lengths[row] = length
        self._versions[row] = seq.table_version

    def _assign(self, seq: Sequence, decodes: Seq[Sequence]) -> int:
        if not self._free:
            self._reclaim(decodes)
        row = self._free.pop()
        self._owners[row] = seq
        self._versions[row] = -1
        seq.slot = row
        return row

    def _reclaim(self, decodes: Seq[Sequence]) -> None:
        """Nobody reports the end of a sequence: rows not decoding now are free again."""
        running = {id(seq) for seq in decodes}
        for row, owner in enumerate(self._owners):
            if owner is not None and id(owner) not in running:
                self._owners[row] = None
                self._free.append(row)
        if not self._free:
            old = len(self._owners)
            self._tables = np.concatenate((self._tables, np.zeros_like(self._tables)))
            self._lengths += [0] * old
            self._versions += [-1] * old
            self._owners += [None] * old
            self._free = list(range(2 * old - 1, old - 1, -1))


def _logit_rows(
    chunks: Seq[PrefillChunk], query_starts: NDArray[np.int32], num_decode: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Rows to compute logits for, and which of them each drawn token reads (None: its own)."""
    ends = [int(query_starts[i + 1]) - 1 for i, chunk in enumerate(chunks) if chunk.sample]
    first = int(query_starts[len(chunks)])
    logit_rows = np.array([*ends, *range(first, first + num_decode)], np.int64)
    counts = [len(chunk.sample) for chunk in chunks if chunk.sample]
    if all(count == 1 for count in counts):
        return logit_rows, None
    return logit_rows, np.repeat(np.arange(len(logit_rows)), [*counts, *[1] * num_decode])
