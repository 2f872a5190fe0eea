"""dot_tile: the inner kernel of every matrix product on the CPU, as explicit vector code.

A loop vectoriser keeps neither a tile of the result in registers nor the weights in one stream,
so this one kernel is written in LLVM's vector types and compiled by numba for the host it runs
on: 512-bit vectors where there are AVX-512 registers, 256 with AVX, 128 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from numba import cfunc, config, types
from numba.extending import intrinsic

from pd_kernels.cpu_cache import compile_lock


def _host_lanes() -> tuple[int, int]:
    """(fp32 lanes of a vector, vector registers), honouring numba's choice of another CPU."""
    if config.CPU_FEATURES is not None:
        has = config.CPU_FEATURES.split(",").__contains__
    elif config.CPU_NAME not in (None, "host"):
        has = {"+avx": "haswell" in config.CPU_NAME or "znver" in config.CPU_NAME}.get
    else:
        features = llvm.get_host_cpu_features()
        has = lambda name: features.get(name[1:], False)  # noqa: E731
    if has("+avx512f"):
        return 16, 32
    if has("+avx") or has("+avx2"):
        return 8, 16
    return 4, 32 if "aarch64" in llvm.get_default_triple() else 16


LANES, _REGISTERS = _host_lanes()
"""fp32 lanes of one vector."""

PANEL = 2 * LANES
"""Columns of the result that one tile covers: two vectors."""

MAX_ROWS = 14 if _REGISTERS == 32 else 6
"""Rows of the largest tile: all its accumulators, two weight vectors and a broadcast fit in the
registers."""

# Far enough ahead for memory to answer.
_PREFETCH_BYTES = 8192

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()
_BYTE = ir.IntType(8)
_VECTOR = ir.VectorType(_F32, LANES)
_NUM_ARGS = 9


def _const(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _declare(module: ir.Module, name: str, result: ir.Type, args: list[ir.Type]) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, args), name)


class _TileWriter:
    """Writes the LLVM function of one tile height and weight type."""

    def __init__(self, function: ir.Function, rows: int, bfloat16: bool) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.rows = rows
        self.bfloat16 = bfloat16
        self.weight_bytes = 2 if bfloat16 else 4
        self.fma = _declare(function.module, f"llvm.fma.v{LANES}f32", _VECTOR, [_VECTOR] * 3)
        self.prefetch = _declare(
            function.module, "llvm.prefetch.p0", ir.VoidType(), [_BYTE.as_pointer()] + [_I32] * 3
        )
        self.y, self.ldy, self.init, self.ldi, self.x, self.ldx, self.w, self.k = function.args
        self.x_rows = [self.pointer(self.x, self.row_bytes(r, self.ldx), _F32) for r in range(rows)]

    def pointer(self, base: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        if isinstance(offset, int):
            offset = _const(offset)
        return self.builder.inttoptr(self.builder.add(base, offset), kind.as_pointer())

    def row_bytes(self, row: int, stride: ir.Value) -> ir.Value:
        return self.builder.mul(stride, _const(4 * row))

    def write(self) -> None:
        build = self.builder
        sums = [build.load(p, align=4) for p in self.tile_pointers(self.init, self.ldi)]
        unrolled = _const(0)
        if self.rows <= 4:  # a short step would spend its time on counting
            unrolled = build.and_(self.k, _const(-4))
            sums = self.loop(_const(0), unrolled, sums, 4)
        sums = self.loop(unrolled, self.k, sums, 1)
        for pointer, value in zip(self.tile_pointers(self.y, self.ldy), sums, strict=True):
            build.store(value, pointer, align=4)
        build.ret_void()

    def tile_pointers(self, base: ir.Value, stride: ir.Value) -> list[ir.Value]:
        starts = [self.builder.add(base, self.row_bytes(r, stride)) for r in range(self.rows)]
        return [self.pointer(start, j * LANES * 4, _VECTOR) for start in starts for j in (0, 1)]

    def loop(
        self, start: ir.Value, stop: ir.Value, sums: list[ir.Value], by: int
    ) -> list[ir.Value]:
        """Steps start, start + by, ... below stop, the tile's sums carried in registers."""
        build, before = self.builder, self.builder.block
        head, body, end = (build.append_basic_block(name) for name in ("head", "body", "end"))
        build.branch(head)
        build.position_at_end(head)
        i = build.phi(_I64)
        i.add_incoming(start, before)
        carried = [build.phi(_VECTOR) for _ in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        build.cbranch(build.icmp_signed("<", i, stop), body, end)
        build.position_at_end(body)
        current: list[ir.Value] = list(carried)
        for offset in range(by):
            current = self.step(build.add(i, _const(offset)), current)
        i.add_incoming(build.add(i, _const(by)), body)
        for phi, value in zip(carried, current, strict=True):
            phi.add_incoming(value, body)
        build.branch(head)
        build.position_at_end(end)
        return list(carried)

    def step(self, i: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        """sums[r, :] + x[r, i] * w[i, :]"""
        build, undefined = self.builder, ir.Constant(_VECTOR, ir.Undefined)
        lane_zero = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        row = build.add(self.w, build.mul(i, _const(PANEL * self.weight_bytes)))
        weights = [self.load_weights(row, j * LANES * self.weight_bytes) for j in (0, 1)]
        for line in range(0, PANEL * self.weight_bytes, 64):
            ahead = self.pointer(row, _PREFETCH_BYTES + line, _BYTE)
            build.call(self.prefetch, [ahead, *(ir.Constant(_I32, v) for v in (0, 3, 1))])
        result = []
        for r in range(self.rows):
            scalar = build.load(build.gep(self.x_rows[r], [i]))
            vector = build.insert_element(undefined, scalar, ir.Constant(_I32, 0))
            vector = build.shuffle_vector(vector, undefined, lane_zero)
            result += [build.call(self.fma, [vector, weights[j], sums[2 * r + j]]) for j in (0, 1)]
        return result

    def load_weights(self, row: ir.Value, offset: int) -> ir.Value:
        if not self.bfloat16:
            return self.builder.load(self.pointer(row, offset, _VECTOR), align=4)
        narrow, wide = (ir.VectorType(ir.IntType(bits), LANES) for bits in (16, 32))
        bits = self.builder.load(self.pointer(row, offset, narrow), align=2)
        bits = self.builder.shl(self.builder.zext(bits, wide), ir.Constant(wide, [16] * LANES))
        return self.builder.bitcast(bits, _VECTOR)


def _tile_function(module: ir.Module, rows: int, bfloat16: bool) -> ir.Function:
    name = f"pd_dot_tile_{rows}_{'bf16' if bfloat16 else 'f32'}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.FunctionType(ir.VoidType(), [_I64] * (_NUM_ARGS - 1))
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    _TileWriter(function, rows, bfloat16).write()
    return function


def _make_tile(bfloat16: bool) -> Callable[..., None]:
    """The tile of 1 to MAX_ROWS rows as an intrinsic: a jump to the function of its height."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        end = builder.append_basic_block("tile.end")
        switch = builder.switch(args[-1], end)
        for rows in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"tile.{rows}")
            switch.add_case(_const(rows), block)
            builder.position_at_end(block)
            builder.call(_tile_function(builder.module, rows, bfloat16), args[:-1])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    @intrinsic
    def tile(_typing, y, ldy, init, ldi, x, ldx, w, k, rows):
        return types.void(*[types.int64] * _NUM_ARGS), codegen

    return tile


_tile_f32, _tile_bf16 = _make_tile(bfloat16=False), _make_tile(bfloat16=True)


def _run_f32(y, ldy, init, ldi, x, ldx, w, k, rows):
    _tile_f32(y, ldy, init, ldi, x, ldx, w, k, rows)


def _run_bf16(y, ldy, init, ldi, x, ldx, w, k, rows):
    _tile_bf16(y, ldy, init, ldi, x, ldx, w, k, rows)


@cache
def _compiled(bfloat16: bool) -> Any:
    with compile_lock():
        signature = types.void(*[types.int64] * _NUM_ARGS)
        return cfunc(signature, cache=True)(_run_bf16 if bfloat16 else _run_f32)


def tile_address(weight_dtype: torch.dtype) -> int:
    """Address of the compiled tile for float32 or bfloat16 weights, which `dot_tile` calls.

    Kernels are given the address, so that none of them has to compile the tile again.
    """
    return _compiled(weight_dtype is torch.bfloat16).address


@intrinsic
def dot_tile(_typing, tile, y, ldy, init, ldi, x, ldx, w, k, rows):
    """y[r, :] = init[r, :] + sum over i < k of x[r, i] * w[i, :], for r < rows <= MAX_ROWS.

    Called from numba code; `tile` is a tile_address. Each row of y, init and w is one panel
    (PANEL columns), w contiguous; addresses are integers and leading dimensions count elements;
    all is float32 but the w of a bfloat16 tile. An element is one chain of fused multiply-adds in
    the order of i: it does not depend on the number of rows, so neither on what else is in a batch.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * _NUM_ARGS)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (_NUM_ARGS + 1)), codegen
