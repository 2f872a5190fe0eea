"""A process of the cell as the coordinator knows it: a node, or a gateway. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import get_args

from pd.messages import GatewayHello, NodeHello, UsePool
from pd.outbox import ANY_PROCESS, Kill
from pd.policies.breaker import Circuit
from pd.policies.candidate import Candidate
from pd.policies.lateness import Lateness
from pd.policies.pace import Pace
from pd.policies.pools import Site
from pd.types import NodeSnapshot, Peer, Role

NO_POOL = UsePool("", 0)
EMPTY_S = 1.0  # for which a node has to be idle to be empty: blocks it sent last have arrived


@dataclass(frozen=True, slots=True)
class Credit:
    """Work on its way to a node: prompts, their tokens to compute, sequences to decode and what
    context these have."""

    prompts: int = 0
    tokens: int = 0
    seqs: int = 0
    context: int = 0


@dataclass(slots=True)
class Found:
    """Prompt tokens of the work sent to a node, and where those with KV were when it was sent:
    there itself, on another node, in a pool's memory, on a pool's disk."""

    routed_tokens: int = 0
    found_local_tokens: int = 0
    found_remote_tokens: int = 0
    found_dram_tokens: int = 0
    found_disk_tokens: int = 0


@dataclass(slots=True)
class Leaving:
    """A node that gets no more work because its process is to end. What runs there is moved at
    `move_at`; `idle_since` is when it last began to have nothing to do."""

    move_at: float
    idle_since: float | None = None


@dataclass(slots=True)
class Node:
    """A node process. `hello` is what it came with, but for a role that it was given since;
    `credit` is the work sent to it that its last snapshot does not show
    yet, by transfer id; `last_*` the newest transfer that it was sent for either phase; `pool`
    what it was told to use, None where that may not have reached it."""

    hello: NodeHello
    epoch: int
    last_heard: float
    snapshot: NodeSnapshot
    credit: dict[int, Credit] = field(default_factory=dict)
    last_prefill: int = 0
    last_decode: int = 0
    found: Found = field(default_factory=Found)
    pool: UsePool | None = NO_POOL
    pace: Pace = field(default_factory=Pace)
    lateness: Lateness = field(default_factory=Lateness)
    former: Role | None = None  # its role before a change that is under way
    leaving: Leaving | None = None
    circuit: Circuit = Circuit.CLOSED  # as `pd.health` has it
    _candidate: Candidate | None = None
    _outdated: dict[str, None] | None = None  # where it notes that its candidate is, under its id

    @property
    def id(self) -> str:
        return self.hello.node_id

    @property
    def serves(self) -> bool:
        """Whether requests run here; a pool only keeps blocks."""
        return self.hello.role != "pool"

    @property
    def state(self) -> str:
        """As `pd status` shows it."""
        if self.leaving is not None:
            idle, heard = self.leaving.idle_since, self.last_heard
            return "drained" if idle is not None and heard - idle >= EMPTY_S else "leaving"
        if self.circuit is not Circuit.CLOSED:
            return str(self.circuit.value)
        return "ready" if self.settled else "changing"

    def peer(self) -> Peer:
        return Peer(self.id, self.epoch, self.hello.endpoints)

    @property
    def incarnation(self) -> int:
        return self.hello.incarnation

    def kill(self, reason: str) -> Kill:
        return Kill(self.id, self.incarnation, reason)

    def site(self) -> Site:
        return Site(self.id, self.hello.host, self.hello.layout)

    def charge(self, transfer_id: int, credit: Credit) -> None:
        """This work was sent here."""
        self.credit[transfer_id] = credit
        if credit.prompts:
            self.last_prefill = transfer_id
        if credit.seqs:
            self.last_decode = transfer_id
        self._changed()

    def discharge(self, transfer_id: int) -> None:
        """It did not arrive."""
        self.credit.pop(transfer_id, None)
        self._changed()

    def take_role(self, role: Role) -> None:
        """Begin to change, or go back."""
        old = self.hello.role
        self.former = None if self.former == role else self.former or old
        self.hello = replace(self.hello, role=role)
        self._changed()

    @property
    def settled(self) -> bool:
        """No change of role is under way: what it did for the former one has ended or moved."""
        return self.former is None

    def _has_changed(self) -> bool:
        role, snapshot = self.hello.role, self.snapshot
        if role == "prefill":
            return snapshot.role == role and not (snapshot.num_running + snapshot.num_reserving)
        return snapshot.role == role and not (role == "decode" and snapshot.num_waiting)

    def take_snapshot(self, snapshot: NodeSnapshot) -> None:
        self.snapshot = snapshot
        self.pace.observe(snapshot)
        if self.former is not None and self._has_changed():
            self.former = None
        for transfer_id in [t for t in self.credit if t <= snapshot.last_transfer_id]:
            del self.credit[transfer_id]
        if self.leaving is not None:
            if self._has_work():
                self.leaving.idle_since = None
            elif self.leaving.idle_since is None:
                self.leaving.idle_since = self.last_heard
        self._changed()

    def _has_work(self) -> bool:
        snapshot = self.snapshot
        return bool(
            self.credit or snapshot.num_waiting or snapshot.num_running or snapshot.num_reserving
        )

    def _changed(self) -> None:
        self._candidate = None
        if self._outdated is not None:
            self._outdated[self.id] = None

    def candidate(self) -> Candidate:
        """How routing sees it now."""
        if self._candidate is None:
            hello, credits = self.hello, self.credit.values()
            self._candidate = Candidate(
                self.id, hello.role, self.snapshot, hello.max_num_seqs,
                credit_prompts=sum(credit.prompts for credit in credits),
                credit_tokens=sum(credit.tokens for credit in credits),
                credit_seqs=sum(credit.seqs for credit in credits),
                layout=hello.layout, block_size=hello.block_size,
                last_prefill=self.last_prefill, last_decode=self.last_decode,
                credit_context=sum(credit.context for credit in credits),
                pace=self.pace, ended_per_s=self.pace.ended.per_s(self.last_heard),
                host=hello.host,
            )  # fmt: skip
        return self._candidate

    def describe(self, now: float) -> Mapping[str, str | int | float | bool]:
        """One row of `pd status`: plain values only."""
        row: dict[str, str | int | float | bool] = asdict(self.snapshot)
        hello = self.hello
        row.update(
            id=self.id, epoch=self.epoch, role=hello.role, pid=hello.pid, host=hello.host,
            device=hello.device, state=self.state,
            block_size=hello.block_size, max_num_seqs=hello.max_num_seqs,
            silent_s=round(now - self.last_heard, 3),
        )  # fmt: skip
        if self.serves:
            row.update(asdict(self.found), pool="" if self.pool is None else self.pool.id)
        return row


@dataclass(slots=True)
class Gateway:
    """A gateway process."""

    hello: GatewayHello
    epoch: int
    last_heard: float

    @property
    def id(self) -> str:
        return self.hello.gateway_id

    def peer(self) -> Peer:
        return Peer(self.id, self.epoch, self.hello.endpoints)

    @property
    def incarnation(self) -> int:
        return self.hello.incarnation

    def kill(self, reason: str) -> Kill:
        return Kill(self.id, self.incarnation, reason)


@dataclass(slots=True)
class Absent:
    """A process that members know of, and that a coordinator which was started anew has yet to
    hear of. Whether it is a node or a gateway is not known."""

    known: Peer
    last_heard: float

    @property
    def id(self) -> str:
        return self.known.id

    @property
    def epoch(self) -> int:
        return self.known.epoch

    @property
    def incarnation(self) -> int:
        return ANY_PROCESS

    def peer(self) -> Peer:
        return self.known

    def kill(self, reason: str) -> Kill:
        return Kill(self.id, ANY_PROCESS, reason)


Member = Node | Gateway | Absent


def in_order(node: Node) -> tuple[int, int, str]:
    """Where a node stands in a list of them: not where its start happened to end."""
    return get_args(Role).index(node.hello.role), len(node.id), node.id
