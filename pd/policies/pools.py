"""Which pool a node puts its blocks into: the one on its host, else the one with least nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """A node, or a pool: where it runs, and the KV layout of its blocks."""

    id: str
    host: str
    layout: int


def assign_pools(
    nodes: Iterable[Site], pools: Iterable[Site], before: Mapping[str, str]
) -> dict[str, str]:
    """The pool of every node for which there is one: it has the node's layout.

    A node keeps the pool that it had `before`, among those it may have, while that one has no
    more than its even share.
    """
    by_layout: dict[int, list[Site]] = {}
    for pool in sorted(pools, key=lambda pool: pool.id):
        by_layout.setdefault(pool.layout, []).append(pool)
    # Those with the most to choose from come last, and see what the others took.
    ordered = sorted(
        (node for node in nodes if node.layout in by_layout),
        key=lambda node: (
            not _on_host(node, by_layout[node.layout]),
            node.id not in before,
            node.id,
        ),
    )
    num_nodes = Counter(node.layout for node in ordered)
    taken: Counter[str] = Counter()
    assigned: dict[str, str] = {}
    for node in ordered:
        pools_of_layout = by_layout[node.layout]
        choice = _on_host(node, pools_of_layout) or pools_of_layout
        share = -(-num_nodes[node.layout] // len(pools_of_layout))
        had = before.get(node.id)
        if not any(pool.id == had for pool in choice) or taken[had or ""] >= share:
            had = min(choice, key=lambda pool: (taken[pool.id], pool.id)).id
        assert had is not None
        assigned[node.id] = had
        taken[had] += 1
    return assigned


def _on_host(node: Site, pools: list[Site]) -> list[Site]:
    return [pool for pool in pools if pool.host == node.host]
