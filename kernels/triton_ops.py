"""TritonOps: the Ops of a CUDA device. Dimension letters: see pd_kernels.ops.

With TRITON_INTERPRET=1 in the environment before triton is imported the same kernels run, slowly,
on CPU tensors.
"""

from __future__ import annotations

import torch

from pd_kernels import triton_cache
from pd_kernels.meta import AttentionMeta
from pd_kernels.triton_activation import silu_mul
from pd_kernels.triton_attention_decode import decode_attention
from pd_kernels.triton_attention_prefill import prefill_attention
from pd_kernels.triton_norm import add_rms_norm, rms_norm
from pd_kernels.triton_rotary import rotary


class TritonOps:
    """See pd_kernels.ops.Ops for the meaning of each method.

    Nothing here waits for the device, and every launch depends on host integers only, so a decode
    step can be captured into a CUDA graph.
    """

    name = "triton"

    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rotary = staticmethod(rotary)
    silu_mul = staticmethod(silu_mul)
    write_kv = staticmethod(triton_cache.write_kv)
    copy_blocks = staticmethod(triton_cache.copy_blocks)
    pack_blocks = staticmethod(triton_cache.pack_blocks)
    unpack_blocks = staticmethod(triton_cache.unpack_blocks)

    def attention(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        layer: int,
        meta: AttentionMeta,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        if q.shape[1] % kv.shape[3]:
            raise ValueError(f"{q.shape[1]} query heads do not divide into {kv.shape[3]} kv heads")
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if meta.num_prefill:
            prefill_attention(q, kv, layer, meta, scale, window, out)
        if meta.num_decode:
            decode_attention(q, kv, layer, meta, scale, window, out)
        return out
