"""What numba code of the kernels computes with: memory by address, and exp.

Kernels are given addresses as integers, because making a numpy view of a tensor costs more than
a small kernel runs. Their callers check shapes, dtypes and strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the high part times any exponent is exact
_ROUNDER = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on [-ln2/2, ln2/2], from Cephes' expf.
_EXP_POLYNOMIAL = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_EXP_LOW, _EXP_HIGH = -87.3, 88.0


@intrinsic
def _void_pointer(_typing, address):
    def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


@njit(inline="always")
def floats(address, count):
    """The `count` float32 values at an address, as an array."""
    return carray(_void_pointer(address), (count,), np.float32)


@njit(inline="always")
def int32s(address, count):
    """The `count` int32 values at an address, as an array."""
    return carray(_void_pointer(address), (count,), np.int32)


@njit(inline="always")
def int64s(address, count):
    """The `count` int64 values at an address, as an array."""
    return carray(_void_pointer(address), (count,), np.int64)


@intrinsic
def exp(_typing, x):
    """exp of a float32 to about 1e-7 relative, 0 below -87.3 and exp(88) above 88.

    Straight-line code without a call, so that a loop over it becomes vector code.
    """

    def codegen(_context: Any, build: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        def real(value: float) -> ir.Constant:
            return ir.Constant(_F32, float(np.float32(value)))

        name = "llvm.fma.f32"
        fma = build.module.globals.get(name) or ir.Function(
            build.module, ir.FunctionType(_F32, [_F32] * 3), name
        )
        (x,) = args
        tiny = build.fcmp_ordered("<", x, real(_EXP_LOW))
        x = build.select(tiny, real(_EXP_LOW), x)
        x = build.select(build.fcmp_ordered(">", x, real(_EXP_HIGH)), real(_EXP_HIGH), x)
        shifted = build.call(fma, [x, real(_LOG2_E), real(_ROUNDER)])
        n = build.fsub(shifted, real(_ROUNDER))
        r = build.call(fma, [n, real(-_LN2_HIGH), x])
        r = build.call(fma, [n, real(-_LN2_LOW), r])
        value = real(_EXP_POLYNOMIAL[0])
        for coefficient in _EXP_POLYNOMIAL[1:]:
            value = build.call(fma, [value, r, real(coefficient)])
        value = build.call(fma, [value, build.fmul(r, r), build.fadd(r, real(1.0))])
        # The low bits of `shifted` are n: move them into a float's exponent field.
        bits = build.shl(build.bitcast(shifted, _I32), ir.Constant(_I32, 23))
        power = build.bitcast(build.add(bits, ir.Constant(_I32, 127 << 23)), _F32)
        return build.select(tiny, real(0.0), build.fmul(value, power))

    return types.float32(types.float32), codegen


@intrinsic
def larger(_typing, a, b):
    """The larger of two float32; either, where one is NaN. A loop over it becomes vector code."""

    def codegen(_context: Any, build: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        flags = ("nnan", "nsz")
        above = build.fcmp_ordered(">", args[0], args[1], flags=flags)
        return build.select(above, args[0], args[1], flags=flags)

    return types.float32(types.float32, types.float32), codegen
