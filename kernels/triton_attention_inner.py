"""The loop that prefill and decode attention share: one query tile against a range of KV.

Legend: M rows of the query tile (a row is one query head of one token), N keys a tile, D head_dim
(D_PAD rounded up to a power of two), P block_size, G query heads a kv head. W window, 0 for none.

The softmax is computed online, tile by tile, in base 2: scores are multiplied by scale * log2(e).
(Milakov and Gimelshein 2018; Dao et al., FlashAttention, 2022.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _attend_tiles(
    acc,
    row_sum,
    row_max,
    q,
    k_ptr,
    v_ptr,
    table_ptr,
    q_pos,
    context,
    start,
    end,
    qk_scale,
    STRIDE_BLOCK: tl.constexpr,
    STRIDE_TOKEN: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys start .. end (start a multiple of N). Unmasked tiles are visible whole to every row."""
    dims = tl.arange(0, D_PAD)
    for tile in tl.range(start, end, N):
        keys = tile + tl.arange(0, N)
        # Whatever lies in a block past the context may be NaN, and 0 * NaN is NaN: not loaded.
        if MASKED:
            blocks = tl.load(table_ptr + keys // P, mask=keys < context, other=0)
        else:
            blocks = tl.load(table_ptr + keys // P)
        rows = blocks.to(tl.int64) * STRIDE_BLOCK + (keys % P) * STRIDE_TOKEN
        offsets = rows[:, None] + dims[None, :]
        if MASKED:
            inside = (keys < context)[:, None] & (dims < D)[None, :]
            k = tl.load(k_ptr + offsets, mask=inside, other=0.0)
            v = tl.load(v_ptr + offsets, mask=inside, other=0.0)
        elif D == D_PAD:
            k = tl.load(k_ptr + offsets)
            v = tl.load(v_ptr + offsets)
        else:
            k = tl.load(k_ptr + offsets, mask=(dims < D)[None, :], other=0.0)
            v = tl.load(v_ptr + offsets, mask=(dims < D)[None, :], other=0.0)
        if WIDE:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        else:
            k = k.to(q.dtype)
            v = v.to(q.dtype)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
        if MASKED:
            visible = keys[None, :] <= q_pos[:, None]
            if W > 0:
                visible = visible & (keys[None, :] > q_pos[:, None] - W)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        if MASKED:
            # A row that has seen no key yet: -inf minus -inf would be NaN.
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
        else:
            base = new_max
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(row_max - base)
        row_sum = row_sum * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        row_max = new_max
    return acc, row_sum, row_max


@triton.jit
def attend(
    q,
    k_ptr,
    v_ptr,
    table_ptr,
    q_pos,
    min_pos,
    max_pos,
    context,
    start,
    end,
    qk_scale,
    STRIDE_BLOCK: tl.constexpr,
    STRIDE_TOKEN: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attention of q [M, D_PAD] over keys start .. end of one sequence and kv head.

    q_pos [M] lies in min_pos .. max_pos. k_ptr and v_ptr point at the layer and kv head in block
    0; table_ptr at the sequence's block table. start is a multiple of N; end <= context.
    Returns acc [M, D_PAD], row_sum [M], row_max [M] (base 2), fp32: out = acc / row_sum.
    """
    acc = tl.zeros([M, D_PAD], dtype=tl.float32)
    row_sum = tl.zeros([M], dtype=tl.float32)
    row_max = tl.full([M], float("-inf"), dtype=tl.float32)

    # Only tiles that cross the diagonal or the window's far edge pay for masks.
    whole_start = start
    if W > 0:
        whole_start = tl.cdiv(tl.maximum(max_pos - W + 1, 0), N) * N
        whole_start = tl.minimum(
            tl.maximum(whole_start, start), start + tl.cdiv(end - start, N) * N
        )
    whole_end = tl.maximum(tl.minimum(min_pos + 1, end) // N * N, whole_start)

    if W > 0:
        acc, row_sum, row_max = _attend_tiles(
            acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, q_pos, context,
            start, tl.minimum(whole_start, end), qk_scale,
            STRIDE_BLOCK, STRIDE_TOKEN, P, D, D_PAD, N, W, WIDE, True,
        )  # fmt: skip
    acc, row_sum, row_max = _attend_tiles(
        acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, q_pos, context,
        whole_start, whole_end, qk_scale,
        STRIDE_BLOCK, STRIDE_TOKEN, P, D, D_PAD, N, W, WIDE, False,
    )  # fmt: skip
    acc, row_sum, row_max = _attend_tiles(
        acc, row_sum, row_max, q, k_ptr, v_ptr, table_ptr, q_pos, context,
        whole_end, end, qk_scale,
        STRIDE_BLOCK, STRIDE_TOKEN, P, D, D_PAD, N, W, WIDE, True,
    )  # fmt: skip
    return acc, row_sum, row_max
