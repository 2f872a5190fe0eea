"""ReferenceOps: every operation in plain torch, written to be obviously right.

It is the oracle of the other backends. Arithmetic is fp32 (fp64 stays fp64) whatever the storage
dtype. Dimension letters: see pd_kernels.ops.
"""

from __future__ import annotations

import torch

from pd_kernels.meta import AttentionMeta


def _up(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


class ReferenceOps:
    """See pd_kernels.ops.Ops for the meaning of each method. Runs on any device."""

    name = "reference"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = _up(x)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (wide * scale * _up(weight)).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new_residual = (_up(x) + _up(residual)).to(x.dtype)
        return self.rms_norm(new_residual, weight, eps), new_residual

    def rotary(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        half = cos_sin.shape[1] // 2
        cos, sin = cos_sin[positions].unsqueeze(1).split(half, dim=-1)  # [T, 1, R/2] each
        for x in (q, k):
            low, high = _up(x[..., :half]), _up(x[..., half : 2 * half])
            # Both halves are computed before either is stored: they are views of x.
            new_low, new_high = low * cos - high * sin, high * cos + low * sin
            x[..., :half] = new_low.to(x.dtype)
            x[..., half : 2 * half] = new_high.to(x.dtype)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = _up(gate_up).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)

    def write_kv(
        self, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor
    ) -> None:
        block_size = kv.shape[4]
        real = slots >= 0
        slots = slots[real]
        blocks, offsets = slots // block_size, slots % block_size
        kv[blocks, layer, 0, :, offsets] = k[real].to(kv.dtype)
        kv[blocks, layer, 1, :, offsets] = v[real].to(kv.dtype)

    def attention(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        layer: int,
        meta: AttentionMeta,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        num_heads, num_kv_heads, block_size = q.shape[1], kv.shape[3], kv.shape[4]
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        starts, contexts = meta.query_starts.tolist(), meta.context_lens.tolist()
        for s in range(meta.num_sequences):
            first, last, context = starts[s], starts[s + 1], contexts[s]
            if context == 0 or first == last:
                continue
            num_blocks = -(-context // block_size)
            blocks = meta.block_tables[s, :num_blocks].long()
            # [blocks, 2, K, P, D] -> [2, K, context, D] -> [2, H, context, D]
            pages = _up(kv[blocks, layer]).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
            k, v = pages.repeat_interleave(num_heads // num_kv_heads, dim=1)
            queries = _up(q[first:last]).transpose(0, 1)  # [H, rows, D]
            scores = queries @ k.transpose(1, 2) * scale  # [H, rows, context]
            q_pos = torch.arange(context - (last - first), context, device=q.device)[:, None]
            k_pos = torch.arange(context, device=q.device)[None, :]
            visible = k_pos <= q_pos
            if window is not None:
                visible &= k_pos > q_pos - window
            weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
            out[first:last] = (weights @ v).transpose(0, 1).to(q.dtype)
        return out

    def copy_blocks(self, kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
        kv[dst] = kv[src]

    def pack_blocks(self, kv: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return kv[ids].flatten(1).view(torch.uint8)

    def unpack_blocks(self, kv: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor) -> None:
        kv[ids] = packed.contiguous().view(kv.dtype).view(-1, *kv.shape[1:])
