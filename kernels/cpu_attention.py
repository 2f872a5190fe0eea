"""Causal paged attention on the CPU: prompts by tiles, decode rows by pages.

Legend: T tokens, S sequences, H query heads, K kv heads, G = H / K, D head_dim, P block_size.

A prompt's K and V are packed once a sequence and kv head into panels, and then attention is
two dot_tile products around a softmax. A decode row reads its pages in place, because packing
would cost more than it saves; long contexts are cut into spans of fixed length that run in
parallel and are merged in order. In both, a query's result depends on its own context only:
not on the batch, the chunk it came in, or the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_arena import entry, widen
from pd_kernels.cpu_math import exp, floats, int32s, larger
from pd_kernels.cpu_threads import NOGIL
from pd_kernels.cpu_vector import MAX_ROWS, PANEL, dot_tile_f32

# Tokens of context that one task of decode attention covers.
_SPAN = 512


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


@njit(fastmath={"nnan", "nsz", "reassoc"})
def _largest(scores):
    peak = scores[0]
    for i in range(scores.size):
        peak = larger(peak, scores[i])
    return peak


@njit(fastmath={"nsz", "reassoc", "contract"})
def _softmax(scores, scale):
    """scores = exp((scores - largest) * scale); returns (largest, their sum).

    Loops here and below run from 0 over slices: numba takes an index that may be negative for
    one from the end, and such a loop does not become vector code.
    """
    peak = _largest(scores)
    total = np.float32(0.0)
    for i in range(scores.size):
        value = exp((scores[i] - peak) * scale)
        scores[i] = value
        total += value
    return peak, total


@njit
def _attend_tile(
    out, out_stride, q, q_stride, row, rows, keys, values, context, position, window, scale, width
):
    """Attention of query rows row .. row + rows of one head; row 0 of the tile is at `position`.

    out and q are offset to the head; their strides are the elements from token to token.
    """
    low = max(0, position - window + 1) if window > 0 else 0
    low = low // PANEL * PANEL
    high = position + rows
    padded = (high - low + PANEL - 1) // PANEL * PANEL
    wide = (width + PANEL - 1) // PANEL * PANEL
    scores = np.empty((rows, padded), np.float32)
    sums = np.zeros((rows, wide), np.float32)
    zeros, tile = sums.ctypes.data, scores.ctypes.data
    for start in range(0, padded, PANEL):
        dot_tile_f32(
            tile + start * 4, padded, zeros, 0,
            q + row * q_stride * 4, q_stride, keys + (low + start) * width * 4, width, rows,
        )  # fmt: skip
    inverse = np.empty(rows, np.float32)
    for r in range(rows):
        first = max(0, position + r - window + 1) - low if window > 0 else 0
        last = position + r + 1 - low
        scores[r, :first] = np.float32(0.0)
        scores[r, last:] = np.float32(0.0)
        _, total = _softmax(scores[r, first:last], scale)
        inverse[r] = np.float32(1.0) / total
    for start in range(0, wide, PANEL):
        dot_tile_f32(
            zeros + start * 4, wide, zeros + start * 4, wide,
            tile, padded, values + (start * context + low * PANEL) * 4, high - low, rows,
        )  # fmt: skip
    for r in range(rows):
        result = floats(out + (row + r) * out_stride * 4, width)
        for i in range(width):
            result[i] = sums[r, i] * inverse[r]


@njit(parallel=True, nogil=NOGIL, cache=True)
def attend_prompt(
    out,
    q,
    q_stride,
    heads,
    kv,
    shape,
    layer,
    table_address,
    start,
    rows,
    context,
    window,
    scale,
    threads,
):
    """Query rows start .. start + rows of one sequence, its last tokens, over its context.

    out: address of contiguous float32 [T, H, D]; q of the same with q_stride elements from token to
    token. kv, shape: the arena. table_address: the
    sequence's int32 row of block tables. window 0: none. context >= rows >= 1.
    """
    kv_heads, block_size, width = shape[:3]
    table = int32s(table_address, (context + block_size - 1) // block_size)
    groups = heads // kv_heads
    wide = (width + PANEL - 1) // PANEL * PANEL
    tokens = (context + PANEL - 1) // PANEL * PANEL
    keys = np.empty((kv_heads, tokens * width), np.float32)
    values = np.empty((kv_heads, wide * context), np.float32)
    for head in prange(kv_heads):
        _pack_context(
            kv, shape, layer, head, table, context, keys[head].ctypes.data, values[head].ctypes.data
        )
    tiles = (rows + MAX_ROWS - 1) // MAX_ROWS
    units = tiles * heads
    for thread in prange(threads):
        # A tile costs as much as the context before it: neighbours in this order cost the same.
        for unit in range(thread, units, threads):
            tile = unit // heads
            head = unit - tile * heads
            row = tile * MAX_ROWS
            _attend_tile(
                out + head * width * 4,
                heads * width,
                q + head * width * 4,
                q_stride,
                start + row,
                min(MAX_ROWS, rows - row),
                keys[head // groups].ctypes.data,
                values[head // groups].ctypes.data,
                context,
                context - rows + row,
                window,
                np.float32(scale),
                width,
            )


@njit(fastmath={"nsz", "arcp", "contract", "reassoc"}, error_model="numpy")
def _attend_span(q, kv, shape, layer, head, table, first, last, scale, scores, sums, stats):
    """Unnormalised attention of q [G, D] over tokens first .. last of one kv head.

    sums [G, D] = sum of exp(s - max) * v; stats [G, 2] = max of s, sum of exp(s - max).
    scores [G, last - first] is scratch.
    """
    groups, width = q.shape
    block_size = shape[1]
    for t in range(first, last):
        key = entry(kv, shape, table[t // block_size], layer, 0, head, t % block_size)
        for g in range(groups):
            total = np.float32(0.0)
            for i in range(width):
                total += q[g, i] * widen(key[i])
            scores[g, t - first] = total
    for g in range(groups):
        peak, total = _softmax(scores[g, : last - first], scale)
        stats[g, 0] = peak * scale
        stats[g, 1] = total
    sums[:] = np.float32(0.0)
    for t in range(first, last):
        value = entry(kv, shape, table[t // block_size], layer, 1, head, t % block_size)
        for g in range(groups):
            p = scores[g, t - first]
            for i in range(width):
                sums[g, i] += p * widen(value[i])


@njit(error_model="numpy")
def _merge_spans(out, sums, stats):
    """out [G, D] from the spans' sums [n, G, D] and stats [n, G, 2], in order."""
    spans, groups, width = sums.shape
    for g in range(groups):
        peak = stats[0, g, 0]
        for n in range(1, spans):
            peak = max(peak, stats[n, g, 0])
        total = np.float32(0.0)
        for i in range(width):
            out[g, i] = np.float32(0.0)
        for n in range(spans):
            weight = exp(stats[n, g, 0] - peak)
            total += weight * stats[n, g, 1]
            for i in range(width):
                out[g, i] += weight * sums[n, g, i]
        for i in range(width):
            out[g, i] /= total


@njit(parallel=True, nogil=NOGIL, cache=True)
def attend_decode(
    out,
    q,
    q_stride,
    heads,
    kv,
    shape,
    layer,
    tables,
    max_blocks,
    contexts,
    count,
    window,
    scale,
    threads,
):
    """One query row for each of `count` sequences.

    out: address of contiguous float32 [count, H, D]; q of the same with q_stride elements from
    token to token; tables: int32 [count, max_blocks];
    contexts: int32 [count], 0 for padding, whose output is zero. window 0: none.
    """
    kv_heads, _, width = shape[:3]
    groups = heads // kv_heads
    scale32 = np.float32(scale)
    lengths = int32s(contexts, count)
    # Spans of sequence s are first_span[s] .. first_span[s + 1].
    first_span = np.zeros(count + 1, np.int64)
    for s in range(count):
        low = max(0, lengths[s] - window) if window > 0 else 0
        spans = (lengths[s] + _SPAN - 1) // _SPAN - low // _SPAN if lengths[s] > 0 else 0
        first_span[s + 1] = first_span[s] + spans
    total = first_span[count]
    sequence_of = np.empty(total, np.int64)
    for s in range(count):
        sequence_of[first_span[s] : first_span[s + 1]] = s
    sums = np.empty((kv_heads, total, groups, width), np.float32)
    stats = np.empty((kv_heads, total, groups, 2), np.float32)
    units = total * kv_heads
    for thread in prange(threads):
        scores = np.empty((groups, _SPAN), np.float32)
        for unit in range(thread * units // threads, (thread + 1) * units // threads):
            span = unit // kv_heads
            head = unit - span * kv_heads
            s = sequence_of[span]
            low = max(0, lengths[s] - window) if window > 0 else 0
            begin = (low // _SPAN + span - first_span[s]) * _SPAN
            _attend_span(
                floats(q + (s * q_stride + head * groups * width) * 4, groups * width).reshape(
                    groups, width
                ),
                kv,
                shape,
                layer,
                head,
                int32s(tables + s * max_blocks * 4, max_blocks),
                max(begin, low),
                min(begin + _SPAN, lengths[s]),
                scale32,
                scores,
                sums[head, span],
                stats[head, span],
            )
    for s in range(count):
        first, last = first_span[s], first_span[s + 1]
        for head in range(kv_heads):
            offset = (s * heads + head * groups) * width * 4
            result = floats(out + offset, groups * width).reshape(groups, width)
            if first == last:
                result[:] = np.float32(0.0)
            else:
                _merge_spans(result, sums[head, first:last], stats[head, first:last])
