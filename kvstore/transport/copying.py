"""Copying and hashing of blocks. Both release the GIL for all but tiny pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]  # an arena: [num_blocks, block_bytes]

# Hashed, then copied while still in the cache. Smaller pieces would be hotter, but each costs
# two turns at the GIL, which another thread may hold for milliseconds.
_PIECE_BYTES = 1 << 20


def new_digest() -> xxhash.xxh3_64:
    return xxhash.xxh3_64()


def runs(*columns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, end) of the longest stretches in which every column counts up by one."""
    start, length = 0, len(columns[0])
    for i in range(1, length + 1):
        if i == length or any(column[i] != column[i - 1] + 1 for column in columns):
            yield start, i
            start = i


def views(arena: Blocks, blocks: Sequence[int]) -> list[Blocks]:
    """The bytes of `blocks` in order, as few flat pieces of the arena as they lie in."""
    return [
        arena[blocks[start] : blocks[start] + end - start].reshape(-1)
        for start, end in runs(blocks)
    ]


def digest(arena: Blocks, blocks: Sequence[int]) -> int:
    """64 bits that tell whether the bytes of `blocks`, in order, are what they were."""
    state = new_digest()
    for view in views(arena, blocks):
        state.update(view.data)
    return state.intdigest()


def copy(
    source: Blocks, src: Sequence[int], target: Blocks, dst: Sequence[int], *, verify: bool
) -> int:
    """Copy blocks `src` of one arena to `dst` of another; the digest of them, or 0."""
    state = new_digest() if verify else None
    for start, end in runs(src, dst):
        reading = source[src[start] : src[start] + end - start].reshape(-1)
        writing = target[dst[start] : dst[start] + end - start].reshape(-1)
        copy_bytes(reading, writing, state)
    return state.intdigest() if state is not None else 0


def copy_bytes(source: Blocks, target: Blocks, state: xxhash.xxh3_64 | None) -> None:
    """Copy flat bytes, and take them into the digest on the way."""
    for at in range(0, source.size, _PIECE_BYTES):
        piece = source[at : at + _PIECE_BYTES]
        if state is not None:
            state.update(piece.data)
        target[at : at + _PIECE_BYTES] = piece
