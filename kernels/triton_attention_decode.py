"""Paged attention of decode rows: one query token a sequence, its context split over programs.

Legend: T tokens of the flat batch, S decode sequences, H query heads, K kv heads, G = H / K,
D head_dim (D_PAD rounded up to a power of two), P block_size, M = G padded to a dot's least rows,
N keys of a tile, C splits of the longest context, W window (0 none).

Reading KV is all the cost, so the G heads of a kv head share one program, and a long context is
cut into splits until the device is full. With more than one split a second kernel adds the parts
(flash-decoding). The number of splits depends on host integers only, and a program past the end
of its own context leaves at once: the launch can be captured into a CUDA graph with the bounds of
the longest context.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from pd_kernels.meta import AttentionMeta
from pd_kernels.triton_attention_inner import attend
from pd_kernels.triton_common import num_multiprocessors, require_unit_stride, wide_dots
from pd_kernels.triton_tiles import Tile, decode_tile

# A split is worth its reduction from here on (tokens) ...
_MIN_SPLIT = 256
# ... and no program should read more than this alone, or a batch waits for its longest context.
_MAX_SPLIT = 4096
# Programs wanted on each multiprocessor: two run at once and two more hide the ends of the first.
_PROGRAMS_PER_MULTIPROCESSOR = 4


@triton.jit
def _split_of(context, split_length, N: tl.constexpr, W: tl.constexpr):
    """(first key that counts, number of splits, keys a split) of a sequence's context."""
    first = 0
    if W > 0:
        first = tl.maximum(context - W, 0) // N * N
    span = tl.maximum(context - first, 1)
    # Splits of equal length rather than full ones and a rest, so that they end together.
    length = tl.cdiv(tl.cdiv(span, tl.cdiv(span, split_length)), N) * N
    # Whole tiles may need fewer splits, and the reduction must not read what nobody wrote.
    return first, tl.cdiv(span, length), length


# Integers that change from step to step, and pointers that are read by the scalar, must not make
# a compiled variant each: compiling in the middle of traffic stalls every stream.
@triton.jit(
    do_not_specialize=["layer", "first_sequence", "split_length", "stride_table"],
    do_not_specialize_on_alignment=["block_tables_ptr", "query_starts_ptr", "context_lens_ptr"],
)
def _decode_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    part_ptr,
    part_max_ptr,
    part_sum_ptr,
    block_tables_ptr,
    query_starts_ptr,
    context_lens_ptr,
    layer,
    first_sequence,
    split_length,
    stride_table,
    qk_scale,
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
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """PARTS: leave normalised parts for the reduction; otherwise there is one split, write out."""
    G: tl.constexpr = H // K
    kv_head = tl.program_id(0) % K
    row = tl.program_id(0) // K
    split = tl.program_id(1)
    sequence = first_sequence + row

    context = tl.load(context_lens_ptr + sequence)
    first_key, _, length = _split_of(context, split_length, N, W)
    start = first_key + split * length
    # The first split of a padding row (context 0) goes on, to write zeros.
    if (split > 0) & (start >= context):
        return
    end = tl.minimum(start + length, context)

    rows = tl.arange(0, M)
    heads = kv_head * G + rows
    dims = tl.arange(0, D_PAD)
    inside = (rows < G)[:, None] & (dims < D)[None, :]
    token = tl.load(query_starts_ptr + sequence).to(tl.int64)
    q = tl.load(
        q_ptr + token * STRIDE_Q + heads[:, None] * STRIDE_Q_HEAD + dims[None, :],
        mask=inside,
        other=0.0,
    )
    if WIDE:
        q = q.to(tl.float32)
    position = context - 1
    head_ptr = kv_ptr + layer.to(tl.int64) * STRIDE_LAYER + kv_head * STRIDE_HEAD
    acc, row_sum, row_max = attend(
        q,
        head_ptr,
        head_ptr + STRIDE_VALUE,
        block_tables_ptr + sequence.to(tl.int64) * stride_table,
        tl.full([M], 0, dtype=tl.int32) + position, position, position, context, start, end,
        qk_scale, STRIDE_BLOCK, STRIDE_TOKEN, P, D, D_PAD, M, N, W, WIDE,
    )  # fmt: skip
    out = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    if PARTS:
        cell = (row.to(tl.int64) * H + heads) * tl.num_programs(1) + split
        tl.store(part_ptr + cell[:, None] * D + dims[None, :], out, mask=inside)
        tl.store(part_max_ptr + cell, row_max, mask=rows < G)
        tl.store(part_sum_ptr + cell, row_sum, mask=rows < G)
    else:
        tl.store(
            out_ptr + token * (H * D) + heads[:, None] * D + dims[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=inside,
        )


@triton.jit(
    do_not_specialize=["first_sequence", "split_length", "num_splits"],
    do_not_specialize_on_alignment=["query_starts_ptr", "context_lens_ptr"],
)
def _reduce_kernel(
    part_ptr,
    part_max_ptr,
    part_sum_ptr,
    out_ptr,
    query_starts_ptr,
    context_lens_ptr,
    first_sequence,
    split_length,
    num_splits,
    H: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Weigh the parts of one query head by their share of the softmax sum."""
    row = tl.program_id(0) // H
    head = tl.program_id(0) % H
    sequence = first_sequence + row
    context = tl.load(context_lens_ptr + sequence)
    _, splits, _ = _split_of(context, split_length, N, W)
    dims = tl.arange(0, D_PAD)
    cell = (row.to(tl.int64) * H + head) * num_splits

    total_max = -float("inf")
    total_sum = 0.0
    acc = tl.zeros([D_PAD], dtype=tl.float32)
    for first in tl.range(0, splits, CHUNK):
        parts = first + tl.arange(0, CHUNK)
        real = parts < splits
        part_max = tl.load(part_max_ptr + cell + parts, mask=real, other=-float("inf"))
        part_sum = tl.load(part_sum_ptr + cell + parts, mask=real, other=0.0)
        part = tl.load(
            part_ptr + (cell + parts)[:, None] * D + dims[None, :],
            mask=real[:, None] & (dims < D)[None, :],
            other=0.0,
        )
        new_max = tl.maximum(total_max, tl.max(part_max, axis=0))
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        shrink = tl.exp2(total_max - base)
        weight = tl.exp2(part_max - base) * part_sum
        total_sum = total_sum * shrink + tl.sum(weight, axis=0)
        acc = acc * shrink + tl.sum(part * weight[:, None], axis=0)
        total_max = new_max
    out = acc / tl.where(total_sum > 0.0, total_sum, 1.0)
    token = tl.load(query_starts_ptr + sequence).to(tl.int64)
    tl.store(
        out_ptr + token * (H * D) + head * D + dims,
        out.to(out_ptr.dtype.element_ty),
        mask=dims < D,
    )


def split_length(
    num_sequences: int, num_kv_heads: int, max_context: int, num_multiprocessors: int
) -> int:
    """Keys a program reads, in tokens, between _MIN_SPLIT and _MAX_SPLIT."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    splits = max(1, wanted // max(1, num_sequences * num_kv_heads))
    return min(max(triton.cdiv(max_context, splits), _MIN_SPLIT), _MAX_SPLIT)


def decode_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    layer: int,
    meta: AttentionMeta,
    scale: float,
    window: int | None,
    out: torch.Tensor,
    tile: Tile | None = None,
    split: int | None = None,
) -> None:
    """Write the rows of meta's decode sequences, which come last, into out [T, H, D].

    split: keys a program reads; chosen from the batch and the device if None.
    """
    require_unit_stride("q", q)
    require_unit_stride("kv", kv)
    num_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads, block_size = kv.shape[3], kv.shape[4]
    group = num_heads // num_kv_heads
    tile = tile or decode_tile(q.device, q.dtype, head_dim, group)
    reach = meta.max_context_len
    if window is not None:
        # The window's first key may lie anywhere in a tile, which is read whole.
        reach = min(reach, window + tile.keys)
    split = split or split_length(
        meta.num_decode, num_kv_heads, reach, num_multiprocessors(q.device)
    )
    num_splits = max(1, triton.cdiv(reach, split))
    part = part_max = part_sum = out
    if num_splits > 1:
        cells = (meta.num_decode, num_heads, num_splits)
        part = torch.empty((*cells, head_dim), dtype=torch.float32, device=q.device)
        part_max = torch.empty(cells, dtype=torch.float32, device=q.device)
        part_sum = torch.empty(cells, dtype=torch.float32, device=q.device)
    padded = max(16, triton.next_power_of_2(head_dim))
    _decode_kernel[(meta.num_decode * num_kv_heads, num_splits)](
        q,
        kv,
        out,
        part,
        part_max,
        part_sum,
        meta.block_tables,
        meta.query_starts,
        meta.context_lens,
        layer,
        meta.num_prefill,
        split,
        meta.block_tables.stride(0),
        scale * math.log2(math.e),
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
        D_PAD=padded,
        M=tile.rows,
        N=tile.keys,
        W=window or 0,
        PARTS=num_splits > 1,
        WIDE=wide_dots(q.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if num_splits > 1:
        _reduce_kernel[(meta.num_decode * num_heads,)](
            part,
            part_max,
            part_sum,
            out,
            meta.query_starts,
            meta.context_lens,
            meta.num_prefill,
            split,
            num_splits,
            H=num_heads,
            D=head_dim,
            D_PAD=padded,
            N=tile.keys,
            W=window or 0,
            CHUNK=16,
            num_warps=4 if padded >= 128 else 2,
        )
