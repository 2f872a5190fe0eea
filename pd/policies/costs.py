"""What a prompt's tokens cost a node: seconds to compute them, or to fetch their blocks.

All measured by the nodes themselves, smoothed, and told with every snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pd.types import NodeSnapshot, Source

# Before any node has run a prefill nothing is known of their speed; then only the order of the
# estimates matters, and this makes them finite.
DEFAULT_PREFILL_RATE = 1000.0
# Until any node has fetched a block: that against computing it. Low enough to be tried.
_FETCH_SHARE = 0.1
_SLOW_FETCH_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Costs:
    """Prompt tokens a second; seconds a block from memory and from a disk, 0 if not known."""

    rate: float = DEFAULT_PREFILL_RATE
    fetch_s: float = 0.0
    slow_s: float = 0.0

    @classmethod
    def typical(cls, snapshots: Iterable[NodeSnapshot]) -> Costs:
        """The means of those nodes that have measured."""
        rates = fetches = slows = 0
        rate = fetch_s = slow_s = 0.0
        for snapshot in snapshots:
            if snapshot.prefill_rate > 0.0:
                rates, rate = rates + 1, rate + snapshot.prefill_rate
            if snapshot.fetch_s_per_block > 0.0:
                fetches, fetch_s = fetches + 1, fetch_s + snapshot.fetch_s_per_block
            if snapshot.fetch_s_per_slow_block > 0.0:
                slows, slow_s = slows + 1, slow_s + snapshot.fetch_s_per_slow_block
        return cls(
            rate / rates if rates else DEFAULT_PREFILL_RATE,
            fetch_s / fetches if fetches else 0.0,
            slow_s / slows if slows else 0.0,
        )

    def of(self, snapshot: NodeSnapshot) -> Costs:
        """A node's own, where it has measured them, else these."""
        return Costs(
            snapshot.prefill_rate or self.rate,
            snapshot.fetch_s_per_block or self.fetch_s,
            snapshot.fetch_s_per_slow_block or self.slow_s,
        )

    def saved_s(self, source: Source, cached: int, usable: int, block_size: int) -> float:
        """What fetching from a source saves at best against computing, of the blocks from
        `cached` up to `usable`: those that are dearer to fetch are left."""
        block_s = block_size / self.rate
        fetch_s = self.fetch_s or _FETCH_SHARE * block_s
        slow_s = max(self.slow_s or _SLOW_FETCH_SHARE * block_s, fetch_s)
        end = min(source.num_blocks, usable)
        # A source's slow blocks are its last.
        fast = max(0, min(source.num_blocks - source.num_slow, end) - cached)
        slow = max(0, end - cached) - fast
        return fast * max(0.0, block_s - fetch_s) + slow * max(0.0, block_s - slow_s)
