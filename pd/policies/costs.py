"""What a prompt's tokens cost a node: seconds to compute them, or to fetch their blocks.

All measured by the nodes themselves, smoothed, and told with every snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    def typical(cls, measured: Iterable[tuple[float, float, float]]) -> Costs:
        """The means of what nodes have measured, (rate, fetch, slow) of each, 0 where they have
        not."""
        means = [_mean_measured(values) for values in zip(*measured)]
        return cls(means[0] or DEFAULT_PREFILL_RATE, *means[1:]) if means else cls()

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
        found = fetching(self.rate, self.fetch_s, self.slow_s, source, cached, usable, block_size)
        return found[0]


def _mean_measured(values: Sequence[float]) -> float:
    count = len(values) - values.count(0.0)
    return sum(values) / count if count else 0.0


def fetching(
    rate: float,
    fetch_s: float,
    slow_s: float,
    source: Source,
    cached: int,
    usable: int,
    block_size: int,
) -> tuple[float, float]:
    """`Costs.saved_s`, and what the fetch takes, for when there are many nodes to ask it of."""
    block_s = block_size / rate
    fetch_s = fetch_s or _FETCH_SHARE * block_s
    slow_s = slow_s or _SLOW_FETCH_SHARE * block_s
    if slow_s < fetch_s:
        slow_s = fetch_s
    end = source.num_blocks if source.num_blocks < usable else usable
    if end <= cached:
        return 0.0, 0.0
    slow_from = source.num_blocks - source.num_slow  # a source's slow blocks are its last
    if slow_from < cached:
        slow_from = cached
    fast = (end if end < slow_from else slow_from) - cached
    slow = end - cached - fast
    # What is dearer to fetch than to compute is computed.
    if fetch_s >= block_s:
        fast = 0
    if slow_s >= block_s:
        slow = 0
    takes_s = fast * fetch_s + slow * slow_s
    return (fast + slow) * block_s - takes_s, takes_s
