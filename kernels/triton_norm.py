"""RMSNorm, plain and fused with the residual addition before it.

Legend: T rows, E row length, R rows a program, E_PAD = E rounded up to a power of two.
A program holds whole rows in registers, so that each element is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pd_kernels.triton_common import require_unit_stride


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    new_residual_ptr,
    num_rows,
    eps,
    STRIDE_X: tl.constexpr,
    STRIDE_RESIDUAL: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    R: tl.constexpr,
    ADD: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    columns = tl.arange(0, E_PAD)
    inside = (rows < num_rows)[:, None] & (columns < E)[None, :]

    x = tl.load(x_ptr + rows[:, None] * STRIDE_X + columns[None, :], mask=inside, other=0.0)
    x = x.to(tl.float32)
    if ADD:
        residual = tl.load(
            residual_ptr + rows[:, None] * STRIDE_RESIDUAL + columns[None, :],
            mask=inside,
            other=0.0,
        )
        # The norm sees what later layers will read back, so the sum is rounded first.
        rounded = (x + residual.to(tl.float32)).to(new_residual_ptr.dtype.element_ty)
        tl.store(new_residual_ptr + rows[:, None] * E + columns[None, :], rounded, mask=inside)
        x = rounded.to(tl.float32)

    scale = tl.rsqrt(tl.sum(x * x, axis=1) / E + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < E, other=0.0).to(tl.float32)
    out = x * scale[:, None] * weight[None, :]
    tl.store(
        out_ptr + rows[:, None] * E + columns[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    require_unit_stride("x", x)
    num_rows, length = x.shape
    out = torch.empty((num_rows, length), dtype=x.dtype, device=x.device)
    new_residual = out
    if residual is not None:
        require_unit_stride("residual", residual)
        new_residual = torch.empty_like(out)
    if num_rows == 0:
        return out, new_residual
    padded = triton.next_power_of_2(length)
    # Short rows (q/k norm) go several to a program, to have enough bytes in flight in each.
    rows = max(1, 2048 // padded)
    _rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x,
        x if residual is None else residual,
        weight,
        out,
        new_residual,
        num_rows,
        eps,
        STRIDE_X=x.stride(0),
        STRIDE_RESIDUAL=0 if residual is None else residual.stride(0),
        E=length,
        E_PAD=padded,
        R=rows,
        ADD=residual is not None,
        num_warps=4 if padded <= 2048 else 8 if padded <= 8192 else 16,
    )
    return out, new_residual


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, E] over its last dim, times weight [E]; rows of x may be strided."""
    return _launch(x, None, weight, eps)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(new), new) with new = x + residual; all [T, E]."""
    return _launch(x, residual, weight, eps)
