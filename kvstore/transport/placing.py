"""Blocks of a sender into the pages of a receiver, whatever the layouts of the two are.

What travels has a layout of its own, the payload's: the heads that both have, in one dtype. It
is what is hashed. Where it is the layout of the arena as well, nothing is converted or held twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from kvstore import convert
from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transport import copying
from kvstore.transport.copying import Blocks
from kvstore.transport.expected import Grant

# Written without letting go of the lock that the owner needs to forget a transfer.
_LOCKED_BYTES = 1 << 20


def payload_blocks(
    arena: KVArena, src: Sequence[int], payload: KVLayout
) -> tuple[Blocks, Sequence[int]]:
    """Blocks in which the payload of `src` lies, and which of them: the arena itself, or a copy."""
    if payload == arena.layout:
        return arena.blocks, src
    return convert.converted(arena.blocks, src, arena.layout, payload), range(len(src))


def place(
    source: KVArena, src: Sequence[int], target: KVArena, dst: Sequence[int], payload: KVLayout,
    *, verify: bool,
) -> int:  # fmt: skip
    """Write blocks of one arena of this process into another's; the payload's digest, or 0."""
    blocks, places = payload_blocks(source, src, payload)
    if payload == target.layout:
        return copying.copy(blocks, places, target.blocks, dst, verify=verify)
    digest = copying.digest(blocks, places) if verify else 0
    convert.convert(blocks, places, payload, target.blocks, dst, target.layout)
    return digest


def placed_digest(arena: KVArena, pages: Sequence[int], payload: KVLayout) -> int:
    """The digest of the payload as the pages now have it; for a payload of the arena's dtype."""
    return copying.digest(*payload_blocks(arena, pages, payload))


def land(
    frames: Sequence[Blocks], payload: KVLayout, digest: int, arena: KVArena, pages: Sequence[int],
    grant: Grant, lock: Lock, *, verify: bool,
) -> bool:  # fmt: skip
    """Write what came, flat `frames` of whole blocks, into the pages of a grant; whether it is
    what was sent, and the grant still open."""
    size, as_it_is = payload.block_bytes, payload == arena.layout
    if sum(frame.size for frame in frames) != len(pages) * size:
        return False
    if any(frame.size % size for frame in frames):
        return False
    if verify and not as_it_is and copying.digest_of(frames) != digest:
        return False
    state = copying.new_digest() if verify and as_it_is else None
    at, step = 0, max(1, _LOCKED_BYTES // arena.layout.block_bytes)
    for frame in frames:
        blocks = frame.reshape(-1, size)
        for i in range(0, len(blocks), step):
            part = blocks[i : i + step]
            to = pages[at + i : at + i + len(part)]
            with lock:
                if not grant.open:
                    return False
                if as_it_is:
                    copying.copy_into(part, range(len(part)), arena.blocks, to, state)
                else:
                    convert.convert(part, range(len(part)), payload, arena.blocks, to, arena.layout)
        at += len(blocks)
    return state is None or state.intdigest() == digest
