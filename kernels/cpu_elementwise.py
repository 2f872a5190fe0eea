"""RMSNorm, SiLU-mul, rotary and the KV write on the CPU.

Legend: T tokens, E hidden, F intermediate, H query heads, K kv heads, D head_dim, R rotated dims.
Arguments named as a tensor are addresses of float32 values unless said otherwise; strides count
elements. Norms and SiLU-mul split many rows among threads; the rest run on the caller's, because
a decoder's layers have them fused (pd_kernels.cpu_decoder).
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_arena import entry, store
from pd_kernels.cpu_math import exp, floats, int64s
from pd_kernels.cpu_threads import NOGIL, PARALLEL

# Values below which one thread finishes before a second would have started.
SMALL = 16 * 1024


@njit(fastmath=True)
def rms_norm_row(y, x, weight, eps):
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(x.size) + np.float32(eps))
    for i in range(x.size):
        y[i] = x[i] * scale * weight[i]


@njit
def add_row(total, x):
    for i in range(total.size):
        total[i] += x[i]


@njit
def _rms_norm_rows(y, x, x_stride, weight, eps, width, first, last):
    w = floats(weight, width)
    for t in range(first, last):
        row = floats(x + t * x_stride * 4, width)
        rms_norm_row(floats(y + t * width * 4, width), row, w, eps)


@njit(parallel=PARALLEL, nogil=NOGIL)
def _rms_norm_parallel(y, x, x_stride, weight, eps, width, rows, threads):
    for thread in prange(threads):
        i = np.int64(thread)
        _rms_norm_rows(
            y, x, x_stride, weight, eps, width, i * rows // threads, (i + 1) * rows // threads
        )


@njit(nogil=NOGIL, cache=True)
def rms_norm(y, x, x_stride, weight, eps, rows, width, threads):
    """y [rows, width] = x / sqrt(mean(x^2) + eps) * weight."""
    if rows * width < SMALL:
        _rms_norm_rows(y, x, x_stride, weight, eps, width, 0, rows)
    else:
        _rms_norm_parallel(y, x, x_stride, weight, eps, width, rows, threads)


@njit(nogil=NOGIL, cache=True)
def add_rms_norm(y, residual, x, x_stride, weight, eps, rows, width):
    """residual += x; y = rms_norm(residual). y and residual are contiguous [rows, width]."""
    w = floats(weight, width)
    for t in range(rows):
        total = floats(residual + t * width * 4, width)
        add_row(total, floats(x + t * x_stride * 4, width))
        rms_norm_row(floats(y + t * width * 4, width), total, w, eps)


@njit(error_model="numpy")
def _silu_mul_rows(y, gate_up, stride, width, first, last):
    one = np.float32(1.0)
    for t in range(first, last):
        gate = floats(gate_up + t * stride * 4, width)
        up = floats(gate_up + (t * stride + width) * 4, width)
        out = floats(y + t * width * 4, width)
        for i in range(width):
            out[i] = gate[i] / (one + exp(-gate[i])) * up[i]


@njit(parallel=PARALLEL, nogil=NOGIL)
def _silu_mul_parallel(y, gate_up, stride, width, rows, threads):
    for thread in prange(threads):
        i = np.int64(thread)
        first, last = i * rows // threads, (i + 1) * rows // threads
        _silu_mul_rows(y, gate_up, stride, width, first, last)


@njit(nogil=NOGIL, cache=True)
def silu_mul(y, gate_up, stride, rows, width, threads):
    """y [rows, width] = silu(gate) * up of gate_up [rows, 2 width] = gate | up."""
    if rows * width < SMALL:
        _silu_mul_rows(y, gate_up, stride, width, 0, rows)
    else:
        _silu_mul_parallel(y, gate_up, stride, width, rows, threads)


@njit
def rotate_head(x, cos, sin):
    half = cos.size
    low, high = x[:half], x[half : 2 * half]
    for i in range(half):
        a, b = low[i], high[i]
        low[i] = a * cos[i] - b * sin[i]
        high[i] = b * cos[i] + a * sin[i]


@njit
def rotary_row(table, half, position):
    """(cosines, sines) of a position: the halves of its row of the table."""
    row = floats(table + position * 2 * half * 4, 2 * half)
    return row[:half], row[half:]


@njit(nogil=NOGIL, cache=True)
def rotary(q, q_row, q_head, heads, k, k_row, k_head, kv_heads, table, half, positions, rows):
    """Rotate heads of q and k in place. table [max_pos, 2 half], positions int64 [rows]."""
    at = int64s(positions, rows)
    for t in range(rows):
        cos, sin = rotary_row(table, half, at[t])
        for h in range(heads + kv_heads):
            if h < heads:
                head = q + (t * q_row + h * q_head) * 4
            else:
                head = k + (t * k_row + (h - heads) * k_head) * 4
            rotate_head(floats(head, 2 * half), cos, sin)


@njit
def store_row(kv, shape, layer, value, slot, row, head_stride):
    """Store one token's heads at `slot` of a layer's keys, or with `value` 1 of its values."""
    heads, block_size, width = shape[:3]
    block = slot // block_size
    for h in range(heads):
        source = floats(row + h * head_stride * 4, width)
        stored = entry(kv, shape, block, layer, value, h, slot - block * block_size)
        for i in range(width):
            store(stored, i, source[i])


@njit(nogil=NOGIL, cache=True)
def write_kv(kv, shape, layer, k, k_row, k_head, v, v_row, v_head, slots, rows):
    """Store rows of k and v at slots int64 [rows] of the arena; negative ones are padding."""
    at = int64s(slots, rows)
    for t in range(rows):
        if at[t] >= 0:
            store_row(kv, shape, layer, 0, at[t], k + t * k_row * 4, k_head)
            store_row(kv, shape, layer, 1, at[t], v + t * v_row * 4, v_head)
