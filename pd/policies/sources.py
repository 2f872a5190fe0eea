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
    saved: dict[Leading, float] = {}  # most holders of a prefix have just as much of it

    def rank(item: tuple[str, Leading]) -> tuple[float, int, int, str]:
        holder, part = item
        saved_s = saved.get(part)
        if saved_s is None:
            source = Source(holder, 0, part.blocks, part.slow)
            saved_s = saved[part] = costs.saved_s(source, cached, usable, block_size)
        return -saved_s, distance(holder), weight(key, holder), holder

    more = (item for item in leading.items() if min(item[1].blocks, usable) > cached)
    return tuple(
        Source(holder, epoch_of(holder), part.blocks, part.slow)
        for holder, part in heapq.nsmallest(limit, more, key=rank)
    )
