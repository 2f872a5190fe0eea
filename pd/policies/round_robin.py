"""Route in turn, whatever the nodes have or do: to the one whose last prompt is longest ago."""

from __future__ import annotations

from collections.abc import Sequence

from pd.policies.candidate import Candidate, Prompt


def choose_start(nodes: Sequence[Candidate], prompt: Prompt) -> Candidate:
    return min(nodes, key=lambda node: (node.last_prefill, node.node_id))


def choose_decode(nodes: Sequence[Candidate], prompt: Prompt, start: Candidate) -> Candidate:
    return min(nodes, key=lambda node: (node.last_decode, node.node_id))
