"""Which nodes run a piece of work: those with the least predicted work before it.

A pure function of the nodes' last snapshots plus what was sent to them since (credit), so a
burst of arrivals between two snapshots spreads instead of piling onto one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pd.types import NodeSnapshot, Role

# Before a node has run its first prefill nothing is known of its speed; then only the order
# of the estimates matters, and this makes them finite.
_DEFAULT_PREFILL_RATE = 1000.0
# What each running sequence adds to a mixed node's step, as a share of a prompt token's cost.
_DECODE_TOKEN_COST = 8.0


Rank = tuple[float, float, str]  # of a node for its role; smaller is better


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as routing sees it. `credit_*` is what was sent to it after its snapshot."""

    node_id: str
    role: Role
    snapshot: NodeSnapshot
    max_num_seqs: int
    credit_tokens: int = 0
    credit_seqs: int = 0
    layout: int = 0

    @property
    def prefill_wait_s(self) -> float:
        """Predicted time before a new prompt starts here."""
        rate = self.snapshot.prefill_rate or _DEFAULT_PREFILL_RATE
        return (self.snapshot.waiting_tokens + self.credit_tokens) / rate

    @property
    def num_seqs(self) -> int:
        return self.snapshot.num_running + self.snapshot.num_reserving + self.credit_seqs

    @property
    def decode_load(self) -> float:
        """Share of what the node can hold, sequences or blocks, whichever is scarcer."""
        seqs = self.num_seqs / max(1, self.max_num_seqs)
        blocks = self.snapshot.num_blocks or 1
        return max(seqs, 1.0 - self.snapshot.free_blocks / blocks)


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: str
    decode: str


def route(nodes: Iterable[Candidate]) -> Placement | None:
    """The pair (or the one mixed node) with the least work before this prompt, or None.

    A prompt that goes to a mixed node stays there; its cost counts the decode batch that
    every prefill chunk has to share a step with. The nodes of a pair have the same KV layout.
    """
    prefills: dict[int, Rank] = {}  # the best of each layout
    decodes: dict[int, Rank] = {}
    mixed: Rank | None = None
    for node in nodes:
        rank = _RANKS[node.role](node)
        if node.role == "mixed":
            mixed = rank if mixed is None else min(mixed, rank)
        else:
            best = prefills if node.role == "prefill" else decodes
            best[node.layout] = min(best.get(node.layout, rank), rank)
    pair = min(((prefills[x], decodes[x]) for x in prefills.keys() & decodes), default=None)
    if mixed is not None and (pair is None or mixed[0] < pair[0][0]):
        return Placement(mixed[2], mixed[2])
    return None if pair is None else Placement(pair[0][2], pair[1][2])


def mixed_wait_s(node: Candidate) -> float:
    """Predicted time before a new prompt starts on a node that also decodes."""
    rate = node.snapshot.prefill_rate or _DEFAULT_PREFILL_RATE
    return node.prefill_wait_s + node.num_seqs * _DECODE_TOKEN_COST / rate


_RANKS: dict[Role, Callable[[Candidate], Rank]] = {
    "prefill": lambda node: (node.prefill_wait_s, 0.0, node.node_id),
    "decode": lambda node: (node.decode_load, float(node.num_seqs), node.node_id),
    "mixed": lambda node: (mixed_wait_s(node), node.decode_load, node.node_id),
}
