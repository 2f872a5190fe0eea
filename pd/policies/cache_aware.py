"""Route to where the first token is predicted soonest: caches and queues in one figure.

Nothing else is needed for a hot prefix to spread: its holder's queue grows, until fetching the
blocks, or computing them again, is sooner elsewhere; and then there are two that have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from pd.policies.candidate import Candidate, Prompt
from pd.policies.predict import cached_blocks, costs_s, usable_blocks
from pd.policies.spread import weight

# Predictions this close are equal: measured rates are no better than that.
_NEAR_SHARE = 0.05
_NEAR_S = 0.002
# What counts against computing twice what is being computed already, as a share of the time that
# takes: alone, a prompt could not tell that from waiting for it.
_AGAIN = 0.5
# Loads of decode nodes this close are equal, as shares of what they can hold.
_NEAR_LOAD = 0.1

_FEW = 4  # nodes, of which each may as well be ranked

_Rank = tuple[int, int, bool, float, float, str]
_Item = tuple[float, Candidate]
_first = itemgetter(0)


def choose_start(nodes: Sequence[Candidate], prompt: Prompt) -> Candidate:
    """The least predicted TTFT, and least waste. Among near-equal ones that with the most of the
    prompt's blocks, then where its session belongs, then one that does not decode besides."""
    predicted = list(zip(costs_s(nodes, prompt, _AGAIN), nodes))
    least = min(time_s for time_s, _ in predicted)
    near_s = least + max(_NEAR_S, _NEAR_SHARE * least)
    near = [item for item in predicted if item[0] <= near_s]
    if len(near) > _FEW:
        cached = prompt.cached_on_each([node for _, node in near])
        usable = [usable_blocks(prompt.num_tokens, node.block_size) for _, node in near]
        near = _most(near, list(map(min, cached, usable)))
        if prompt.session is None:
            near = _least([item for item in near if item[1].role != "mixed"] or near)

    def rank(item: tuple[float, Candidate]) -> _Rank:
        time_s, node = item
        wants = 0 if prompt.session is None else weight(prompt.session, node.node_id)
        mixed = node.role == "mixed"
        load = node.decode_load if mixed else 0.0
        return -cached_blocks(node, prompt), -wants, mixed, time_s, load, node.node_id

    return min(near, key=rank)[1]


def choose_decode(nodes: Sequence[Candidate], prompt: Prompt, start: Candidate) -> Candidate:
    """The least loaded; among near-equal ones that which has the most of the prompt, if that is
    at least half of it, so that fewer bytes move, then one on the host where the prompt is
    computed, so that they move through its memory."""
    most = min([node.decode_load for node in nodes]) + _NEAR_LOAD
    near = [(node.decode_load, node) for node in nodes if node.decode_load <= most]
    if len(near) > _FEW:
        cached = prompt.cached_on_each([node for _, node in near])
        sizes = [node.block_size for _, node in near]
        much = [c if 2 * c * size >= prompt.num_tokens else 0 for c, size in zip(cached, sizes)]
        near = _most(near, much)
        near = _least([item for item in near if item[1].host == start.host] or near)

    def rank(item: tuple[float, Candidate]) -> tuple[int, bool, float, int, str]:
        load, node = item
        cached = prompt.cached_on(node)
        much = 2 * cached * node.block_size >= prompt.num_tokens
        away = node.host != start.host
        return -cached if much else 0, away, load, node.num_seqs, node.node_id

    return min(near, key=rank)[1]


# Of many near-equal nodes few are worth ranking: those that come first in what counts most.
def _most(items: list[_Item], counts: list[int]) -> list[_Item]:
    most = max(counts)
    return [item for item, count in zip(items, counts) if count == most]


def _least(items: list[_Item]) -> list[_Item]:
    least = min(items, key=_first)[0]
    return [item for item in items if item[0] == least]
