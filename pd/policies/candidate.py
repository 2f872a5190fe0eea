"""What routing decides on: the nodes, the prompt, and where blocks of it lie. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pd.policies.costs import DEFAULT_PREFILL_RATE, Costs
from pd.policies.pace import Pace
from pd.types import SLO, NodeSnapshot, Role, Source

# What each running sequence adds to a mixed node's step, as a share of a prompt token's cost.
_DECODE_TOKEN_COST = 8.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as routing sees it. `credit_*` is what was sent to it after its snapshot; `last_*`
    grow with every prompt that was sent to it for that phase. `pace` is what is known of its
    steps, `ended_per_s` how many outputs end there."""

    node_id: str
    role: Role
    snapshot: NodeSnapshot
    max_num_seqs: int
    credit_prompts: int = 0
    credit_tokens: int = 0
    credit_seqs: int = 0
    layout: int = 0
    block_size: int = 16
    last_prefill: int = 0
    last_decode: int = 0
    credit_context: int = 0
    pace: Pace | None = None
    ended_per_s: float = 0.0

    @property
    def context(self) -> int:
        """Tokens of all those sequences so far."""
        snapshot = self.snapshot
        return snapshot.running_tokens + snapshot.reserving_tokens + self.credit_context

    @property
    def num_seqs(self) -> int:
        return self.snapshot.num_running + self.snapshot.num_reserving + self.credit_seqs

    @property
    def num_prompts(self) -> int:
        """Prompts that are not computed yet, those on the way here included."""
        return self.snapshot.num_waiting + self.credit_prompts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of those prompts that are to be computed."""
        return self.snapshot.waiting_tokens + self.credit_tokens

    @property
    def decode_load(self) -> float:
        """Share of what the node can hold, sequences or blocks, whichever is scarcer."""
        seqs = self.num_seqs / max(1, self.max_num_seqs)
        blocks = self.snapshot.num_blocks or 1
        return max(seqs, 1.0 - self.snapshot.free_blocks / blocks)

    def wait_s(self, default_rate: float = DEFAULT_PREFILL_RATE) -> float:
        """Predicted time before a new prompt starts here.

        Where sequences decode every prefill chunk shares its step with them.
        """
        tokens: float = self.waiting_tokens
        if self.role != "prefill":
            tokens += self.num_seqs * _DECODE_TOKEN_COST
        return tokens / (self.snapshot.prefill_rate or default_rate)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where leading blocks of a prompt lie, in the nodes of one KV layout.

    `cached` has for every node how many it holds, or was promised by prompts in flight;
    `coming` is the most that any was promised. `sources` are the holders that a fetch saves most
    from, first the best.
    """

    cached: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    coming: int = 0


NO_BLOCKS = Blocks()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be placed.

    `session` is a hash of the session it belongs to, or None; `affinity` that or else one of how
    the prompt begins. `blocks` is by layout, since keys are. `typical` are the costs of a node
    that has not measured its own; `measured` whether any has. `num_seqs` outputs of up to
    `max_tokens` each will decode. `paced` says that nodes compute prompts beside their outputs no
    faster than the targets of these allow.
    """

    num_tokens: int
    session: int | None = None
    affinity: int = 0
    blocks: Mapping[int, Blocks] = field(default_factory=dict)
    typical: Costs = field(default_factory=Costs)
    measured: bool = True
    slo: SLO = SLO()  # noqa: RUF009
    num_seqs: int = 1
    max_tokens: int = 0
    paced: bool = False

    @property
    def has_targets(self) -> bool:
        return self.slo.ttft_s is not None or self.slo.tpot_s is not None

    def blocks_for(self, node: Candidate) -> Blocks:
        return self.blocks.get(node.layout, NO_BLOCKS)

    def cached_on(self, node: Candidate) -> int:
        """Leading blocks that this node need not be given."""
        return self.blocks_for(node).cached.get(node.node_id, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """The node that runs a prompt and the one that decodes it: a mixed node does both."""

    prefill: str
    decode: str
