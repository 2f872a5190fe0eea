"""Route a session, or else whatever begins alike, to one node: consistent hashing, with a bound
on how much more than the others it may have.

The bound is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads"
(2016): a node that has reached it is passed over, and the key's next node takes the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pd.policies.candidate import Candidate, Prompt
from pd.policies.spread import weight

_BOUND = 1.25  # times the mean load


def choose_start(nodes: Sequence[Candidate], prompt: Prompt) -> Candidate:
    """Load is prompts not yet computed, and on a mixed node the sequences it decodes."""
    return _choose(nodes, prompt.affinity, _num_requests)


def choose_decode(nodes: Sequence[Candidate], prompt: Prompt, start: Candidate) -> Candidate:
    return _choose(nodes, prompt.affinity, lambda node: node.num_seqs)


def _choose(nodes: Sequence[Candidate], key: int, load_of: Callable[[Candidate], int]) -> Candidate:
    loads = [load_of(node) for node in nodes]
    # The least loaded is always below it.
    bound = math.ceil(_BOUND * (sum(loads) + 1) / len(nodes))
    open_nodes = (node for node, load in zip(nodes, loads, strict=True) if load < bound)
    return max(open_nodes, key=lambda node: (weight(key, node.node_id), node.node_id))


def _num_requests(node: Candidate) -> int:
    return node.num_prompts + (node.snapshot.num_running if node.role == "mixed" else 0)
