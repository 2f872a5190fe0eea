"""Ragged paged batches made on the device, for checks and timings of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pd_kernels.meta import AttentionMeta


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
    layers: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    """(q [T, H, D], kv [B, L, 2, K, P, D], meta): random values, blocks in random order.

    What no sequence may read, unused blocks and the ends of last blocks, is NaN.
    """
    needed = [-(-context // block_size) for context in contexts]
    num_blocks = sum(needed) + 2
    kv = torch.empty(
        (num_blocks, layers, 2, kv_heads, block_size, head_dim), dtype=dtype, device=device
    ).normal_()
    order = torch.randperm(num_blocks).tolist()
    tables = []
    for count, context in zip(needed, contexts, strict=True):
        table = [order.pop() for _ in range(count)]
        if context % block_size:
            kv[table[-1], :, :, :, context % block_size :] = float("nan")
        tables.append(table)
    for unused in order:
        kv[unused] = float("nan")
    q = torch.randn((sum(query_lens), heads, head_dim), device=device).to(dtype)
    return q, kv, AttentionMeta.from_lists(tables, query_lens, contexts, num_prefill, device)


def poison(*shape: int, dtype: torch.dtype, device: torch.device) -> None:
    """Leave NaN in memory that the next allocation of this size is likely to be given."""
    torch.full(shape, float("nan"), dtype=dtype, device=device)
