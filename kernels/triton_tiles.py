"""Tile shapes of the attention kernels: a default for each device, or what tuning found there.

A server must not stop to autotune in the middle of traffic, so the choice is a table lookup.
`set_tuned_tiles` overrides it, after measurement (see pd_kernels.triton_tune).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from pd_kernels.triton_common import INTERPRET, has_warpgroup_matrix_units, shared_memory_bytes


@dataclass(frozen=True, slots=True)
class Tile:
    """Shape of one program: query rows, keys a step, warps, and software pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int

    def shared_bytes(self, head_dim: int, element_size: int) -> int:
        """Shared memory of the query tile and of the K and V tiles in flight, in bytes."""
        padded = max(16, triton.next_power_of_2(head_dim))
        # A load that waits for a block-table entry takes two stages, so buffers grow by halves.
        buffers = max(2, (self.stages + 1) // 2)
        return (self.rows + 2 * self.keys * buffers) * padded * element_size


@dataclass(frozen=True, slots=True)
class TileKey:
    """What a tuned tile depends on. phase is "prefill", "prefill-few" or "decode"."""

    phase: str
    dtype: torch.dtype
    head_dim: int
    group: int


_tuned: dict[tuple[torch.device, TileKey], Tile] = {}


def set_tuned_tile(device: torch.device, key: TileKey, tile: Tile) -> None:
    """Use `tile` for `key` on `device` from now on, in this process."""
    _tuned[(device, key)] = tile
    prefill_tile.cache_clear()
    decode_tile.cache_clear()


def _fit(tile: Tile, device: torch.device, head_dim: int, element_size: int) -> Tile:
    """Fewer stages, then fewer keys, then fewer rows, until the tile fits the device."""
    limit = shared_memory_bytes(device)
    while tile.shared_bytes(head_dim, element_size) > limit:
        if tile.stages > 2:
            tile = Tile(tile.rows, tile.keys, tile.warps, tile.stages - 1)
        elif tile.keys > 16:
            tile = Tile(tile.rows, tile.keys // 2, tile.warps, tile.stages)
        elif tile.rows > 16:
            tile = Tile(tile.rows // 2, tile.keys, tile.warps, tile.stages)
        else:
            raise ValueError(
                f"head_dim {head_dim} does not fit the {limit} bytes of shared memory of {device}"
            )
    return tile


@functools.cache
def prefill_tile(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int, few: bool
) -> Tile:
    """few: too few query rows to fill the device with large tiles."""
    phase = "prefill-few" if few else "prefill"
    tuned = _tuned.get((device, TileKey(phase, dtype, head_dim, group)))
    if tuned is not None:
        return tuned
    least = triton.next_power_of_2(group)
    if INTERPRET:
        return Tile(max(least, 16 if few else 32), 16, 1, 1)
    if dtype == torch.float32:
        # Exact fp32 dots run outside the matrix units and hold their operands in registers:
        # larger tiles spill.
        return _fit(Tile(max(least, 16), 16, 4, 2), device, head_dim, 4)
    hopper = has_warpgroup_matrix_units(device)
    if head_dim > 128:
        rows, keys, warps = (128, 32, 8) if hopper and not few else (64, 64, 8)
    elif few:
        rows, keys, warps = 64, 64 if hopper else 32, 4
    else:
        rows, keys, warps = 128, 64, 8
    tile = Tile(max(least, rows), keys, warps, 3)
    return _fit(tile, device, head_dim, 2)


@functools.cache
def decode_tile(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> Tile:
    """rows is the group of query heads, padded to the 16 rows of a matrix instruction."""
    tuned = _tuned.get((device, TileKey("decode", dtype, head_dim, group)))
    if tuned is not None:
        return tuned
    rows = max(16, triton.next_power_of_2(group))
    if INTERPRET:
        return Tile(rows, 16, 1, 1)
    if dtype == torch.float32:
        return _fit(Tile(rows, 16, 4, 2), device, head_dim, 4)
    return _fit(Tile(rows, 64 if head_dim > 64 else 128, 4, 3), device, head_dim, 2)
