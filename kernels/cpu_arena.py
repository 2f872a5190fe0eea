"""The KV arena as CPU kernels take it: a flat array and its shape, float32 or bfloat16 bits.

Legend: B blocks, L layers, K kv heads, P block_size, D head_dim.
Flat, so that one compiled kernel serves every layout; two dtypes make two kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

_F32, _I32 = ir.FloatType(), ir.IntType(32)

ArenaShape = tuple[int, int, int, int, int, int, int, int]


def arena_view(kv: torch.Tensor) -> tuple[np.ndarray, ArenaShape]:
    """(flat array, (K, P, D, strides of block, layer, k|v, head, token)) of kv [B, L, 2, K, P, D].

    bfloat16 becomes uint16 bits. Raises for an arena that the kernels cannot read.
    """
    if kv.dtype not in (torch.float32, torch.bfloat16) or kv.ndim != 6 or kv.device.type != "cpu":
        raise TypeError(
            f"the KV arena is {kv.ndim}-dimensional {kv.dtype} on {kv.device}; on the CPU it is "
            "6-dimensional torch.float32 or torch.bfloat16"
        )
    *strides, last = kv.stride()
    if last != 1:
        raise ValueError(f"the KV arena's last dimension has stride {last}; it must be contiguous")
    extent = 1 + sum((n - 1) * stride for n, stride in zip(kv.shape, kv.stride(), strict=True))
    flat = kv.as_strided((extent if kv.numel() else 0,), (1,))
    if kv.dtype is torch.bfloat16:
        flat = flat.view(torch.uint16)
    return flat.numpy(), (*kv.shape[3:], *strides)


@njit(inline="always")
def entry(kv, shape, block, layer, value, head, token):
    """The D stored values of one token and head: its key, or with `value` 1 its value."""
    _, _, width, block_stride, layer_stride, value_stride, head_stride, token_stride = shape
    start = (
        block * block_stride
        + layer * layer_stride
        + value * value_stride
        + head * head_stride
        + token * token_stride
    )
    return kv[start : start + width]


@intrinsic
def _from_bits(_typing, half):
    def codegen(_context: Any, build: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        wide = build.shl(build.zext(args[0], _I32), ir.Constant(_I32, 16))
        return build.bitcast(wide, _F32)

    return types.float32(types.uint16), codegen


@intrinsic
def _to_bits(_typing, value):
    """Nearest bfloat16, ties to even, as torch rounds; NaN stays NaN."""

    def codegen(_context: Any, build: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        bits = build.bitcast(args[0], _I32)
        odd = build.and_(build.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = build.add(build.add(bits, ir.Constant(_I32, 0x7FFF)), odd)
        nan = build.fcmp_unordered("uno", args[0], args[0])
        rounded = build.select(nan, build.or_(bits, ir.Constant(_I32, 1 << 22)), rounded)
        return build.trunc(build.lshr(rounded, ir.Constant(_I32, 16)), ir.IntType(16))

    return types.uint16(types.float32), codegen


def widen(value):
    """A stored KV value (float32, or bfloat16 as uint16 bits) as float32."""
    raise TypeError("widen is called from compiled kernels only")


@overload(widen, inline="always")
def _widen(value):
    if value == types.uint16:
        return lambda value: _from_bits(value)
    return lambda value: value


def store(array, index, value):
    """array[index] = the float32 value, rounded where the array holds bfloat16 bits."""
    raise TypeError("store is called from compiled kernels only")


@overload(store, inline="always")
def _store(array, index, value):
    if array.dtype == types.uint16:

        def narrowing(array, index, value):
            array[index] = _to_bits(value)

        return narrowing

    def plain(array, index, value):
        array[index] = value

    return plain
