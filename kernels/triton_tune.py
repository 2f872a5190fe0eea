"""Measures which attention tiles are fastest on this device, and uses them from then on.

Not for the middle of traffic: every candidate is compiled (about a second) and timed. The tiles
in pd_kernels.triton_tiles are what such measurements found on devices known so far.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton

from pd_kernels.meta import AttentionMeta
from pd_kernels.triton_attention_decode import decode_attention
from pd_kernels.triton_attention_prefill import prefill_attention
from pd_kernels.triton_tiles import Tile, TileKey, decode_tile, prefill_tile, set_tuned_tile

# (rows, keys, warps, stages). Above three stages only odd numbers add a buffer.
_PREFILL = (
    (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 3), (64, 128, 4, 3),
    (128, 32, 8, 3), (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 5),
    (128, 128, 8, 2), (128, 128, 8, 3),
)  # fmt: skip
# (keys, warps, stages); rows follow from the group.
_DECODE = (
    (32, 2, 3), (32, 4, 3), (32, 4, 5), (64, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 5), (64, 8, 3),
    (128, 4, 3), (128, 8, 3), (128, 8, 5),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuning:
    """What one phase was measured to take, in seconds a call; fastest first."""

    key: TileKey
    default: Tile
    seconds: tuple[tuple[Tile, float], ...]
    refused: tuple[tuple[Tile, str], ...]

    @property
    def best(self) -> Tile:
        return self.seconds[0][0]


def uniform_batch(
    num_sequences: int,
    query_len: int,
    context: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    decode: bool,
) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    """(q [T, H, D], kv [B, 1, 2, K, P, D], meta): random values, blocks in random order."""
    blocks = -(-context // block_size)
    kv = torch.empty(
        (num_sequences * blocks, 1, 2, kv_heads, block_size, head_dim), dtype=dtype, device=device
    ).normal_()
    q = torch.randn((num_sequences * query_len, heads, head_dim), device=device).to(dtype)
    tables = torch.randperm(num_sequences * blocks).view(num_sequences, blocks).tolist()
    meta = AttentionMeta.from_lists(
        tables,
        [query_len] * num_sequences,
        [context] * num_sequences,
        0 if decode else num_sequences,
        device,
    )
    return q, kv, meta


def median_seconds(call: Callable[[], None]) -> float:
    """Device time of a call, the L2 cache flushed before each."""
    milliseconds = triton.testing.do_bench(call, warmup=10, rep=60, return_mode="median")
    return float(milliseconds) / 1e3


def tune_attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = 16,
    measure: Callable[[Callable[[], None]], float] = median_seconds,
) -> list[Tuning]:
    """Measure prefill (many and few rows) and decode, and keep the fastest tile of each.

    Uses about 1 GB of device memory for 8 kv heads of 128 dims. Takes a minute.
    """
    group = heads // kv_heads
    least = triton.next_power_of_2(group)
    batch = functools.partial(
        uniform_batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        device=device,
    )
    scale = head_dim**-0.5
    results = []
    for phase, query_len, context in (("prefill", 4096, 4096), ("prefill-few", 256, 4096)):
        q, kv, meta = batch(1, query_len, context, decode=False)
        out = torch.empty_like(q)
        tiles = [Tile(max(least, rows), *rest) for rows, *rest in _PREFILL]
        results.append(
            _sweep(
                device,
                TileKey(phase, dtype, head_dim, group),
                prefill_tile(device, dtype, head_dim, group, phase == "prefill-few"),
                tiles,
                functools.partial(prefill_attention, q, kv, 0, meta, scale, None, out),
                measure,
            )
        )
    q, kv, meta = batch(64, 1, 2048, decode=True)
    out = torch.empty_like(q)
    results.append(
        _sweep(
            device,
            TileKey("decode", dtype, head_dim, group),
            decode_tile(device, dtype, head_dim, group),
            [Tile(max(16, least), *rest) for rest in _DECODE],
            functools.partial(decode_attention, q, kv, 0, meta, scale, None, out),
            measure,
        )
    )
    return results


def _sweep(
    device: torch.device,
    key: TileKey,
    default: Tile,
    tiles: Sequence[Tile],
    run: Callable[[Tile], None],
    measure: Callable[[Callable[[], None]], float],
) -> Tuning:
    seconds, refused = [], []
    for tile in dict.fromkeys((default, *tiles)):
        try:
            seconds.append((tile, measure(functools.partial(run, tile))))
        except Exception as error:  # too large for the device or the compiler: not a candidate
            refused.append((tile, repr(error)))
    if not seconds:
        raise RuntimeError(f"no tile runs for {key}: {refused[0][1]}")
    seconds.sort(key=lambda pair: pair[1])
    tuning = Tuning(key, default, tuple(seconds), tuple(refused))
    set_tuned_tile(device, key, tuning.best)
    return tuning
