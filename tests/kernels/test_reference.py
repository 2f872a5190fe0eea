"""The oracle itself, against formulas written another way or against torch's own operations."""

from __future__ import annotations

import math

import pytest
import torch

from pd_kernels.meta import AttentionMeta
from pd_kernels.reference import ReferenceOps

OPS = ReferenceOps()


def test_rms_norm_is_torchs() -> None:
    x, weight = torch.randn(5, 48), torch.randn(48)
    expected = torch.nn.functional.rms_norm(x, (48,), weight, 1e-5)
    torch.testing.assert_close(OPS.rms_norm(x, weight, 1e-5), expected)


def test_add_rms_norm_norms_the_rounded_sum() -> None:
    x, residual = torch.randn(5, 48).bfloat16(), torch.randn(5, 48).bfloat16()
    weight = torch.randn(48).bfloat16()
    normed, total = OPS.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, OPS.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("rotated", [8, 12])
def test_rotary_is_a_rotation_of_complex_pairs(rotated: int) -> None:
    half = rotated // 2
    angles = torch.randn(20, half)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.tensor([3, 0, 19, 7])
    q, k = torch.randn(4, 3, 12), torch.randn(4, 2, 12)
    new_q, new_k = q.clone(), k.clone()
    OPS.rotary(new_q, new_k, positions, cos_sin)
    for old, new in ((q, new_q), (k, new_k)):
        pairs = torch.complex(old[..., :half], old[..., half:rotated])
        turned = pairs * torch.polar(torch.ones(4, 1, half), angles[positions][:, None])
        torch.testing.assert_close(new[..., :half], turned.real)
        torch.testing.assert_close(new[..., half:rotated], turned.imag)
        assert torch.equal(new[..., rotated:], old[..., rotated:])


def test_silu_mul_is_torchs() -> None:
    gate_up = torch.randn(3, 10)
    expected = torch.nn.functional.silu(gate_up[:, :5]) * gate_up[:, 5:]
    torch.testing.assert_close(OPS.silu_mul(gate_up), expected)


def test_write_kv_fills_its_slots_and_nothing_else() -> None:
    kv = torch.zeros(4, 2, 2, 3, 4, 5)
    k, v = torch.randn(3, 3, 5), torch.randn(3, 3, 5)
    OPS.write_kv(k, v, kv, 1, torch.tensor([6, -1, 15]))
    assert torch.equal(kv[1, 1, 0, :, 2], k[0]) and torch.equal(kv[1, 1, 1, :, 2], v[0])
    assert torch.equal(kv[3, 1, 0, :, 3], k[2]) and torch.equal(kv[3, 1, 1, :, 3], v[2])
    assert kv.count_nonzero() == 2 * 2 * 15


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_attention_is_softmax_over_the_blocks(window: int | None) -> None:
    """Against a loop over single queries and heads, with a prefix and an uneven last block."""
    kv = torch.randn(9, 2, 2, 2, 4, 6)
    tables, query_lens, contexts = [[5, 2, 7], [1, 0], [8]], [4, 1, 1], [10, 5, 1]
    meta = AttentionMeta.from_lists(tables, query_lens, contexts, num_prefill=1)
    q = torch.randn(6, 4, 6)
    out = OPS.attention(q, kv, 1, meta, 0.3, window)
    row = 0
    for table, query_len, context in zip(tables, query_lens, contexts, strict=True):
        for i in range(query_len):
            position = context - query_len + i
            first = 0 if window is None else max(0, position - window + 1)
            slots = [(table[p // 4], p % 4) for p in range(first, position + 1)]
            for head in range(4):
                keys = [kv[b, 1, 0, head // 2, o] for b, o in slots]
                values = [kv[b, 1, 1, head // 2, o] for b, o in slots]
                weights = [math.exp(0.3 * float(q[row, head] @ key)) for key in keys]
                mixed = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                torch.testing.assert_close(out[row, head], mixed)
            row += 1


def test_attention_of_a_padding_row_is_zero() -> None:
    kv = torch.full((2, 1, 2, 1, 4, 8), float("nan"))
    meta = AttentionMeta.from_lists([[0]], [1], [0], num_prefill=0)
    assert not OPS.attention(torch.randn(1, 2, 8), kv, 0, meta, 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_blocks_are_the_bytes_of_the_blocks(dtype: torch.dtype) -> None:
    kv = torch.randn(6, 2, 2, 3, 4, 5).to(dtype)
    ids = torch.tensor([4, 1])
    packed = OPS.pack_blocks(kv, ids)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 240 * dtype.itemsize)
    assert packed[0].numpy().tobytes() == kv[4].view(torch.uint8).numpy().tobytes()
    other = torch.zeros_like(kv)
    OPS.unpack_blocks(other, torch.tensor([0, 5]), packed)
    assert torch.equal(other[[0, 5]], kv[[4, 1]]) and not other[1:5].any()


def test_copy_blocks_copies_whole_blocks() -> None:
    kv = torch.randn(5, 2, 2, 1, 4, 3)
    before = kv.clone()
    OPS.copy_blocks(kv, torch.tensor([0, 1]), torch.tensor([4, 2]))
    assert torch.equal(kv[[4, 2]], before[[0, 1]])
    assert torch.equal(kv[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize(
    ("tables", "query_lens", "contexts", "num_prefill", "message"),
    [
        ([[0]], [1, 1], [1, 1], 0, "as many of each"),
        ([[0]], [1], [1], 2, "num_prefill is 2"),
        ([[0], [1]], [2, 2], [2, 2], 1, "exactly one query row"),
        ([[0]], [3], [2], 1, "includes this step's tokens"),
    ],
)
def test_meta_refuses_lists_that_disagree(
    tables: list[list[int]],
    query_lens: list[int],
    contexts: list[int],
    num_prefill: int,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionMeta.from_lists(tables, query_lens, contexts, num_prefill)


def test_meta_pads_and_accumulates() -> None:
    meta = AttentionMeta.from_lists([[3, 4, 5], [6]], [7, 1], [9, 2], num_prefill=1)
    assert meta.block_tables.tolist() == [[3, 4, 5], [6, 0, 0]]
    assert meta.query_starts.tolist() == [0, 7, 8]
    assert (meta.num_sequences, meta.max_query_len, meta.max_context_len) == (2, 7, 9)
    assert meta.block_tables.dtype == meta.context_lens.dtype == torch.int32


def test_meta_of_an_empty_batch() -> None:
    meta = AttentionMeta.from_lists([], [], [], num_prefill=0)
    assert meta.query_starts.tolist() == [0] and meta.block_tables.shape == (0, 0)
