"""RMSNorm, SiLU-mul, rotary and the KV write on the CPU.

Legend: T tokens, E hidden, F intermediate, H query heads, K kv heads, D head_dim, R rotated dims.
Arguments named as a tensor are addresses of float32 values unless said otherwise; strides count
elements. Each kernel has a row-range body and a driver that splits rows among threads; a few
rows are not worth waking a thread for and stay on the caller's.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_arena import entry, store
from pd_kernels.cpu_math import exp, floats, int64s
from pd_kernels.cpu_threads import NOGIL

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
def rms_norm_rows(y, x, x_stride, weight, eps, width, first, last):
    w = floats(weight, width)
    for t in range(first, last):
        row = floats(x + t * x_stride * 4, width)
        rms_norm_row(floats(y + t * width * 4, width), row, w, eps)


@njit(parallel=True, nogil=NOGIL, cache=True)
def rms_norm(y, x, x_stride, weight, eps, rows, width, threads):
    """y [rows, width] = x / sqrt(mean(x^2) + eps) * weight."""
    if rows * width < SMALL:
        rms_norm_rows(y, x, x_stride, weight, eps, width, 0, rows)
    else:
        for i in prange(threads):
            first, last = i * rows // threads, (i + 1) * rows // threads
            rms_norm_rows(y, x, x_stride, weight, eps, width, first, last)


@njit(fastmath=True)
def add_row(total, x):
    for i in range(total.size):
        total[i] += x[i]


@njit
def _addrms_norm_rows(y, residual, x, x_stride, weight, eps, width, first, last):
    w = floats(weight, width)
    for t in range(first, last):
        total = floats(residual + t * width * 4, width)
        add_row(total, floats(x + t * x_stride * 4, width))
        rms_norm_row(floats(y + t * width * 4, width), total, w, eps)


@njit(parallel=True, nogil=NOGIL, cache=True)
def add_rms_norm(y, residual, x, x_stride, weight, eps, rows, width, threads):
    """residual += x; y = rms_norm(residual). y and residual are contiguous [rows, width]."""
    if rows * width < SMALL:
        _addrms_norm_rows(y, residual, x, x_stride, weight, eps, width, 0, rows)
    else:
        for i in prange(threads):
            first, last = i * rows // threads, (i + 1) * rows // threads
            _addrms_norm_rows(y, residual, x, x_stride, weight, eps, width, first, last)


@njit(error_model="numpy")
def _silu_mul_rows(y, gate_up, stride, width, first, last):
    one = np.float32(1.0)
    for t in range(first, last):
        gate = floats(gate_up + t * stride * 4, width)
        up = floats(gate_up + (t * stride + width) * 4, width)
        out = floats(y + t * width * 4, width)
        for i in range(width):
            out[i] = gate[i] / (one + exp(-gate[i])) * up[i]


@njit(parallel=True, nogil=NOGIL, cache=True)
def silu_mul(y, gate_up, stride, rows, width, threads):
    """y [rows, width] = silu(gate) * up of gate_up [rows, 2 width] = gate | up."""
    if rows * width < SMALL:
        _silu_mul_rows(y, gate_up, stride, width, 0, rows)
    else:
        for i in prange(threads):
            first, last = i * rows // threads, (i + 1) * rows // threads
            _silu_mul_rows(y, gate_up, stride, width, first, last)


@njit
def rotate_head(x, cos, sin):
    half = cos.size
    for i in range(half):
        low, high = x[i], x[half + i]
        x[i] = low * cos[i] - high * sin[i]
        x[half + i] = high * cos[i] + low * sin[i]


@njit
def _rotary_rows(q, q_row, q_head, heads, k, k_row, k_head, kv_heads, table, half, at, first, last):
    for t in range(first, last):
        cos = floats(table + at[t] * half * 2 * 4, half)
        sin = floats(table + (at[t] * 2 + 1) * half * 4, half)
        for h in range(heads):
            rotate_head(floats(q + (t * q_row + h * q_head) * 4, 2 * half), cos, sin)
        for h in range(kv_heads):
            rotate_head(floats(k + (t * k_row + h * k_head) * 4, 2 * half), cos, sin)


@njit(parallel=True, nogil=NOGIL, cache=True)
def rotary(
    q, q_row, q_head, heads, k, k_row, k_head, kv_heads, table, half, positions, rows, threads
):
    """Rotate heads of q and k in place. table [max_pos, 2 half], positions int64 [rows]."""
    at = int64s(positions, rows)
    if rows * (heads + kv_heads) * half < SMALL:
        _rotary_rows(
            q, q_row, q_head, heads, k, k_row, k_head, kv_heads, table, half, at, 0, rows
        )  # fmt: skip
    else:
        for i in prange(threads):
            first, last = i * rows // threads, (i + 1) * rows // threads
            _rotary_rows(
                q, q_row, q_head, heads, k, k_row, k_head, kv_heads, table, half, at, first, last
            )  # fmt: skip


@njit
def _write_kv_rows(kv, shape, layer, k, k_row, k_head, v, v_row, v_head, at, first, last):
    heads, block_size, width = shape[:3]
    for t in range(first, last):
        if at[t] < 0:
            continue
        block = at[t] // block_size
        offset = at[t] - block * block_size
        for h in range(heads):
            key = floats(k + (t * k_row + h * k_head) * 4, width)
            value = floats(v + (t * v_row + h * v_head) * 4, width)
            stored = entry(kv, shape, block, layer, 0, h, offset)
            for i in range(width):
                store(stored, i, key[i])
            stored = entry(kv, shape, block, layer, 1, h, offset)
            for i in range(width):
                store(stored, i, value[i])


@njit(parallel=True, nogil=NOGIL, cache=True)
def write_kv(kv, shape, layer, k, k_row, k_head, v, v_row, v_head, slots, rows, threads):
    """Store rows of k and v at slots int64 [rows] of the arena; negative ones are padding."""
    at = int64s(slots, rows)
    if rows * shape[0] * shape[2] < SMALL:
        _write_kv_rows(kv, shape, layer, k, k_row, k_head, v, v_row, v_head, at, 0, rows)
    else:
        for i in prange(threads):
            first, last = i * rows // threads, (i + 1) * rows // threads
            _write_kv_rows(kv, shape, layer, k, k_row, k_head, v, v_row, v_head, at, first, last)
