"""`BatchBuilder` against a naive construction, over random histories of block tables."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pd.engine.batch import BatchArrays, BatchBuilder
from pd.engine.staging import pack, packed_bytes, unpack
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work

P = 4


def sequence(rng: random.Random, num_tokens: int, num_computed: int) -> Sequence:
    prompt = tuple(rng.randrange(1000) for _ in range(num_tokens))
    seq = Sequence(Work(Request("r", "", prompt, SamplingParams()), (0,)), 0)
    seq.num_computed = num_computed
    seq.blocks = [rng.randrange(1, 500) for _ in range(-(-num_tokens // P))]
    return seq


def check(arrays: BatchArrays, plan: BatchPlan) -> None:
    spans = [(c.seq, c.start, c.num_tokens) for c in plan.chunks]
    spans += [(seq, seq.num_computed, 1) for seq in plan.decodes]
    row, rows = 0, []
    for index, (seq, start, count) in enumerate(spans):
        assert arrays.query_starts[index] == row
        assert arrays.context_lens[index] == start + count
        needed = -(-(start + count) // P)
        assert arrays.block_tables[index, :needed].tolist() == seq.blocks[:needed]
        for position in range(start, start + count):
            assert arrays.token_ids[row] == seq.tokens[position]
            assert arrays.positions[row] == position
            assert arrays.slots[row] == seq.blocks[position // P] * P + position % P
            row += 1
        if index >= len(plan.chunks) or plan.chunks[index].sample:
            rows.append(row - 1)
    assert arrays.query_starts[-1] == row == len(arrays.token_ids) == plan.num_tokens
    assert arrays.logit_rows.tolist() == rows
    assert (arrays.num_prefill, arrays.num_decode) == (len(plan.chunks), len(plan.decodes))
    assert arrays.max_query_len == max(count for _, _, count in spans)
    assert arrays.max_context_len == arrays.context_lens.max()
    draws = [row for row, chunk in enumerate(c for c in plan.chunks if c.sample)
             for _ in chunk.sample]  # fmt: skip
    draws += range(len(rows) - len(plan.decodes), len(rows))
    found = np.arange(len(rows)) if arrays.draws is None else arrays.draws
    assert found.tolist() == draws


@given(seed=st.integers(0, 10**6), capacity=st.integers(1, 6))
def test_arrays_follow_the_plan_through_any_history(seed: int, capacity: int) -> None:
    rng = random.Random(seed)
    builder = BatchBuilder(P, 3, capacity)
    running: list[Sequence] = []
    for _ in range(15):
        for _ in range(rng.randrange(3)):
            total = rng.randint(1, 30)
            running.append(sequence(rng, total, total - 1))
        running = [seq for seq in running if rng.random() < 0.85]
        for seq in running:
            if rng.random() < 0.6:  # a token was drawn
                seq.tokens.append(rng.randrange(1000))
                seq.num_computed += 1
                if len(seq.blocks) * P < len(seq.tokens):
                    seq.blocks.append(rng.randrange(1, 500))
                    seq.table_version += 1
            if rng.random() < 0.2:  # a shared block was replaced by a copy
                seq.blocks[rng.randrange(len(seq.blocks))] = rng.randrange(1, 500)
                seq.table_version += 1
        chunks = []
        for _ in range(rng.randrange(3)):
            total = rng.randint(1, 30)
            start = rng.randrange(total)
            count = rng.randint(1, total - start)
            seq = sequence(rng, total, start)
            sample = tuple([seq] * rng.randint(1, 3)) if start + count == total else ()
            chunks.append(PrefillChunk(seq, start, count, sample))
        decodes = tuple(rng.sample(running, rng.randint(0, len(running))))
        plan = BatchPlan(tuple(chunks), decodes)
        if plan:
            check(builder.build(plan), plan)


def test_unchanged_tables_are_not_rewritten() -> None:
    rng = random.Random(0)
    builder = BatchBuilder(P, 8, 2)
    seq = sequence(rng, 9, 8)
    builder.build(BatchPlan(decodes=(seq,)))
    before = list(seq.blocks)
    seq.blocks[0] += 1  # without a new version, so the builder cannot know
    arrays = builder.build(BatchPlan(decodes=(seq,)))
    assert arrays.block_tables[0, :3].tolist() == before
    seq.table_version += 1
    check(builder.build(BatchPlan(decodes=(seq,))), BatchPlan(decodes=(seq,)))


def test_sequences_move_between_builders() -> None:
    """A slot left by another engine is not mistaken for one's own."""
    rng = random.Random(0)
    first, second = BatchBuilder(P, 8, 4), BatchBuilder(P, 8, 4)
    others = [sequence(rng, 5, 4) for _ in range(3)]
    first.build(BatchPlan(decodes=tuple(others)))
    mine = [sequence(rng, 5, 4) for _ in range(3)]
    second.build(BatchPlan(decodes=tuple(mine)))
    plan = BatchPlan(decodes=(others[1], mine[2]))
    check(second.build(plan), plan)


def test_packing_for_a_device_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(3,), (0,), (5, 7), (1, 0), (1,), (2, 2)]
    arrays = [
        rng.integers(-(2**31), 2**31, shape).astype(dtype)
        for shape in shapes
        for dtype in (np.int64, np.int32)
    ]
    host = torch.zeros(packed_bytes(arrays), dtype=torch.uint8)
    pack(arrays, host)
    for tensor, array in zip(unpack(host, arrays), arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype
