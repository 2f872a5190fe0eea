"""SiLU-mul, the activation of a gated MLP.

Legend: T tokens, F intermediate size; gate_up is [T, 2F], gate | up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pd_kernels.triton_common import require_unit_stride


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr, out_ptr, STRIDE: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr
):
    # Tokens on the first axis, which alone may exceed 65,535 programs.
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    row = gate_up_ptr + token * STRIDE
    gate = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + F + columns, mask=inside, other=0.0).to(tl.float32)
    # exp of nothing positive: a large negative gate must not overflow on its way to zero.
    small = tl.exp(-tl.abs(gate))
    sigmoid = tl.where(gate >= 0.0, 1.0, small) / (1.0 + small)
    out = gate * sigmoid * up
    tl.store(out_ptr + token * F + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up; gate_up [T, 2F] with free row stride -> [T, F]."""
    require_unit_stride("gate_up", gate_up)
    num_tokens, width = gate_up.shape
    if width % 2:
        raise ValueError(f"gate_up holds gate and up side by side, but its width {width} is odd")
    size = width // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens == 0:
        return out
    block = min(2048, triton.next_power_of_2(size))
    _silu_mul_kernel[(num_tokens, triton.cdiv(size, block))](
        gate_up, out, STRIDE=gate_up.stride(0), F=size, BLOCK=block, num_warps=4
    )
    return out
