"""Who is in the cell: nodes and gateways, their epochs, and who has gone silent. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pd.messages import GatewayHello, NodeHello, PeerLost, Peers, Welcome
from pd.outbox import Kill, Outbox
from pd.policies.route import Candidate
from pd.types import NodeSnapshot, Peer

_REMEMBERED = 1024  # dead processes, whose late hellos are not to be believed


@dataclass(slots=True)
class Node:
    """A node process. `credit` is the work sent to it that its last snapshot does not show
    yet: transfer id to (prompt tokens, sequences)."""

    hello: NodeHello
    epoch: int
    last_heard: float
    snapshot: NodeSnapshot
    credit: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.hello.node_id

    def peer(self) -> Peer:
        return Peer(self.id, self.epoch, self.hello.endpoints)

    def kill(self, reason: str) -> Kill:
        return Kill(self.id, self.hello.incarnation, reason)

    def candidate(self) -> Candidate:
        return Candidate(
            self.id,
            self.hello.role,
            self.snapshot,
            self.hello.max_num_seqs,
            sum(tokens for tokens, _ in self.credit.values()),
            sum(seqs for _, seqs in self.credit.values()),
            self.hello.layout,
        )

    def describe(self, now: float) -> Mapping[str, str | int | float | bool]:
        """One row of `pd status`: plain values only."""
        row: dict[str, str | int | float | bool] = asdict(self.snapshot)
        hello = self.hello
        row.update(
            id=self.id, epoch=self.epoch, role=hello.role, pid=hello.pid, host=hello.host,
            device=hello.device, state="ready", block_size=hello.block_size,
            max_num_seqs=hello.max_num_seqs, silent_s=round(now - self.last_heard, 3),
        )  # fmt: skip
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

    def kill(self, reason: str) -> Kill:
        return Kill(self.id, self.hello.incarnation, reason)


@dataclass(frozen=True, slots=True)
class Condemned:
    """A silent process that is to be ended. Until that is known it may wake up and write, so
    its peers are only told at `until`, by when it can be taken for unreachable."""

    member: Node | Gateway
    until: float


class Members:
    """Joining, leaving and falling silent. Every process gets an epoch that never repeats."""

    def __init__(self, outbox: Outbox, timeout_s: float) -> None:
        self.nodes: dict[str, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._last_epoch = 0
        self._condemned: dict[str, Condemned] = {}
        self._dead: deque[tuple[str, int]] = deque(maxlen=_REMEMBERED)
        self._last_check = float("-inf")

    def node_joins(self, hello: NodeHello, now: float) -> Node | None:
        """Welcome a node; returns the earlier process of that name, if it is now gone."""
        known = self.nodes.get(hello.node_id)
        if known is not None and known.hello.incarnation == hello.incarnation:
            self._welcome(known.id, hello.incarnation, known.epoch)
            return None
        if (hello.node_id, hello.incarnation) in self._dead:
            return None
        lost = self._replace(known, hello.node_id)
        self._last_epoch += 1
        empty = NodeSnapshot(
            hello.node_id, hello.role, self._last_epoch,
            num_blocks=hello.num_blocks, free_blocks=hello.num_blocks,
        )  # fmt: skip
        self.nodes[hello.node_id] = Node(hello, self._last_epoch, now, empty)
        self._welcome(hello.node_id, hello.incarnation, self._last_epoch)
        self._announce()
        return lost if isinstance(lost, Node) else None

    def gateway_joins(self, hello: GatewayHello, now: float) -> Gateway | None:
        """Welcome a gateway; returns the earlier process of that name, if it is now gone."""
        known = self.gateways.get(hello.gateway_id)
        if known is not None and known.hello.incarnation == hello.incarnation:
            self._welcome(known.id, hello.incarnation, known.epoch)
            return None
        if (hello.gateway_id, hello.incarnation) in self._dead:
            return None
        lost = self._replace(known, hello.gateway_id)
        self._last_epoch += 1
        self.gateways[hello.gateway_id] = Gateway(hello, self._last_epoch, now)
        self._welcome(hello.gateway_id, hello.incarnation, self._last_epoch)
        self._announce()
        return lost if isinstance(lost, Gateway) else None

    def remove(self, member_id: str, incarnation: int) -> Node | Gateway | None:
        """This process is gone: everybody hears of it. None if it is not a member (any more)."""
        self._dead.append((member_id, incarnation))
        condemned = self._condemned.get(member_id)
        if condemned is not None and condemned.member.hello.incarnation == incarnation:
            self._bury(condemned.member)
            return None
        member = self.nodes.get(member_id) or self.gateways.get(member_id)
        if member is None or member.hello.incarnation != incarnation:
            return None
        self._leave(member)
        self._bury(member)
        self._announce()
        return member

    def heard_of(self, sender: str, now: float) -> None:
        member = self.nodes.get(sender) or self.gateways.get(sender)
        if member is not None:
            member.last_heard = now

    def on_snapshot(self, sender: str, snapshot: NodeSnapshot) -> None:
        node = self.nodes.get(sender)
        if node is None:
            return
        node.snapshot = snapshot
        for transfer_id in [t for t in node.credit if t <= snapshot.last_transfer_id]:
            del node.credit[transfer_id]

    def silent(self, now: float) -> list[Node | Gateway]:
        """Condemn and return every process that has not been heard of for too long.

        They are no members any more. The caller has them ended; `remove` tells their peers.
        """
        members: list[Node | Gateway] = [*self.nodes.values(), *self.gateways.values()]
        if now - self._last_check >= self._timeout_s / 2:
            # It is this process that was away: what the others said meanwhile is yet to be read.
            for member in members:
                member.last_heard = now
        self._last_check = now
        for condemned in list(self._condemned.values()):
            if now >= condemned.until:
                self._bury(condemned.member)
        gone = [m for m in members if now - m.last_heard >= self._timeout_s]
        for member in gone:
            self._leave(member)
            self._condemned[member.id] = Condemned(member, now + self._timeout_s)
        if gone:
            self._announce()
        return gone

    def missing(self) -> str:
        """What the cell lacks to serve, in words; empty when it can."""
        layouts: dict[str, set[int]] = {}
        for node in self.nodes.values():
            layouts.setdefault(node.hello.role, set()).add(node.hello.layout)
        roles = layouts.keys()
        if "mixed" in roles:
            return ""
        if not roles:
            return "no node has joined yet"
        if {"prefill", "decode"} <= roles:
            if layouts["prefill"] & layouts["decode"]:
                return ""
            return (
                "no prefill and decode node have the same KV layout; "
                "start them with the same model, dtype and block size"
            )
        lacking = {"prefill", "decode"} - roles
        return f"no {' and no '.join(sorted(lacking))} node is up"

    def _replace(self, known: Node | Gateway | None, member_id: str) -> Node | Gateway | None:
        """A process joins under this id, so what was there before is gone."""
        condemned = self._condemned.get(member_id)
        if condemned is not None:
            self._bury(condemned.member)
        return None if known is None else self.remove(member_id, known.hello.incarnation)

    def _leave(self, member: Node | Gateway) -> None:
        self.nodes.pop(member.id, None)
        self.gateways.pop(member.id, None)

    def _bury(self, member: Node | Gateway) -> None:
        """It is known to be gone, and with it whatever it was still writing."""
        self._condemned.pop(member.id, None)
        for node_id in self.nodes:
            self._outbox.send(node_id, PeerLost(member.id, member.epoch))

    def _welcome(self, member_id: str, incarnation: int, epoch: int) -> None:
        self._outbox.send(member_id, Welcome(member_id, incarnation, epoch))

    def _announce(self) -> None:
        nodes = [node.peer() for node in self.nodes.values()]
        peers = Peers((*nodes, *(gateway.peer() for gateway in self.gateways.values())))
        for member_id in (*self.nodes, *self.gateways):
            self._outbox.send(member_id, peers)
