"""From which holders a node may fetch the blocks of a prompt that it lacks, the best first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from kvstore.directory import Leading
from pd.policies.costs import Costs
from pd.policies.spread import weight
from pd.types import Source

MAX_SOURCES = 3


def best_sources(
    leading: Mapping[str, Leading],
    epoch_of: Callable[[str], int],
    costs: Costs,
    block_size: int,
    *,
    usable: int,
    cached: int = 0,
    distance: Callable[[str], int] = lambda holder: 0,
    key: int = 0,
    limit: int = MAX_SOURCES,
) -> tuple[Source, ...]:
    """Holders of more than the first `cached` of `usable` blocks, by what fetching them saves.

    Of equal ones the nearest comes first, and then `key` decides, so that prompts which begin
    alike do not all fetch from one place. Linear in the holders of the prompt's first block.
    """
    # Most holders of a prefix have just as much of it, and few of them are ranked.
    alike: dict[Leading, list[str]] = {}
    if usable > cached:
        for holder, part in leading.items():
            if part.blocks > cached:
                alike.setdefault(part, []).append(holder)
    equal: dict[float, list[Leading]] = {}
    for part in alike:
        source = Source("", 0, part.blocks, part.slow)
        saved_s = costs.saved_s(source, cached, usable, block_size)
        equal.setdefault(saved_s, []).append(part)
    best: list[Source] = []
    for saved_s in sorted(equal, reverse=True):
        items = ((holder, part) for part in equal[saved_s] for holder in alike[part])
        ranked = heapq.nsmallest(
            limit - len(best), items, key=lambda it: (distance(it[0]), weight(key, it[0]), it[0])
        )
        best += [Source(name, epoch_of(name), part.blocks, part.slow) for name, part in ranked]
        if len(best) == limit:
            break
    return tuple(best)
