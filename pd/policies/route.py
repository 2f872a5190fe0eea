"""Which nodes run a piece of work: those with the least predicted work before it.

A pure function of the nodes' last snapshots plus what was sent to them since (credit), so a
burst of arrivals between two snapshots spreads instead of piling onto one node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pd.types import NodeSnapshot, Role

# Before a node has run its first prefill nothing is known of its speed; then only the order
# of the estimates matters, and this makes them finite.
_DEFAULT_PREFILL_RATE = 1000.0
# What each running sequence adds to a mixed node's step, as a share of a prompt token's cost.
_DECODE_TOKEN_COST = 8.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as routing sees it. `credit_*` is what was sent to it after its snapshot."""

    node_id: str
    role: Role
    snapshot: NodeSnapshot
    max_num_seqs: int
    credit_tokens: int = 0
    credit_seqs: int = 0

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
    every prefill chunk has to share a step with.
    """
    found: dict[str, tuple[float, float, str]] = {}
    for node in nodes:
        rank = {
            "prefill": (node.prefill_wait_s, 0.0, node.node_id),
            "decode": (node.decode_load, float(node.num_seqs), node.node_id),
            "mixed": (mixed_wait_s(node), node.decode_load, node.node_id),
        }[node.role]
        if node.role not in found or rank < found[node.role]:
            found[node.role] = rank
    pair = "prefill" in found and "decode" in found
    if "mixed" in found and (not pair or found["mixed"][0] < found["prefill"][0]):
        return Placement(found["mixed"][2], found["mixed"][2])
    if pair:
        return Placement(found["prefill"][2], found["decode"][2])
    return None


def mixed_wait_s(node: Candidate) -> float:
    """Predicted time before a new prompt starts on a node that also decodes."""
    rate = node.snapshot.prefill_rate or _DEFAULT_PREFILL_RATE
    return node.prefill_wait_s + node.num_seqs * _DECODE_TOKEN_COST / rate
