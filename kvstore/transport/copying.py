"""Copying and hashing of blocks. Both release the GIL for all but tiny pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]  # an arena: [num_blocks, block_bytes]
Digest = xxhash.xxh3_64

# Hashed, then copied while still in a core's cache: hashing from there is several times faster
# than memory, so that it costs little beside the copy. Smaller pieces would be hotter, but each
# costs two turns at the GIL, which another thread may hold for milliseconds.
_PIECE_BYTES = 512 << 10


def new_digest() -> Digest:
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
    return digest_of(views(arena, blocks))


def digest_of(pieces: Sequence[Blocks]) -> int:
    """The digest of the bytes of all pieces, in order."""
    state = new_digest()
    for piece in pieces:
        state.update(piece.data)
    return state.intdigest()


def copy(
    source: Blocks, src: Sequence[int], target: Blocks, dst: Sequence[int], *, verify: bool
) -> int:
    """Copy blocks `src` of one arena to `dst` of another; the digest of them, or 0."""
    state = new_digest() if verify else None
    copy_into(source, src, target, dst, state)
    return state.intdigest() if state is not None else 0


def copy_into(
    source: Blocks, src: Sequence[int], target: Blocks, dst: Sequence[int], state: Digest | None
) -> None:
    """Copy blocks, and take them into the digest on the way."""
    for start, end in runs(src, dst):
        reading = source[src[start] : src[start] + end - start].reshape(-1)
        writing = target[dst[start] : dst[start] + end - start].reshape(-1)
        for at in range(0, reading.size, _PIECE_BYTES):
            piece = reading[at : at + _PIECE_BYTES]
            if state is not None:
                state.update(piece.data)
            writing[at : at + _PIECE_BYTES] = piece
