"""Which nodes run a piece of work, by one of four policies, and whether two or one.

A pure function of the nodes' last snapshots, of what was sent to them since (credit), so that a
burst of arrivals between two snapshots spreads instead of piling onto one node, and of where
the prompt's blocks lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pd.policies import affinity, cache_aware, least_loaded, round_robin
from pd.policies.candidate import Candidate, Fleet, Placement, Prompt
from pd.policies.disaggregate import Disaggregate, takes_whole, whole_is_better
from pd.policies.forecast import forecast, share_of_target

# Of a target: a mixed node that a prompt would come nearer to it on is not the only one asked.
_NEAR = 0.8

Routing = Literal["cache_aware", "least_loaded", "round_robin", "affinity"]

ChooseStart = Callable[[Sequence[Candidate], Prompt], Candidate]
ChooseDecode = Callable[[Sequence[Candidate], Prompt, Candidate], Candidate]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """`start` chooses among nodes that may run the prompt, `decode` among the decode nodes that
    have the KV layout of the prefill node chosen, which it is told. Neither is asked about no nodes
    at all."""

    start: ChooseStart
    decode: ChooseDecode


POLICIES: Mapping[Routing, RoutingPolicy] = {
    "cache_aware": RoutingPolicy(cache_aware.choose_start, cache_aware.choose_decode),
    "least_loaded": RoutingPolicy(least_loaded.choose_start, least_loaded.choose_decode),
    "round_robin": RoutingPolicy(round_robin.choose_start, round_robin.choose_decode),
    "affinity": RoutingPolicy(affinity.choose_start, affinity.choose_decode),
}


def route(
    fleet: Fleet,
    prompt: Prompt,
    routing: Routing,
    disaggregate: Disaggregate = "auto",
) -> Placement | None:
    """The pair (or the one node) to run this prompt, or None if there is none.

    The nodes of a pair have the same KV layout. Always and never are kept to while there are
    nodes for it. Left to choose, a prompt without targets goes where the policy would have it
    start, and stays there if that is a mixed node; one with targets goes the way that is
    predicted to meet them best, over two nodes, on a mixed one, or last on a decode node that it
    would not disturb, and to another mixed node than the policy's if it is near a target or late
    on that.
    """
    decodes, mixed = fleet.decodes, list(fleet.mixed.values())
    prefills = [node for node in fleet.prefills.values() if node.layout in decodes]
    policy = POLICIES[routing]

    def split(start: Candidate) -> tuple[Candidate, Candidate]:
        return start, policy.decode(list(decodes[start.layout].values()), prompt, start)

    if disaggregate == "never":
        mixed += [node for same in decodes.values() for node in same.values()]
        prefills = [] if mixed else prefills
    elif disaggregate == "always":
        mixed = [] if prefills else mixed
    elif prefills and prompt.has_targets:
        decoding = (node for same in decodes.values() for node in same.values())
        able = [node for node in decoding if takes_whole(node, prompt)]
        if mixed or able:
            pair = split(policy.start(prefills, prompt))
            foreseen = forecast(*pair, prompt)
            # A decode node could keep its outputs to their targets as well, but it is there to be
            # faster than that: it is the last that is asked.
            for nodes, kept in ((mixed, prompt.paced), (able, False)):
                if nodes:
                    one = _in_time(policy.start(nodes, prompt), nodes, prompt)
                    whole = forecast(one, one, prompt)
                    if whole_is_better(whole, foreseen, prompt.slo, kept=kept):
                        return Placement(one.node_id, one.node_id)
            return Placement(pair[0].node_id, pair[1].node_id)
    starts = prefills + mixed
    if not starts:
        return None
    start = policy.start(starts, prompt)
    if start.role != "prefill":
        start = _in_time(start, mixed, prompt)
        return Placement(start.node_id, start.node_id)
    return Placement(start.node_id, split(start)[1].node_id)


def _in_time(chosen: Candidate, nodes: Sequence[Candidate], prompt: Prompt) -> Candidate:
    """The node that the policy chose among these to run a prompt whole, or the one on which the
    prompt stays furthest within its targets, if on the chosen one it would be near one or late: a
    policy looks at prompts that wait, and what decodes may count for more."""
    if not prompt.has_targets or len(nodes) < 2:
        return chosen

    def share(node: Candidate) -> float:
        return share_of_target(forecast(node, node, prompt), prompt.slo)

    best, least = chosen, share(chosen)
    if least < _NEAR:
        return chosen
    for node in nodes:
        if node is not chosen and (its := share(node)) < least:
            best, least = node, its
    return best
