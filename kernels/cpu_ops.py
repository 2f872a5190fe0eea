"""CpuOps: the kernels on the CPU, compiled by numba for the machine they run on.

Activations are float32. The KV arena may be float32 or bfloat16. Dimension letters and the
meaning of each method: pd_kernels.ops.
"""

from __future__ import annotations

import numpy as np
import torch

from pd_kernels import cpu_elementwise
from pd_kernels.cpu_arena import ArenaShape, arena_view
from pd_kernels.cpu_attention_decode import attend_decode
from pd_kernels.cpu_attention_prompt import attend_prompt
from pd_kernels.cpu_cache import compile_lock
from pd_kernels.cpu_threads import num_threads
from pd_kernels.cpu_vector import tile_address
from pd_kernels.meta import AttentionMeta

_warm: set[torch.dtype] = set()


class CpuOps:
    """See pd_kernels.ops.Ops. Shapes and dtypes are checked here: kernels get addresses.

    Methods may be called from several threads only where numba has a thread-safe threading
    layer (OpenMP or TBB, not its work queue): see pd_kernels.cpu_threads.
    """

    name = "cpu"

    def __init__(self) -> None:
        self._dot = tile_address(torch.float32)
        self._arena: torch.Tensor | None = None
        self._arena_view: tuple[np.ndarray, ArenaShape]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if x.ndim != 2:
            return self.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)
        x = _rows(x)
        rows, width = x.shape
        _check_weight(weight, width)
        y = torch.empty(rows, width)
        cpu_elementwise.rms_norm(
            y.data_ptr(), x.data_ptr(), x.stride(0), weight.data_ptr(), float(eps), rows, width,
            num_threads(),
        )  # fmt: skip
        return y

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = _rows(x)
        rows, width = x.shape
        _check_weight(weight, width)
        if residual.shape != x.shape or residual.dtype is not torch.float32:
            raise ValueError(f"residual is {_describe(residual)}, x is {_describe(x)}")
        residual = residual.contiguous()
        y = torch.empty(rows, width)
        cpu_elementwise.add_rms_norm(
            y.data_ptr(), residual.data_ptr(), x.data_ptr(), x.stride(0), weight.data_ptr(),
            float(eps), rows, width,
        )  # fmt: skip
        return y, residual

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate_up = _rows(gate_up)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(rows, width)
        cpu_elementwise.silu_mul(
            y.data_ptr(), gate_up.data_ptr(), gate_up.stride(0), rows, width, num_threads()
        )
        return y

    def rotary(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        _check_heads(q, k)
        rows = _check_index(positions, q.shape[0], "positions")
        if cos_sin.dtype is not torch.float32 or not cos_sin.is_contiguous():
            raise ValueError(f"cos_sin is {_describe(cos_sin)}; it must be contiguous float32")
        if cos_sin.shape[1] > q.shape[2]:
            raise ValueError(f"{cos_sin.shape[1]} rotated dims, but heads have {q.shape[2]}")
        cpu_elementwise.rotary(
            q.data_ptr(), q.stride(0), q.stride(1), q.shape[1],
            k.data_ptr(), k.stride(0), k.stride(1), k.shape[1],
            cos_sin.data_ptr(), cos_sin.shape[1] // 2, positions.data_ptr(), rows,
        )  # fmt: skip

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor
    ) -> None:
        _check_heads(k, v)
        rows = _check_index(slots, k.shape[0], "slots")
        if k.shape != v.shape or k.shape[1:] != (kv.shape[3], kv.shape[5]):
            raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} do not fit the arena's "
                             f"{kv.shape[3]} heads of {kv.shape[5]}")  # fmt: skip
        cpu_elementwise.write_kv(
            *self._view(kv), layer, k.data_ptr(), k.stride(0), k.stride(1),
            v.data_ptr(), v.stride(0), v.stride(1), slots.data_ptr(), rows,
        )  # fmt: skip

    def attention(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        layer: int,
        meta: AttentionMeta,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
            q = q.contiguous()
        num_tokens, heads, width = q.shape
        if q.dtype is not torch.float32 or heads % kv.shape[3] or width != kv.shape[5]:
            raise ValueError(f"q is {_describe(q)}; the arena has {kv.shape[3]} kv heads of "
                             f"{kv.shape[5]}")  # fmt: skip
        out = torch.empty(num_tokens, heads, width)
        array, shape = self._view(kv)
        span = 0 if window is None else window
        tables, contexts = meta.block_tables, meta.context_lens
        table_bytes = tables.stride(0) * 4
        row = 0
        if meta.num_prefill:
            starts, lengths = meta.query_starts.tolist(), contexts.tolist()
            for s in range(meta.num_prefill):
                row, end = starts[s], starts[s + 1]
                if end > row:
                    attend_prompt(
                        self._dot, out.data_ptr() + row * heads * width * 4,
                        q.data_ptr() + row * q.stride(0) * 4, q.stride(0), heads,
                        array, shape, layer,
                        tables.data_ptr() + s * table_bytes, end - row, lengths[s],
                        span, float(scale), num_threads(),
                    )  # fmt: skip
                row = end
        if meta.num_decode:
            attend_decode(
                out.data_ptr() + row * heads * width * 4, q.data_ptr() + row * q.stride(0) * 4,
                q.stride(0), heads, array, shape, layer,
                tables.data_ptr() + meta.num_prefill * table_bytes, tables.stride(0),
                contexts.data_ptr() + meta.num_prefill * 4, meta.num_decode,
                span, float(scale), num_threads(),
            )  # fmt: skip
        return out

    def copy_blocks(self, kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
        kv[dst] = kv[src]

    def pack_blocks(self, kv: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return kv[ids].flatten(1).view(torch.uint8)

    def unpack_blocks(self, kv: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor) -> None:
        kv[ids] = packed.contiguous().view(kv.dtype).view(-1, *kv.shape[1:])

    def _view(self, kv: torch.Tensor) -> tuple[np.ndarray, ArenaShape]:
        """The arena as kernels take it. Made once: a node has one arena."""
        if kv is not self._arena:
            self._arena_view = arena_view(kv)
            self._arena = kv
            warmup(kv.dtype)
        return self._arena_view


def warmup(kv_dtype: torch.dtype) -> None:
    """Load or compile the kernels that take an arena of this dtype, once a process."""
    if kv_dtype in _warm:
        return
    _warm.add(kv_dtype)
    ops, cpu = CpuOps(), torch.device("cpu")
    with compile_lock():
        x, weight = torch.ones(2, 16), torch.ones(16)
        ops.add_rms_norm(x, ops.rms_norm(x, weight, 1e-5), weight, 1e-5)
        ops.silu_mul(x)
        heads = torch.ones(2, 1, 16)
        ops.rotary(heads, heads.clone(), torch.zeros(2, dtype=torch.int64), torch.ones(1, 16))
        kv = torch.zeros(1, 1, 2, 1, 4, 16, dtype=kv_dtype)
        ops.write_kv(heads, heads, kv, 0, torch.arange(2))
        meta = AttentionMeta.from_lists([[0], [0]], [1, 1], [1, 1], num_prefill=1, device=cpu)
        ops.attention(heads, kv, 0, meta, 1.0)


def _describe(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} on {x.device}"


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x [T, E] with contiguous rows."""
    if x.dtype is not torch.float32 or x.device.type != "cpu":
        raise TypeError(f"x is {_describe(x)}; on the CPU activations are float32")
    return x if x.stride(1) == 1 else x.contiguous()


def _check_weight(weight: torch.Tensor, width: int) -> None:
    if weight.shape != (width,) or weight.dtype is not torch.float32 or weight.stride(0) != 1:
        raise ValueError(f"weight is {_describe(weight)}; it must be contiguous float32 ({width},)")


def _check_heads(a: torch.Tensor, b: torch.Tensor) -> None:
    for x in (a, b):
        if x.dtype is not torch.float32 or x.ndim != 3 or x.stride(2) != 1:
            raise ValueError(f"heads are {_describe(x)}; they must be float32 [T, heads, D] with "
                             "a contiguous last dimension")  # fmt: skip
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2]:
        raise ValueError(f"{_describe(a)} and {_describe(b)} differ in tokens or head size")


def _check_index(index: torch.Tensor, rows: int, name: str) -> int:
    if index.dtype is not torch.int64 or index.shape != (rows,) or not index.is_contiguous():
        raise ValueError(f"{name} are {_describe(index)}; they must be contiguous int64 ({rows},)")
    return rows
