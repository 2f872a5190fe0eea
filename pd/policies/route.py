"""Which nodes run a piece of work, by one of four policies, and whether two or one.

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
from pd.policies.disaggregate import Disaggregate, takes_whole, whole_is_better
from pd.policies.forecast import forecast

Routing = Literal["cache_aware", "least_loaded", "round_robin", "affinity"]

Choose = Callable[[Sequence[Candidate], Prompt], Candidate]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """`start` chooses among nodes that may run the prompt, `decode` among the decode nodes that
    have the KV layout of the prefill node chosen. Neither is asked about no nodes at all."""

    start: Choose
    decode: Choose


POLICIES: Mapping[Routing, RoutingPolicy] = {
    "cache_aware": RoutingPolicy(cache_aware.choose_start, cache_aware.choose_decode),
    "least_loaded": RoutingPolicy(least_loaded.choose_start, least_loaded.choose_decode),
    "round_robin": RoutingPolicy(round_robin.choose_start, round_robin.choose_decode),
    "affinity": RoutingPolicy(affinity.choose_start, affinity.choose_decode),
}


def route(
    nodes: Iterable[Candidate],
    prompt: Prompt,
    routing: Routing,
    disaggregate: Disaggregate = "auto",
) -> Placement | None:
    """The pair (or the one node) to run this prompt, or None if there is none.

    The nodes of a pair have the same KV layout. Always and never are kept to while there are
    nodes for it. Left to choose, a prompt without targets goes where the policy would have it
    start, and stays there if that is a mixed node; one with targets goes the way that is
    predicted to meet them best, over all nodes including decode nodes that it would not disturb.
    """
    mixed: list[Candidate] = []
    prefills: list[Candidate] = []
    decodes: dict[int, list[Candidate]] = {}
    for node in nodes:
        if node.role == "decode":
            decodes.setdefault(node.layout, []).append(node)
        elif node.role == "mixed":
            mixed.append(node)
        elif node.role != "pool":
            prefills.append(node)
    prefills = [node for node in prefills if node.layout in decodes]
    policy = POLICIES[routing]

    def split(start: Candidate) -> tuple[Candidate, Candidate]:
        return start, policy.decode(decodes[start.layout], prompt)

    if disaggregate == "never":
        mixed += [node for same in decodes.values() for node in same]
        prefills = [] if mixed else prefills
    elif disaggregate == "always":
        mixed = [] if prefills else mixed
    elif prefills and prompt.has_targets:
        mixed += [node for same in decodes.values() for node in same if takes_whole(node, prompt)]
        if mixed:
            whole = policy.start(mixed, prompt)
            pair = split(policy.start(prefills, prompt))
            foreseen = forecast(whole, whole, prompt), forecast(*pair, prompt)
            if whole_is_better(*foreseen, prompt.slo):
                return Placement(whole.node_id, whole.node_id)
            return Placement(pair[0].node_id, pair[1].node_id)
    starts = prefills + mixed
    if not starts:
        return None
    start = policy.start(starts, prompt)
    if start.role != "prefill":
        return Placement(start.node_id, start.node_id)
    return Placement(start.node_id, split(start)[1].node_id)
