"""The most hits that any cache could have, knowing the future."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_NEVER = 1 << 60


def ceiling(prompts: Sequence[Sequence[int]]) -> int:
    """Hits with room for everything: blocks that an earlier prompt had, too."""
    seen: set[int] = set()
    hits = 0
    for prompt in prompts:
        hits += sum(block in seen for block in prompt)
        seen.update(prompt)
    return hits


def optimum(prompts: Sequence[Sequence[int]], capacity: int) -> int:
    """Belady's MIN: after each prompt keep those blocks that are asked for again soonest.

    It may keep none of a new prompt's blocks, which a cache that stores what was computed can
    not, so it is a bound for any policy. Of blocks that are next used at the same time the
    deeper ones go first; a block is never used before the one above it, so what is kept is
    always whole prefixes, and no hit is lost to a hole.
    """
    next_uses: list[list[int]] = []
    following: dict[int, int] = {}
    for number in range(len(prompts) - 1, -1, -1):
        next_uses.append([following.get(block, _NEVER) for block in prompts[number]])
        following.update(dict.fromkeys(prompts[number], number))
    next_uses.reverse()

    kept: dict[int, tuple[int, int]] = {}  # block to (its next use, its depth)
    farthest: list[tuple[int, int, int]] = []  # a heap of (-next use, -depth, block), some stale
    hits = 0
    for prompt, uses in zip(prompts, next_uses):
        hits += next((i for i, block in enumerate(prompt) if block not in kept), len(prompt))
        for depth, (block, use) in enumerate(zip(prompt, uses)):
            if use == _NEVER:
                kept.pop(block, None)
            else:
                kept[block] = (use, depth)
                heapq.heappush(farthest, (-use, -depth, block))
        while len(kept) > capacity:
            use, depth, block = heapq.heappop(farthest)
            if kept.get(block) == (-use, -depth):
                del kept[block]
    return hits
