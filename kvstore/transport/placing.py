"""Blocks of a sender into the pages of a receiver, whatever the layouts of the two are.

What travels has a layout of its own, the payload's: the heads that both have, in one dtype. It
is what is hashed. Where it is the layout of the arena as well, nothing is converted or held twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvstore import convert
from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transport import copying
from kvstore.transport.copying import Blocks


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
