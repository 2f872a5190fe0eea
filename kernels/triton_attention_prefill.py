"""Paged causal attention of prompt chunks, over cached prefix and chunk alike.

Legend: T tokens of the flat batch, S sequences, H query heads, K kv heads, G = H / K, D head_dim
(D_PAD rounded up to a power of two), P block_size, M rows and N keys of a tile, W window (0 none).

A tile is M // G consecutive tokens of one sequence times the G query heads of one kv head, so that
every key read serves all of them. Sequences are ragged: a program finds its sequence by binary
search over query_starts, and the grid is an upper bound that the host knows without asking the
device.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from pd_kernels.meta import AttentionMeta
from pd_kernels.triton_attention_inner import attend
from pd_kernels.triton_common import num_multiprocessors, require_unit_stride, wide_dots
from pd_kernels.triton_tiles import Tile, prefill_tile


@triton.jit(
    do_not_specialize=["layer", "num_sequences", "num_tiles", "stride_table"],
    do_not_specialize_on_alignment=["block_tables_ptr", "query_starts_ptr", "context_lens_ptr"],
)
def _prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    block_tables_ptr,
    query_starts_ptr,
    context_lens_ptr,
    layer,
    num_sequences,
    num_tiles,
    qk_scale,
    stride_table,
    STRIDE_Q: tl.constexpr,
    STRIDE_Q_HEAD: tl.constexpr,
    STRIDE_BLOCK: tl.constexpr,
    STRIDE_LAYER: tl.constexpr,
    STRIDE_VALUE: tl.constexpr,
    STRIDE_HEAD: tl.constexpr,
    STRIDE_TOKEN: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
):
    G: tl.constexpr = H // K
    TOKENS: tl.constexpr = M // G
    kv_head = tl.program_id(0) % K
    # The last tiles of a prompt have the longest contexts: they start first and end together.
    tile = num_tiles - 1 - tl.program_id(0) // K

    # Sequence s owns tiles from query_starts[s] // TOKENS + s on, which is always enough of them.
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        first_tile = tl.load(query_starts_ptr + middle) // TOKENS + middle
        low = tl.where(first_tile <= tile, middle + 1, low)
        high = tl.where(first_tile <= tile, high, middle)
    sequence = low - 1
    query_start = tl.load(query_starts_ptr + sequence)
    query_len = tl.load(query_starts_ptr + sequence + 1) - query_start
    first = (tile - query_start // TOKENS - sequence) * TOKENS
    if first >= query_len:
        return

    context = tl.load(context_lens_ptr + sequence)
    rows = tl.arange(0, M)
    tokens = first + rows // G
    heads = kv_head * G + rows % G
    real = (rows < TOKENS * G) & (tokens < query_len)
    dims = tl.arange(0, D_PAD)
    flat = (query_start + tokens).to(tl.int64)
    inside = real[:, None] & (dims < D)[None, :]
    q = tl.load(
        q_ptr + flat[:, None] * STRIDE_Q + heads[:, None] * STRIDE_Q_HEAD + dims[None, :],
        mask=inside,
        other=0.0,
    )
    if WIDE:
        q = q.to(tl.float32)

    q_pos = context - query_len + tokens
    min_pos = context - query_len + first
    max_pos = tl.minimum(min_pos + TOKENS, context) - 1
    start = 0
    if W > 0:
        start = tl.maximum(min_pos - W + 1, 0) // N * N
    head_ptr = kv_ptr + layer.to(tl.int64) * STRIDE_LAYER + kv_head * STRIDE_HEAD
    acc, row_sum, _ = attend(
        q,
        head_ptr,
        head_ptr + STRIDE_VALUE,
        block_tables_ptr + sequence.to(tl.int64) * stride_table,
        q_pos, min_pos, max_pos, context, start, max_pos + 1, qk_scale,
        STRIDE_BLOCK, STRIDE_TOKEN, P, D, D_PAD, M, N, W, WIDE,
    )  # fmt: skip
    out = acc / tl.where(real, row_sum, 1.0)[:, None]
    tl.store(
        out_ptr + flat[:, None] * (H * D) + heads[:, None] * D + dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


def prefill_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    layer: int,
    meta: AttentionMeta,
    scale: float,
    window: int | None,
    out: torch.Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the rows of meta's prefill sequences, which come first, into out [T, H, D]."""
    require_unit_stride("q", q)
    require_unit_stride("kv", kv)
    num_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads, block_size = kv.shape[3], kv.shape[4]
    group = num_heads // num_kv_heads
    num_tokens = q.shape[0] - meta.num_decode
    if tile is None:
        programs_of_64 = num_tokens * group // 64 * num_kv_heads
        few = programs_of_64 < 2 * num_multiprocessors(q.device)
        tile = prefill_tile(q.device, q.dtype, head_dim, group, few)
    num_tiles = num_tokens // (tile.rows // group) + meta.num_prefill
    _prefill_kernel[(num_tiles * num_kv_heads,)](
        q,
        kv,
        out,
        meta.block_tables,
        meta.query_starts,
        meta.context_lens,
        layer,
        meta.num_prefill,
        num_tiles,
        scale * math.log2(math.e),
        meta.block_tables.stride(0),
        STRIDE_Q=q.stride(0),
        STRIDE_Q_HEAD=q.stride(1),
        STRIDE_BLOCK=kv.stride(0),
        STRIDE_LAYER=kv.stride(1),
        STRIDE_VALUE=kv.stride(2),
        STRIDE_HEAD=kv.stride(3),
        STRIDE_TOKEN=kv.stride(4),
        H=num_heads,
        K=num_kv_heads,
        P=block_size,
        D=head_dim,
        D_PAD=max(16, triton.next_power_of_2(head_dim)),
        M=tile.rows,
        N=tile.keys,
        W=window or 0,
        WIDE=wide_dots(q.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
