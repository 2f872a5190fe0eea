"""Ops: the kernels that a decoder and a KV transfer need, one class per backend.

Legend: T tokens of the flat batch, S sequences, H query heads, K kv heads (H a multiple of K),
D head_dim, R rotated dims (R <= D), B blocks of the arena, P block_size, L layers, E hidden,
F intermediate.

The KV arena is one tensor `kv` of [B, L, 2, K, P, D] (2 = k, v): one block holds all layers and
is contiguous, so that it is one piece to send, keep and read back.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from pd_kernels.meta import AttentionMeta

logger = logging.getLogger(__name__)


class Ops(Protocol):
    """What every backend computes. Arithmetic is fp32 inside; results have the dtype of `x`/`q`.

    All tensors of a call live on one device. Results are allocated by the callee.
    """

    name: str

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dim. x [T, E], weight [E]."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """new = x + residual, rounded to their dtype; (rms_norm(new), new), both [T, E].

        The caller gives `residual` up: its storage may be reused for `new`.
        """
        ...

    def rotary(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """Rotate q [T, H, D] and k [T, K, D] in place, half-split (neox) pairs of the first R dims.

        positions [T] int64; cos_sin [max_pos, R] fp32, R/2 cosines then R/2 sines.
        The last dim of q and k has stride 1; the others are free (slices of a fused qkv).
        """
        ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of gate_up [T, 2F] = gate | up; [T, F]."""
        ...

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor
    ) -> None:
        """Store k, v [T, K, D] at slots [T] int64 (block * P + offset) of `layer`.

        A negative slot is padding and is skipped. Slots are distinct.
        """
        ...

    def attention(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        layer: int,
        meta: AttentionMeta,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Causal paged attention of q [T, H, D] over the blocks of its sequences; [T, H, D].

        The KV of this step's tokens has been written already. Query head h reads kv head
        h // (H / K). With a window w a query at position p sees positions p - w + 1 .. p.
        """
        ...

    def copy_blocks(self, kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
        """kv[dst[i]] = kv[src[i]]; src, dst [n] int64. dst is distinct and disjoint from src."""
        ...

    def pack_blocks(self, kv: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Bytes of blocks ids [n] int64, in order: uint8 [n, block_bytes]."""
        ...

    def unpack_blocks(self, kv: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor) -> None:
        """Inverse of pack_blocks: packed uint8 [n, block_bytes] into blocks ids [n] (distinct)."""
        ...


def select_ops(device: torch.device) -> Ops:
    """The fastest backend of a device. Raises ValueError for a device that has none.

    Backends are imported only when chosen: a CUDA machine needs no numba, a CPU one no triton.
    """
    if device.type == "cuda":
        from pd_kernels.triton_ops import TritonOps

        return TritonOps()
    if device.type == "cpu":
        try:
            from pd_kernels.cpu_ops import CpuOps
        except ModuleNotFoundError as error:
            from pd_kernels.reference import ReferenceOps

            logger.warning(
                "CPU kernels need %s, which is not installed; using plain torch, which is slower",
                error.name,
            )
            return ReferenceOps()
        return CpuOps()
    raise ValueError(f"no kernels for device {str(device)!r}; use 'cpu' or 'cuda'")
