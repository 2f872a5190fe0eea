"""Paged attention kernels against the reference: ragged, grouped, windowed, odd in every size."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels need triton")

from pd_kernels import triton_attention_decode as decode
from pd_kernels import triton_attention_prefill as prefill
from pd_kernels.reference import ReferenceOps
from pd_kernels.triton_ops import TritonOps
from pd_kernels.triton_tiles import Tile, decode_tile, prefill_tile

from .batches import DTYPES, assert_near, paged_batch

TRITON, REFERENCE = TritonOps(), ReferenceOps()

# (query heads, kv heads, head_dim): no groups, even and odd groups, one kv head; sizes that are
# no power of two, below a dot's least size, and above a tile's.
HEADS = [(2, 2, 16), (8, 2, 32), (9, 3, 20), (7, 1, 24), (3, 1, 8), (4, 2, 80)]
# (query lens, context lens, number of prefills): whole prompts, chunks over a prefix, chunks that
# end inside a block, single rows, decodes alone, decodes of one token, padding, and all together.
BATCHES = [
    ([1], [1], 1),
    ([19], [19], 1),
    ([5, 33, 1], [5, 70, 18], 3),
    ([1, 1, 1, 1], [1, 16, 17, 75], 0),
    ([20, 3, 1, 1, 1], [41, 3, 33, 0, 64], 2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_mixed_batches(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]
) -> None:
    for i, (query_lens, contexts, num_prefill) in enumerate(BATCHES):
        q, kv, meta = paged_batch(
            query_lens,
            contexts,
            num_prefill,
            heads=heads[0],
            kv_heads=heads[1],
            head_dim=heads[2],
            block_size=16,
            dtype=dtype,
            device=device,
            seed=i,
        )
        scale = heads[2] ** -0.5
        actual = TRITON.attention(q, kv, 1, meta, scale)
        assert_near(actual, REFERENCE.attention(q, kv, 1, meta, scale))


@pytest.mark.parametrize("block_size", [1, 2, 4, 6, 16, 32, 64])
def test_block_sizes(device: torch.device, block_size: int) -> None:
    q, kv, meta = paged_batch(
        [21, 1, 1],
        [37, 50, 7],
        1,
        heads=6,
        kv_heads=2,
        head_dim=16,
        block_size=block_size,
        dtype=torch.float32,
        device=device,
    )
    actual = TRITON.attention(q, kv, 0, meta, 0.25)
    assert_near(actual, REFERENCE.attention(q, kv, 0, meta, 0.25))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 31, 48, 1000])
def test_sliding_windows(device: torch.device, window: int) -> None:
    """A window that ends inside, at and beyond tiles, with NaN in what it does not reach."""
    q, kv, meta = paged_batch(
        [40, 9, 1, 1],
        [40, 90, 95, 3],
        2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        block_size=8,
        dtype=torch.float32,
        device=device,
    )
    expected = REFERENCE.attention(q, kv, 1, meta, 0.25, window)
    assert_near(TRITON.attention(q, kv, 1, meta, 0.25, window), expected)


@pytest.mark.parametrize("tile", [Tile(16, 16, 1, 1), Tile(32, 64, 1, 1), Tile(64, 16, 1, 1)])
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_tiles(device: torch.device, tile: Tile, window: int | None) -> None:
    q, kv, meta = paged_batch(
        [37, 50, 2],
        [37, 83, 40],
        3,
        heads=10,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    out = torch.full_like(q, float("nan"))
    prefill.prefill_attention(q, kv, 1, meta, 0.25, window, out, tile)
    assert_near(out, REFERENCE.attention(q, kv, 1, meta, 0.25, window))


@pytest.mark.parametrize("split", [10, 16, 32, 128])
@pytest.mark.parametrize("window", [None, 40])
def test_decode_splits(device: torch.device, split: int, window: int | None) -> None:
    """Contexts with no split, one, several and more than the reduction takes at once."""
    q, kv, meta = paged_batch(
        [1, 1, 1, 1, 1],
        [300, 1, 0, 16, 129],
        0,
        heads=6,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    out = torch.full_like(q, float("nan"))
    decode.decode_attention(q, kv, 1, meta, 0.25, window, out, split=split)
    assert_near(out, REFERENCE.attention(q, kv, 1, meta, 0.25, window))


def test_bounds_larger_than_the_batch_change_nothing(device: torch.device) -> None:
    """A captured graph launches for the longest context it may ever see."""
    q, kv, meta = paged_batch(
        [1, 1],
        [20, 33],
        0,
        heads=4,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    expected = REFERENCE.attention(q, kv, 0, meta, 0.25)
    object.__setattr__(meta, "max_context_len", 5000)
    assert_near(TRITON.attention(q, kv, 0, meta, 0.25), expected)


def test_queries_that_are_a_slice_of_a_fused_projection(device: torch.device) -> None:
    q, kv, meta = paged_batch(
        [9, 1],
        [9, 30],
        1,
        heads=4,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float16,
        device=device,
    )
    fused = torch.randn(10, 8, 16, device=device).to(q.dtype)
    fused[:, :4] = q
    actual = TRITON.attention(fused[:, :4], kv, 0, meta, 0.25)
    assert torch.equal(actual, TRITON.attention(q, kv, 0, meta, 0.25))


def test_an_arena_of_another_dtype(device: torch.device) -> None:
    q, kv, meta = paged_batch(
        [9, 1],
        [9, 30],
        1,
        heads=4,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    kv = kv.bfloat16()
    actual = TRITON.attention(q, kv, 0, meta, 0.25)
    assert_near(actual, REFERENCE.attention(q, kv, 0, meta, 0.25))


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    q, kv, meta = paged_batch(
        [18, 1],
        [18, 40],
        1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    expected = REFERENCE.attention(q * 100, kv, 0, meta, 1.0)
    assert_near(TRITON.attention(q * 100, kv, 0, meta, 1.0), expected, scale=100)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    """The same prompt alone and among others, bit for bit, as long as its tiles are cut alike."""
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 16, "block_size": 16}
    q, kv, meta = paged_batch(
        [1, 1, 1], [37, 90, 5], 0, **sizes, dtype=torch.float32, device=device
    )
    together = TRITON.attention(q, kv, 0, meta, 0.25)
    tables, contexts = meta.block_tables.tolist(), meta.context_lens.tolist()
    for s in range(3):
        alone = meta.from_lists([tables[s]], [1], [contexts[s]], 0, device)
        assert torch.equal(TRITON.attention(q[s : s + 1], kv, 0, alone, 0.25)[0], together[s])


def test_heads_that_do_not_divide_are_refused(device: torch.device) -> None:
    q, kv, meta = paged_batch(
        [1],
        [4],
        1,
        heads=4,
        kv_heads=2,
        head_dim=16,
        block_size=16,
        dtype=torch.float32,
        device=device,
    )
    with pytest.raises(ValueError, match="3 query heads do not divide into 2 kv heads"):
        TRITON.attention(q[:, :3], kv, 0, meta, 0.25)


@pytest.mark.parametrize(
    ("sequences", "kv_heads", "context", "expected"),
    [
        (1, 8, 132000, 2000),  # 66 splits x 8 heads: four programs on each of 132
        (1, 8, 2048, 256),  # as many as are worth a reduction
        (256, 8, 2048, 2048),  # the batch alone fills the device
        (256, 8, 131072, 4096),  # but no program reads a long context alone
        (1, 1, 1, 256),
    ],
)
def test_split_length(sequences: int, kv_heads: int, context: int, expected: int) -> None:
    assert decode.split_length(sequences, kv_heads, context, 132) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 8, 32])
def test_default_tiles_hold_a_group_and_fit(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int
) -> None:
    tiles = [prefill_tile(device, dtype, head_dim, group, few) for few in (False, True)]
    tiles.append(decode_tile(device, dtype, head_dim, group))
    for tile in tiles:
        assert tile.rows >= group and tile.keys >= 16
        assert tile.shared_bytes(head_dim, dtype.itemsize) <= 227 * 1024
