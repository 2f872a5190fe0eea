"""CpuDecoder: all layers of a decoder in one call.

A layer is about ten kernels of a few microseconds each when it runs one token: called one by one
from Python, they would spend as long being called. Here a step is a single compiled loop over
the layers, which also leaves the interpreter free for the length of the step.

Legend: T tokens of the flat batch, E hidden, F intermediate, H query heads, K kv heads,
D head_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch
from numba import njit, prange

from pd_kernels import cpu_cache
from pd_kernels.cpu_arena import ArenaShape, arena_view
from pd_kernels.cpu_attention_decode import attend_decode
from pd_kernels.cpu_attention_prompt import attend_prompt
from pd_kernels.cpu_elementwise import (
    SMALL,
    add_row,
    rms_norm,
    rms_norm_row,
    rotary_row,
    rotate_head,
    silu_mul,
    store_row,
)
from pd_kernels.cpu_linear import PanelLinear
from pd_kernels.cpu_math import floats, int32s, int64s
from pd_kernels.cpu_panels import matmul
from pd_kernels.cpu_threads import NOGIL, PARALLEL, num_threads
from pd_kernels.cpu_vector import PANEL, tile_address
from pd_kernels.linear import Linear
from pd_kernels.meta import AttentionMeta


class DecoderLayer(Protocol):
    """What a decoder layer is made of; norms are float32 [E], those of heads [D] or None."""

    @property
    def attention_norm(self) -> torch.Tensor: ...
    @property
    def qkv(self) -> Linear: ...
    @property
    def q_norm(self) -> torch.Tensor | None: ...
    @property
    def k_norm(self) -> torch.Tensor | None: ...
    @property
    def output(self) -> Linear: ...
    @property
    def mlp_norm(self) -> torch.Tensor: ...
    @property
    def gate_up(self) -> Linear: ...
    @property
    def down(self) -> Linear: ...
    @property
    def window(self) -> int | None: ...


# Columns of the table of layers: addresses of weights, 0 where there is none, and the window.
_QKV, _OUTPUT, _GATE_UP, _DOWN = 0, 2, 4, 6  # each followed by its bias
_ATTENTION_NORM, _MLP_NORM, _Q_NORM, _K_NORM, _WINDOW = 8, 9, 10, 11, 12
_COLUMNS = 13


@njit
def _place_rows(
    qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, at, kv, shape, layer, slots, begin, end
):
    """Normalise heads where the model does, rotate q and k in place, store k and v."""
    kv_heads, _, width = shape[:3]
    for t in range(begin, end):
        row = qkv + t * stride * 4
        cos, sin = rotary_row(cos_sin, half, at[t])
        for h in range(heads + kv_heads):
            head = floats(row + h * width * 4, width)
            norm = q_norm if h < heads else k_norm
            if norm != 0:
                rms_norm_row(head, head, floats(norm, width), eps)
            rotate_head(head, cos, sin)
        if slots[t] >= 0:
            for value in range(2):
                source = row + (heads + value * kv_heads) * width * 4
                store_row(kv, shape, layer, value, slots[t], source, width)


@njit(parallel=PARALLEL, nogil=NOGIL)
def _place_parallel(
    qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, at, kv, shape, layer, slots, threads
):
    for thread in prange(threads):
        i = np.int64(thread)
        _place_rows(
            qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, at, kv, shape, layer, slots,
            i * at.size // threads, (i + 1) * at.size // threads,
        )  # fmt: skip


@njit
def _place(
    qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, positions, kv, shape, layer, slots,
    rows, threads,
):  # fmt: skip
    at, to = int64s(positions, rows), int64s(slots, rows)
    if rows * stride < SMALL:
        _place_rows(
            qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, at, kv, shape, layer, to,
            0, rows,
        )  # fmt: skip
    else:
        _place_parallel(
            qkv, stride, q_norm, k_norm, eps, heads, cos_sin, half, at, kv, shape, layer, to,
            threads,
        )  # fmt: skip


@njit
def _add_linear(residual, hidden, bias, x, width, w, tile, weight_bytes, rows, threads):
    """residual [rows, hidden] += x [rows, width] @ w + bias"""
    if bias != 0:
        for t in range(rows):
            add_row(floats(residual + t * hidden * 4, hidden), floats(bias, hidden))
    matmul(
        residual, hidden, residual, hidden, x, width, w, tile, weight_bytes, rows, width,
        hidden // PANEL, threads,
    )  # fmt: skip


@njit(nogil=NOGIL, cache=True)
def _run(
    table, residual, projected, normed, rows, hidden, qkv_width, gate_up_width, intermediate,
    heads, dot, tile, weight_bytes, eps, scale, cos_sin, half, positions, slots, kv, shape,
    tables, table_stride, starts_address, lengths_address, num_prefill, num_decode, threads,
):  # fmt: skip
    q_size = heads * shape[2]
    starts = int32s(starts_address, num_prefill + num_decode + 1)
    lengths = int32s(lengths_address, num_prefill + num_decode)
    first_decode = starts[num_prefill]
    for layer in range(table.shape[0]):
        at = table[layer]
        window = at[_WINDOW]
        rms_norm(normed, residual, hidden, at[_ATTENTION_NORM], eps, rows, hidden, threads)
        matmul(
            projected, qkv_width, at[_QKV + 1], 0, normed, hidden, at[_QKV], tile, weight_bytes,
            rows, hidden, qkv_width // PANEL, threads,
        )  # fmt: skip
        _place(
            projected, qkv_width, at[_Q_NORM], at[_K_NORM], eps, heads, cos_sin, half, positions,
            kv, shape, layer, slots, rows, threads,
        )  # fmt: skip
        attended = normed  # the norm's result is used up
        for s in range(num_prefill):
            if starts[s + 1] > starts[s]:
                attend_prompt(
                    dot, attended + starts[s] * q_size * 4, projected + starts[s] * qkv_width * 4,
                    qkv_width, heads, kv, shape, layer, tables + s * table_stride * 4,
                    np.int64(starts[s + 1] - starts[s]), np.int64(lengths[s]), window, scale,
                    threads,
                )  # fmt: skip
        if num_decode > 0:
            attend_decode(
                attended + first_decode * q_size * 4, projected + first_decode * qkv_width * 4,
                qkv_width, heads, kv, shape, layer, tables + num_prefill * table_stride * 4,
                table_stride, lengths_address + num_prefill * 4, num_decode, window, scale,
                threads,
            )  # fmt: skip
        _add_linear(
            residual, hidden, at[_OUTPUT + 1], attended, q_size, at[_OUTPUT], tile, weight_bytes,
            rows, threads,
        )  # fmt: skip
        rms_norm(normed, residual, hidden, at[_MLP_NORM], eps, rows, hidden, threads)
        matmul(
            projected, gate_up_width, at[_GATE_UP + 1], 0, normed, hidden, at[_GATE_UP], tile,
            weight_bytes, rows, hidden, gate_up_width // PANEL, threads,
        )  # fmt: skip
        silu_mul(normed, projected, gate_up_width, rows, intermediate, threads)
        _add_linear(
            residual, hidden, at[_DOWN + 1], normed, intermediate, at[_DOWN], tile, weight_bytes,
            rows, threads,
        )  # fmt: skip


class CpuDecoder:
    """Runs layers over a residual stream. Keeps the layers' weights alive, copies none."""

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        *,
        num_heads: int,
        head_dim: int,
        eps: float,
        scale: float,
        cos_sin: torch.Tensor,
    ) -> None:
        """cos_sin: float32 [max_pos, R], as Ops.rotary takes it.

        Raises ValueError for layers that `fits` does not hold for.
        """
        if not CpuDecoder.fits(layers):
            raise ValueError("these layers are not made of CPU linear layers of whole panels")
        self._layers = tuple(layers)
        self._heads, self._width = num_heads, head_dim
        self._eps, self._scale = float(eps), float(scale)
        self._cos_sin = cos_sin.contiguous()
        table = np.zeros((len(layers), _COLUMNS), np.int64)
        for row, layer in zip(table, layers):
            for column, linear in (
                (_QKV, layer.qkv),
                (_OUTPUT, layer.output),
                (_GATE_UP, layer.gate_up),
                (_DOWN, layer.down),
            ):
                assert isinstance(linear, PanelLinear)
                starts_at_bias = column in (_QKV, _GATE_UP)
                row[column] = linear.packed.data_ptr()
                row[column + 1] = linear.init.data_ptr() if starts_at_bias or linear.biased else 0
            for column, norm in (
                (_ATTENTION_NORM, layer.attention_norm),
                (_MLP_NORM, layer.mlp_norm),
                (_Q_NORM, layer.q_norm),
                (_K_NORM, layer.k_norm),
            ):
                row[column] = 0 if norm is None else norm.data_ptr()
            row[_WINDOW] = layer.window or 0
        self._table = table
        self._hidden = layers[0].qkv.in_features
        self._intermediate = layers[0].down.in_features
        first = layers[0].qkv
        assert isinstance(first, PanelLinear)
        self._dot, self._tile = tile_address(torch.float32), first.tile
        self._weight_bytes = first.packed.element_size()
        self._arena: torch.Tensor | None = None
        self._arena_view: tuple[np.ndarray, ArenaShape]

    @staticmethod
    def fits(layers: Sequence[DecoderLayer]) -> bool:
        """Whether layers can run here: CPU linear layers that add whole panels to the residual."""
        return bool(layers) and all(
            isinstance(linear, PanelLinear)
            for layer in layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ) and layers[0].output.out_features % PANEL == 0  # fmt: skip

    def run(
        self,
        residual: torch.Tensor,
        positions: torch.Tensor,
        kv: torch.Tensor,
        slots: torch.Tensor,
        meta: AttentionMeta,
    ) -> None:
        """Take residual, contiguous float32 [T, E], through the layers in place.

        positions, slots: contiguous int64 [T]; kv: the arena, written for all tokens. The layers
        are the arena's first ones.
        """
        rows = residual.shape[0]
        if residual.shape != (rows, self._hidden) or not residual.is_contiguous():
            raise ValueError(f"residual is {tuple(residual.shape)}; hidden is {self._hidden}")
        if residual.dtype is not torch.float32:
            raise TypeError(f"residual is {residual.dtype}; on the CPU activations are float32")
        for name, index in (("positions", positions), ("slots", slots)):
            if (
                index.dtype is not torch.int64
                or index.shape != (rows,)
                or not index.is_contiguous()
            ):
                raise ValueError(f"{name} must be contiguous int64 [{rows}]")
        if kv.shape[1] < len(self._layers):
            raise ValueError(
                f"the arena has {kv.shape[1]} layers, but there are {len(self._layers)} layers here"
            )
        first = kv is not self._arena
        if first:
            self._arena_view, self._arena = arena_view(kv), kv
        array, shape = self._arena_view
        qkv, gate_up = self._layers[0].qkv, self._layers[0].gate_up
        assert isinstance(qkv, PanelLinear) and isinstance(gate_up, PanelLinear)
        # Allocated here: numba frees an array after its last use by name, whatever has its address.
        projected = torch.empty(rows, max(qkv.padded, gate_up.padded))
        normed = torch.empty(rows, max(self._hidden, self._heads * shape[2], self._intermediate))
        with cpu_cache.compile_lock() if first else nullcontext():
            _run(
                self._table, residual.data_ptr(), projected.data_ptr(), normed.data_ptr(), rows,
                self._hidden, qkv.padded, gate_up.padded, self._intermediate, self._heads,
                self._dot, self._tile, self._weight_bytes, self._eps, self._scale,
                self._cos_sin.data_ptr(), self._cos_sin.shape[1] // 2, positions.data_ptr(),
                slots.data_ptr(), array, shape,
                meta.block_tables.data_ptr(), meta.block_tables.stride(0),
                meta.query_starts.data_ptr(), meta.context_lens.data_ptr(), meta.num_prefill,
                meta.num_decode, num_threads(),
            )  # fmt: skip
