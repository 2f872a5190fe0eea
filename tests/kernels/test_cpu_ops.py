"""CpuOps against the plain torch reference: every shape the interface allows, and misuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_kernels.cpu_ops import CpuOps
from pd_kernels.meta import AttentionMeta
from pd_kernels.reference import ReferenceOps

from .batches import assert_near, paged_batch

OPS, REFERENCE = CpuOps(), ReferenceOps()
CPU = torch.device("cpu")
KV_DTYPES = [torch.float32, torch.bfloat16]

HEADS = [(2, 2, 16), (9, 3, 64), (8, 2, 32), (9, 3, 20), (7, 1, 24), (4, 2, 80), (6, 2, 128)]
BATCHES = [
    ([1], [1], 1),
    ([19], [19], 1),
    ([5, 33, 1], [5, 70, 18], 3),
    ([1, 1, 1, 1], [1, 16, 17, 75], 0),
    ([20, 3, 1, 1, 1], [41, 3, 33, 0, 64], 2),
    ([100, 1, 1], [613, 1300, 513], 1),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 40), width=st.sampled_from([1, 3, 16, 64, 100, 577, 2048]))
def test_norms(rows: int, width: int) -> None:
    x, weight = random(rows, width), random(width, seed=1)
    assert_near(OPS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), 4)
    residual = random(rows, width, seed=2)
    expected = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)
    actual = OPS.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert_near(actual[0], expected[0], 4)
    assert torch.equal(actual[1], expected[1])


def test_norm_of_heads_and_of_slices() -> None:
    qkv, weight = random(7, 3 * 24), random(24, seed=1)
    heads = qkv.view(7, 3, 24)
    assert_near(OPS.rms_norm(heads, weight, 1e-6), REFERENCE.rms_norm(heads, weight, 1e-6), 4)
    part = qkv[:, 24:48]
    assert_near(OPS.rms_norm(part, weight, 1e-6), REFERENCE.rms_norm(part, weight, 1e-6), 4)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 40),
    width=st.sampled_from([1, 5, 16, 100, 1536]),
    size=st.sampled_from([1.0, 30.0, 1000.0]),
)
def test_silu_mul(rows: int, width: int, size: float) -> None:
    gate_up = random(rows, 2 * width) * torch.tensor([size] * width + [1.0] * width)
    assert_near(OPS.silu_mul(gate_up), REFERENCE.silu_mul(gate_up), 4)


@pytest.mark.parametrize("rotated", [1.0, 0.5])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_rotary_in_a_fused_projection(heads: tuple[int, int, int], rotated: float) -> None:
    num_heads, kv_heads, width = heads
    for rows in (0, 1, 5, 300):
        qkv = random(rows, (num_heads + 2 * kv_heads) * width)
        copy = qkv.clone()
        positions = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(3))
        cos_sin = random(50, int(width * rotated) // 2 * 2, seed=4)
        for ops, x in ((OPS, qkv), (REFERENCE, copy)):
            q, k, _ = x.split([num_heads * width, kv_heads * width, kv_heads * width], dim=1)
            q, k = q.view(rows, num_heads, width), k.view(rows, kv_heads, width)
            ops.rotary(q, k, positions, cos_sin)
        assert_near(qkv, copy, 4)


@pytest.mark.parametrize("dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_write_kv(dtype: torch.dtype, block_size: int) -> None:
    for rows in (0, 1, 9, 200):
        blocks = rows // block_size + 4
        kv = torch.zeros(blocks, 2, 2, 3, block_size, 20, dtype=dtype)
        expected = kv.clone()
        kvs = random(rows, 2 * 60)
        k, v = kvs[:, :60].view(rows, 3, 20), kvs[:, 60:].view(rows, 3, 20)
        order = torch.Generator().manual_seed(rows)
        slots = torch.randperm(blocks * block_size, generator=order)[:rows]
        slots[::4] = -1
        OPS.write_kv(k, v, kv, 1, slots)
        REFERENCE.write_kv(k, v, expected, 1, slots)
        assert torch.equal(kv, expected)


def attention_case(
    heads: tuple[int, int, int],
    batch: tuple[list[int], list[int], int],
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    query_lens, contexts, num_prefill = batch
    q, kv, meta = paged_batch(
        query_lens, contexts, num_prefill, heads=heads[0], kv_heads=heads[1], head_dim=heads[2],
        block_size=block_size, dtype=torch.float32, device=CPU, seed=seed,
    )  # fmt: skip
    return q, kv.to(dtype), meta


@pytest.mark.parametrize("dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 7, 50, 600])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(heads: tuple[int, int, int], window: int | None, dtype: torch.dtype) -> None:
    for i, batch in enumerate(BATCHES):
        q, kv, meta = attention_case(heads, batch, dtype=dtype, seed=i)
        args = (kv, 1, meta, heads[2] ** -0.5, window)
        assert_near(OPS.attention(q, *args), REFERENCE.attention(q, *args), 2)


@pytest.mark.parametrize("block_size", [1, 2, 5, 32, 64])
def test_attention_over_block_sizes(block_size: int) -> None:
    q, kv, meta = attention_case((4, 2, 24), ([21, 70, 1, 1], [40, 70, 65, 1], 2), block_size)
    args = (kv, 0, meta, 0.2)
    assert_near(OPS.attention(q, *args), REFERENCE.attention(q, *args), 2)


def test_attention_survives_large_scores() -> None:
    q, kv, meta = attention_case((4, 2, 32), ([40, 1], [40, 80], 1))
    expected = REFERENCE.attention(q.double(), kv.double(), 0, meta, 30.0).float()
    actual = OPS.attention(q, kv, 0, meta, 30.0)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_a_query_attends_the_same_in_any_chunk_and_batch() -> None:
    q, kv, meta = attention_case((6, 2, 32), ([90], [90], 1))
    whole = OPS.attention(q, kv, 0, meta, 0.2)
    table = meta.block_tables[0].tolist()
    for first, last in [(0, 5), (5, 31), (31, 90), (89, 90)]:
        part = AttentionMeta.from_lists([table], [last - first], [last], 1)
        assert torch.equal(OPS.attention(q[first:last], kv, 0, part, 0.2), whole[first:last])
    rows = [0, 3, 40, 88]
    several = AttentionMeta.from_lists([table] * 4, [1] * 4, [r + 1 for r in rows], 0)
    together = OPS.attention(q[rows], kv, 0, several, 0.2)
    for i, r in enumerate(rows):
        alone = AttentionMeta.from_lists([table], [1], [r + 1], 0)
        assert torch.equal(OPS.attention(q[r : r + 1], kv, 0, alone, 0.2)[0], together[i])


@pytest.mark.parametrize("dtype", KV_DTYPES, ids=str)
def test_blocks_move_bit_for_bit(dtype: torch.dtype) -> None:
    kv = random(9, 2, 2, 3, 4, 8).to(dtype)
    before = kv.clone()
    OPS.copy_blocks(kv, torch.tensor([1, 2]), torch.tensor([7, 8]))
    assert torch.equal(kv[7:9], before[1:3]) and torch.equal(kv[:7], before[:7])
    packed = OPS.pack_blocks(kv, torch.tensor([5, 0]))
    assert packed.dtype == torch.uint8 and packed.shape == (2, kv[0].nbytes)
    OPS.unpack_blocks(kv, torch.tensor([3, 4]), packed)
    assert torch.equal(kv[3], kv[5]) and torch.equal(kv[4], kv[0])


def test_a_layer_slice_of_the_arena_is_honoured() -> None:
    q, kv, meta = attention_case((4, 2, 24), ([21, 1], [40, 65], 1))
    wide = torch.full((kv.shape[0], 5, *kv.shape[2:]), float("nan"))
    wide[:, 2:4] = kv
    assert torch.equal(
        OPS.attention(q, wide[:, 2:4], 1, meta, 0.2), OPS.attention(q, kv, 1, meta, 0.2)
    )


def test_misuse_is_refused_with_a_reason() -> None:
    q, kv, meta = attention_case((4, 2, 24), ([3], [3], 1))
    with pytest.raises(TypeError, match="float32 or torch.bfloat16"):
        OPS.attention(q, kv.double(), 0, meta, 1.0)
    with pytest.raises(ValueError, match="2 kv heads of 24"):
        OPS.attention(q[:, :3], kv, 0, meta, 1.0)
    with pytest.raises(TypeError, match="activations are float32"):
        OPS.silu_mul(torch.zeros(2, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="contiguous int64"):
        OPS.write_kv(q, q, kv, 0, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="contiguous float32"):
        OPS.rms_norm(torch.zeros(2, 4), torch.zeros(5), 1e-5)
