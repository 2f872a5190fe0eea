"""Paged attention of decode rows on the CPU: one query a sequence, pages read in place.

Legend: S sequences, H query heads, K kv heads, G = H / K, D head_dim, P block_size.

A context is cut into spans of fixed length, which run in parallel and are merged in order, so a
row's result depends on its own context only: not on the batch or the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_arena import entry, widen
from pd_kernels.cpu_math import exp, floats, int32s
from pd_kernels.cpu_softmax import softmax
from pd_kernels.cpu_threads import NOGIL, PARALLEL

# Tokens of context that one task covers.
_SPAN = 512


@njit
def _rows(address, groups, width):
    return floats(address, groups * width).reshape(groups, width)


@njit
def _first_token(length, window):
    return max(0, length - window) if window > 0 else 0


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
            query = q[g]
            total = np.float32(0.0)
            for i in range(width):
                total += query[i] * widen(key[i])
            scores[g, t - first] = total
    for g in range(groups):
        peak, total = softmax(scores[g, : last - first], scale)
        stats[g, 0] = peak * scale
        stats[g, 1] = total
    for g in range(groups):
        part = sums[g]
        for i in range(width):
            part[i] = np.float32(0.0)
    for t in range(first, last):
        value = entry(kv, shape, table[t // block_size], layer, 1, head, t % block_size)
        for g in range(groups):
            p = scores[g, t - first]
            part = sums[g]
            for i in range(width):
                part[i] += p * widen(value[i])


@njit(error_model="numpy")
def _merge_spans(out, sums, stats):
    """out [G, D] from the spans' sums [n, G, D] and stats [n, G, 2], in order; 0 from none."""
    spans, groups, width = sums.shape
    for g in range(groups):
        result = out[g]
        for i in range(width):
            result[i] = np.float32(0.0)
        if spans == 0:
            continue
        peak = stats[0, g, 0]
        for n in range(1, spans):
            peak = max(peak, stats[n, g, 0])
        total = np.float32(0.0)
        for n in range(spans):
            weight = exp(stats[n, g, 0] - peak)
            total += weight * stats[n, g, 1]
            part = sums[n, g]
            for i in range(width):
                result[i] += weight * part[i]
        for i in range(width):
            result[i] /= total


@njit
def _attend_share(
    q, q_stride, heads, kv, shape, layer, tables, max_blocks, lengths, first_span, owner, window,
    scale, sums, stats, share, shares,
):  # fmt: skip
    """The share's part of all (span, kv head) pairs."""
    kv_heads, _, width = shape[:3]
    groups = heads // kv_heads
    units = owner.size * kv_heads
    scores = np.empty((groups, _SPAN), np.float32)
    for unit in range(share * units // shares, (share + 1) * units // shares):
        span = unit // kv_heads
        head = unit - span * kv_heads
        s = owner[span]
        low = _first_token(lengths[s], window)
        begin = (low // _SPAN + span - first_span[s]) * _SPAN
        _attend_span(
            _rows(q + (s * q_stride + head * groups * width) * 4, groups, width),
            kv, shape, layer, head, int32s(tables + s * max_blocks * 4, max_blocks),
            max(begin, low), min(begin + _SPAN, lengths[s]), scale, scores, sums[head, span],
            stats[head, span],
        )  # fmt: skip


@njit(parallel=PARALLEL, nogil=NOGIL)
def _attend_spans(
    q, q_stride, heads, kv, shape, layer, tables, max_blocks, lengths, first_span, owner, window,
    scale, sums, stats, threads,
):  # fmt: skip
    for thread in prange(threads):
        _attend_share(
            q, q_stride, heads, kv, shape, layer, tables, max_blocks, lengths, first_span, owner,
            window, scale, sums, stats, np.int64(thread), threads,
        )  # fmt: skip


@njit(nogil=NOGIL, cache=True)
def attend_decode(
    out, q, q_stride, heads, kv, shape, layer, tables, max_blocks, contexts, count, window, scale,
    threads,
):  # fmt: skip
    """One query row for each of `count` sequences.

    out: address of contiguous float32 [count, H, D]; q: of the same with q_stride elements from
    token to token. tables: int32 [count, max_blocks]; contexts: int32 [count], 0 for padding,
    whose output is zero. window 0: none.
    """
    kv_heads, _, width = shape[:3]
    groups = heads // kv_heads
    lengths = int32s(contexts, count)
    # Spans of sequence s are first_span[s] .. first_span[s + 1].
    first_span = np.zeros(count + 1, np.int64)
    for s in range(count):
        spans = 0
        if lengths[s] > 0:
            low = _first_token(lengths[s], window)
            spans = (lengths[s] + _SPAN - 1) // _SPAN - low // _SPAN
        first_span[s + 1] = first_span[s] + spans
    total = first_span[count]
    owner = np.empty(total, np.int64)
    for s in range(count):
        for span in range(first_span[s], first_span[s + 1]):
            owner[span] = s
    sums = np.empty((kv_heads, total, groups, width), np.float32)
    stats = np.empty((kv_heads, total, groups, 2), np.float32)
    if total > 0:
        _attend_spans(
            q, q_stride, heads, kv, shape, layer, tables, max_blocks, lengths, first_span, owner,
            window, np.float32(scale), sums, stats, threads,
        )  # fmt: skip
    for s in range(count):
        first, last = first_span[s], first_span[s + 1]
        for head in range(kv_heads):
            result = _rows(out + (s * heads + head * groups) * width * 4, groups, width)
            _merge_spans(result, sums[head, first:last], stats[head, first:last])
