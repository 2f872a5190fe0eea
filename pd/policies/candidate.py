"""What routing decides on: the nodes, the prompt, and where blocks of it lie. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pd.policies.costs import DEFAULT_PREFILL_RATE, Costs
from pd.policies.pace import Pace
from pd.types import SLO, NodeSnapshot, Role, Source

# What each running sequence adds to a mixed node's step, as a share of a prompt token's cost.
_DECODE_TOKEN_COST = 8.0


@dataclass(slots=True)
class Candidate:
    """A node as routing sees it. `credit_*` is what was sent to it after its snapshot; `last_*`
    grow with every prompt that was sent to it for that phase. `pace` is what is known of its
    steps, `ended_per_s` how many outputs end there.

    What follows from these is worked out once: every prompt asks it of every node. Nobody changes
    a candidate, which is not frozen only because that makes new ones dear.
    """

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
    host: str = ""  # where it runs: blocks move between two nodes of one host through its memory
    num_seqs: int = field(init=False)  # that decode here, or will
    num_prompts: int = field(init=False)  # not computed yet, those on the way here included
    waiting_tokens: int = field(init=False)  # of those prompts, to be computed
    queue: float = field(init=False)  # the same, with what decoding costs beside them
    # Share of what the node can hold, sequences or blocks, whichever is scarcer.
    decode_load: float = field(init=False)

    def __post_init__(self) -> None:
        snapshot = self.snapshot
        self.num_seqs = num_seqs = snapshot.num_running + snapshot.num_reserving + self.credit_seqs
        self.num_prompts = snapshot.num_waiting + self.credit_prompts
        self.queue = self.waiting_tokens = snapshot.waiting_tokens + self.credit_tokens
        if self.role != "prefill":
            # Where sequences decode every prefill chunk shares its step with them.
            self.queue += num_seqs * _DECODE_TOKEN_COST
        self.decode_load = max(
            num_seqs / max(1, self.max_num_seqs),
            1.0 - snapshot.free_blocks / (snapshot.num_blocks or 1),
        )

    @property
    def context(self) -> int:
        """Tokens of all those sequences so far."""
        snapshot = self.snapshot
        return snapshot.running_tokens + snapshot.reserving_tokens + self.credit_context

    def wait_s(self, default_rate: float = DEFAULT_PREFILL_RATE) -> float:
        """Predicted time before a new prompt starts here."""
        return self.queue / (self.snapshot.prefill_rate or default_rate)


class Fleet:
    """The candidates of a cell, by id and by what they do, and sums over all of them.

    `put` brings a node's newer state in, in constant time: its role and layout are as before.
    """

    __slots__ = ("nodes", "prefills", "mixed", "decodes", "kinds", "num_prompts", "_measured")

    def __init__(self, nodes: Iterable[Candidate] = ()) -> None:
        self.nodes: dict[str, Candidate] = {}
        self.prefills: dict[str, Candidate] = {}
        self.mixed: dict[str, Candidate] = {}
        self.decodes: dict[int, dict[str, Candidate]] = {}  # by layout
        self.kinds: set[tuple[int, int]] = set()  # pairs of layout and block size
        self.num_prompts = 0
        self._measured: dict[str, tuple[float, float, float]] = {}
        for node in nodes:
            self.put(node)

    def put(self, node: Candidate) -> None:
        node_id, snapshot = node.node_id, node.snapshot
        known = self.nodes.get(node_id)
        if known is None:
            self.kinds.add((node.layout, node.block_size))
        else:
            self.num_prompts -= known.num_prompts
        self.num_prompts += node.num_prompts
        self.nodes[node_id] = node
        if node.role == "decode":
            self.decodes.setdefault(node.layout, {})[node_id] = node
        elif node.role == "mixed":
            self.mixed[node_id] = node
        elif node.role == "prefill":
            self.prefills[node_id] = node
        self._measured[node_id] = (
            snapshot.prefill_rate, snapshot.fetch_s_per_block, snapshot.fetch_s_per_slow_block
        )  # fmt: skip

    @property
    def typical(self) -> Costs:
        """Of a node that has not measured its own."""
        return Costs.typical(self._measured.values())

    @property
    def measured(self) -> bool:
        """Whether any node has computed a prompt."""
        return any(rate > 0.0 for rate, _, _ in self._measured.values())


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
    faster than the targets of these allow. `mean_output` is how many tokens outputs have lately.
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
    mean_output: float | None = None

    @property
    def has_targets(self) -> bool:
        return self.slo.ttft_s is not None or self.slo.tpot_s is not None

    def cached_on_each(self, nodes: Sequence[Candidate]) -> list[int]:
        """`cached_on` for many nodes."""
        if len({node.layout for node in nodes}) > 1:
            return [self.cached_on(node) for node in nodes]
        get = self.blocks_for(nodes[0]).cached.get
        return [get(node.node_id, 0) for node in nodes]

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
