"""Causal attention of prompts on the CPU: flash attention's tiles, with BLAS-like products.

Legend: T tokens, H query heads, K kv heads, G = H / K, D head_dim, P block_size.

K and V of a sequence are packed once a kv head into panels; then a tile of queries is two
dot_tile products around a softmax. A query's result depends on its own context only: not on the
chunk it came in, the batch, or the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_arena import entry, widen
from pd_kernels.cpu_math import floats, int32s
from pd_kernels.cpu_softmax import softmax
from pd_kernels.cpu_threads import NOGIL, PARALLEL
from pd_kernels.cpu_vector import MAX_ROWS, PANEL, dot_tile


@njit
def _pack_context(kv, shape, layer, head, table, context, keys, values):
    """K of one head to panels of tokens [ceil(context / PANEL), D, PANEL], V to panels of dims
    [ceil(D / PANEL), context, PANEL]; zero where a panel reaches beyond."""
    _, block_size, width = shape[:3]
    for start in range(0, context, PANEL):
        panel = keys + start * width * 4
        out = floats(panel, width * PANEL)
        count = min(PANEL, context - start)
        for j in range(count):
            block = table[(start + j) // block_size]
            key = entry(kv, shape, block, layer, 0, head, (start + j) % block_size)
            for i in range(width):
                out[i * PANEL + j] = widen(key[i])
        for j in range(count, PANEL):
            for i in range(width):
                out[i * PANEL + j] = np.float32(0.0)
    for start in range(0, width, PANEL):
        out = floats(values + start * context * 4, context * PANEL)
        count = min(PANEL, width - start)
        for t in range(context):
            value = entry(kv, shape, table[t // block_size], layer, 1, head, t % block_size)
            for j in range(count):
                out[t * PANEL + j] = widen(value[start + j])
            for j in range(count, PANEL):
                out[t * PANEL + j] = np.float32(0.0)


@njit
def _attend_tile(
    dot, out, out_stride, q, q_stride, rows, keys, values, context, position, window, scale, width
):
    """Attention of `rows` queries of one head, the first of them at `position`.

    out and q are at the first query's head; their strides are the elements from token to token.
    """
    low = max(0, position - window + 1) if window > 0 else 0
    low = low // PANEL * PANEL
    high = position + rows
    padded = (high - low + PANEL - 1) // PANEL * PANEL
    wide = (width + PANEL - 1) // PANEL * PANEL
    scores = np.empty((rows, padded), np.float32)
    sums = np.zeros((rows, wide), np.float32)
    scores_at, sums_at = scores.ctypes.data, sums.ctypes.data
    for start in range(0, padded, PANEL):
        # The sums are still zero, and so the start of every score.
        dot_tile(
            dot, scores_at + start * 4, padded, sums_at, 0,
            q, q_stride, keys + (low + start) * width * 4, width, rows,
        )  # fmt: skip
    inverse = np.empty(rows, np.float32)
    for r in range(rows):
        first = max(0, position + r - window + 1) - low if window > 0 else 0
        last = position + r + 1 - low
        scores[r, :first] = np.float32(0.0)
        scores[r, last:] = np.float32(0.0)
        _, total = softmax(scores[r, first:last], scale)
        inverse[r] = np.float32(1.0) / total
    for start in range(0, wide, PANEL):
        # The scores by name: numba frees an array after its last use by name.
        dot_tile(
            dot, sums_at + start * 4, wide, sums_at + start * 4, wide, scores.ctypes.data, padded,
            values + (start * context + low * PANEL) * 4, high - low, rows,
        )  # fmt: skip
    for r in range(rows):
        result = floats(out + r * out_stride * 4, width)
        for i in range(width):
            result[i] = sums[r, i] * inverse[r]


@njit(parallel=PARALLEL, nogil=NOGIL)
def _pack_heads(kv, shape, layer, table, context, keys, values):
    for index in prange(keys.shape[0]):
        head = np.int64(index)  # prange counts unsigned, for which all would be compiled again
        _pack_context(
            kv, shape, layer, head, table, context, keys[head].ctypes.data, values[head].ctypes.data
        )


@njit
def _attend_share(
    dot, out, q, q_stride, heads, rows, keys, values, context, window, scale, width, share, shares
):
    """Every `shares`-th tile of the sequence, from number `share` on. A tile costs as much as the
    context before it, and neighbours in this order cost the same."""
    groups = heads // keys.shape[0]
    tiles = (rows + MAX_ROWS - 1) // MAX_ROWS
    for unit in range(share, tiles * heads, shares):
        tile = unit // heads
        head = unit - tile * heads
        row = tile * MAX_ROWS
        _attend_tile(
            dot, out + (row * heads + head) * width * 4, heads * width,
            q + (row * q_stride + head * width) * 4, q_stride, min(MAX_ROWS, rows - row),
            keys[head // groups].ctypes.data, values[head // groups].ctypes.data,
            context, context - rows + row, window, scale, width,
        )  # fmt: skip


@njit(parallel=PARALLEL, nogil=NOGIL)
def _attend_tiles(
    dot, out, q, q_stride, heads, rows, keys, values, context, window, scale, width, threads
):
    for thread in prange(threads):
        _attend_share(
            dot, out, q, q_stride, heads, rows, keys, values, context, window, scale, width,
            np.int64(thread), threads,
        )  # fmt: skip


@njit(nogil=NOGIL, cache=True)
def attend_prompt(
    dot, out, q, q_stride, heads, kv, shape, layer, table_address, rows, context, window, scale,
    threads,
):  # fmt: skip
    """The queries of one sequence's last `rows` tokens over its context.

    dot: tile_address(float32). out: address of contiguous float32 [rows, H, D]; q: of the same
    with q_stride elements from token to token. kv, shape: the arena. table_address: of the
    sequence's int32 block table. window 0: none. context >= rows >= 1.
    """
    kv_heads, block_size, width = shape[:3]
    table = int32s(table_address, (context + block_size - 1) // block_size)
    tokens = (context + PANEL - 1) // PANEL * PANEL
    wide = (width + PANEL - 1) // PANEL * PANEL
    keys = np.empty((kv_heads, tokens * width), np.float32)
    values = np.empty((kv_heads, wide * context), np.float32)
    _pack_heads(kv, shape, layer, table, context, keys, values)
    _attend_tiles(
        dot, out, q, q_stride, heads, rows, keys, values, context, window, np.float32(scale),
        width, threads,
    )  # fmt: skip
