"""Which nodes run a piece of work, by one of four policies.

A pure function of the nodes' last snapshots, of what was sent to them since (credit), so that a
burst of arrivals between two snapshots spreads instead of piling onto one node, and of where
the prompt's blocks lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pd.policies import affinity, cache_aware, least_loaded, round_robin
from pd.policies.candidate import Candidate, Placement, Prompt

Routing = Literal["cache_aware", "least_loaded", "round_robin", "affinity"]

Choose = Callable[[Sequence[Candidate], Prompt], Candidate]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """`start` chooses among prefill and mixed nodes, `decode` among the decode nodes that have
    the KV layout of the prefill node chosen. Neither is asked about no nodes at all."""

    start: Choose
    decode: Choose


POLICIES: Mapping[Routing, RoutingPolicy] = {
    "cache_aware": RoutingPolicy(cache_aware.choose_start, cache_aware.choose_decode),
    "least_loaded": RoutingPolicy(least_loaded.choose_start, least_loaded.choose_decode),
    "round_robin": RoutingPolicy(round_robin.choose_start, round_robin.choose_decode),
    "affinity": RoutingPolicy(affinity.choose_start, affinity.choose_decode),
}


def route(nodes: Iterable[Candidate], prompt: Prompt, routing: Routing) -> Placement | None:
    """The pair (or the one mixed node) to run this prompt, or None if there is none.

    A prompt that goes to a mixed node stays there. The nodes of a pair have the same KV layout.
    """
    starts: list[Candidate] = []
    decodes: dict[int, list[Candidate]] = {}
    for node in nodes:
        if node.role == "decode":
            decodes.setdefault(node.layout, []).append(node)
        elif node.role != "pool":
            starts.append(node)
    starts = [node for node in starts if node.role == "mixed" or node.layout in decodes]
    if not starts:
        return None
    policy = POLICIES[routing]
    start = policy.start(starts, prompt)
    if start.role == "mixed":
        return Placement(start.node_id, start.node_id)
    return Placement(start.node_id, policy.decode(decodes[start.layout], prompt).node_id)
