"""Rotary position embedding of queries and keys, in place, one launch for both.

Legend: T tokens, H query heads, K kv heads, D head_dim, R rotated dims (the first R of D),
_PAD = rounded up to a power of two. Pairs are (i, i + R/2): the half-split, or neox, order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pd_kernels.triton_common import require_unit_stride


@triton.jit
def _rotate(
    row_ptr, cos, sin, NUM: tl.constexpr, NUM_PAD: tl.constexpr, STRIDE_HEAD: tl.constexpr,
    HALF: tl.constexpr, HALF_PAD: tl.constexpr,
):  # fmt: skip
    """Rotate the NUM heads of one token that begin at row_ptr."""
    heads = tl.arange(0, NUM_PAD)[:, None]
    dims = tl.arange(0, HALF_PAD)[None, :]
    inside = (heads < NUM) & (dims < HALF)
    low_ptr = row_ptr + heads * STRIDE_HEAD + dims
    low = tl.load(low_ptr, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(low_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    new_low = low * cos - high * sin
    new_high = high * cos + low * sin
    tl.store(low_ptr, new_low.to(row_ptr.dtype.element_ty), mask=inside)
    tl.store(low_ptr + HALF, new_high.to(row_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def _rotary_kernel(
    q_ptr,
    k_ptr,
    positions_ptr,
    cos_sin_ptr,
    STRIDE_Q: tl.constexpr,
    STRIDE_Q_HEAD: tl.constexpr,
    STRIDE_K: tl.constexpr,
    STRIDE_K_HEAD: tl.constexpr,
    STRIDE_TABLE: tl.constexpr,
    H: tl.constexpr,
    H_PAD: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token)
    dims = tl.arange(0, HALF_PAD)
    table = cos_sin_ptr + position * STRIDE_TABLE + dims
    cos = tl.load(table, mask=dims < HALF, other=0.0)[None, :]
    sin = tl.load(table + HALF, mask=dims < HALF, other=0.0)[None, :]
    _rotate(q_ptr + token * STRIDE_Q, cos, sin, H, H_PAD, STRIDE_Q_HEAD, HALF, HALF_PAD)
    _rotate(k_ptr + token * STRIDE_K, cos, sin, K, K_PAD, STRIDE_K_HEAD, HALF, HALF_PAD)


def rotary(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
) -> None:
    """Rotate q [T, H, D] and k [T, K, D] in place at positions [T] int64.

    cos_sin [max_pos, R] fp32: R/2 cosines then R/2 sines a row. Token and head strides are free.
    """
    for name, x in (("q", q), ("k", k), ("cos_sin", cos_sin)):
        require_unit_stride(name, x)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    half = cos_sin.shape[1] // 2
    if 2 * half > head_dim:
        raise ValueError(f"cos_sin rotates {2 * half} dims, but a head has only {head_dim}")
    if num_tokens == 0:
        return
    _rotary_kernel[(num_tokens,)](
        q,
        k,
        positions,
        cos_sin,
        STRIDE_Q=q.stride(0),
        STRIDE_Q_HEAD=q.stride(1),
        STRIDE_K=k.stride(0),
        STRIDE_K_HEAD=k.stride(1),
        STRIDE_TABLE=cos_sin.stride(0),
        H=num_heads,
        H_PAD=triton.next_power_of_2(num_heads),
        K=num_kv_heads,
        K_PAD=triton.next_power_of_2(num_kv_heads),
        HALF=half,
        HALF_PAD=triton.next_power_of_2(half),
        num_warps=4 if num_heads * half >= 512 else 2,
    )
