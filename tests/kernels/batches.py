"""Ragged batches over a paged arena, for kernel tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from pd_kernels.meta import AttentionMeta

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# fp32 differs only in the order of sums. The 16-bit types differ by a rounding of the result, and
# of the softmax weights before they meet V; bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Largest error within the dtype's tolerance, relative to the larger of 1 and the values."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    wide, exact = actual.double(), expected.double()
    assert torch.isfinite(wide).all()
    error = ((wide - exact).abs() / exact.abs().clamp(min=1.0)).max().item() if wide.numel() else 0
    assert error <= TOLERANCE[actual.dtype] * scale, f"error {error}"


def paged_batch(
    query_lens: Sequence[int],
    contexts: Sequence[int],
    num_prefill: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    layers: int = 2,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    """(q [T, H, D], kv [B, L, 2, K, P, D], meta); blocks are scattered in random order.

    What no sequence may read is NaN: unused blocks, and the ends of last blocks.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-context // block_size) for context in contexts]
    num_blocks = sum(needed) + 3
    free = draw.sample(range(num_blocks), num_blocks)
    kv = torch.full((num_blocks, layers, 2, kv_heads, block_size, head_dim), float("nan"))
    tables = []
    for count, context in zip(needed, contexts, strict=True):
        table = [free.pop() for _ in range(count)]
        for i, block in enumerate(table):
            valid = min(block_size, context - i * block_size)
            shape = (layers, 2, kv_heads, valid, head_dim)
            kv[block, :, :, :, :valid] = torch.randn(shape, generator=generator)
        tables.append(table)
    q = torch.randn((sum(query_lens), heads, head_dim), generator=generator)
    meta = AttentionMeta.from_lists(tables, query_lens, contexts, num_prefill, device)
    return q.to(device, dtype), kv.to(device, dtype), meta
