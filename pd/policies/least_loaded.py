"""Route by queues alone, wherever blocks lie: the least predicted work before this prompt."""

from __future__ import annotations

from collections.abc import Sequence

from pd.policies.candidate import Candidate, Prompt


def choose_start(nodes: Sequence[Candidate], prompt: Prompt) -> Candidate:
    """The shortest predicted wait; of equal ones one that does not decode besides."""
    return min(nodes, key=_wait)


def choose_decode(nodes: Sequence[Candidate], prompt: Prompt, start: Candidate) -> Candidate:
    return min(nodes, key=lambda node: (node.decode_load, node.num_seqs, node.node_id))


def _wait(node: Candidate) -> tuple[float, bool, float, str]:
    mixed = node.role == "mixed"
    return node.wait_s(), mixed, node.decode_load if mixed else 0.0, node.node_id
