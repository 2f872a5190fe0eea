"""Who is in the cell: nodes and gateways, their epochs, and who has gone silent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pd.messages import GatewayHello, NodeHello, PeerLost, Peers, Welcome
from pd.outbox import Kill, Outbox
from pd.policies.route import Candidate
from pd.types import NodeSnapshot, Peer


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


class Members:
    """Joining, leaving and falling silent. Every process gets an epoch that never repeats."""

    def __init__(self, outbox: Outbox, timeout_s: float) -> None:
        self.nodes: dict[str, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._last_epoch = 0

    def node_joins(self, hello: NodeHello, now: float) -> Node | None:
        """Welcome a node; returns the earlier process of that name, if it is now gone."""
        known = self.nodes.get(hello.node_id)
        if known is not None and known.hello.incarnation == hello.incarnation:
            self._welcome(known.id, hello.incarnation, known.epoch)
            return None
        lost = self.remove(hello.node_id, known.hello.incarnation) if known is not None else None
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
        lost = self.remove(hello.gateway_id, known.hello.incarnation) if known else None
        self._last_epoch += 1
        self.gateways[hello.gateway_id] = Gateway(hello, self._last_epoch, now)
        self._welcome(hello.gateway_id, hello.incarnation, self._last_epoch)
        self._announce()
        return lost if isinstance(lost, Gateway) else None

    def remove(self, member_id: str, incarnation: int) -> Node | Gateway | None:
        """This process is gone: everybody hears of it. None if it is not a member (any more)."""
        member = self.nodes.get(member_id) or self.gateways.get(member_id)
        if member is None or member.hello.incarnation != incarnation:
            return None
        self.nodes.pop(member_id, None)
        self.gateways.pop(member_id, None)
        for node_id in self.nodes:
            self._outbox.send(node_id, PeerLost(member_id, member.epoch))
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
        """Remove and return every process that has not been heard of for too long."""
        members: list[Node | Gateway] = [*self.nodes.values(), *self.gateways.values()]
        gone = [m for m in members if now - m.last_heard >= self._timeout_s]
        for member in gone:
            self.remove(member.id, member.hello.incarnation)
        return gone

    def missing(self) -> str:
        """What the cell lacks to serve, in words; empty when it can."""
        roles = {node.hello.role for node in self.nodes.values()}
        if "mixed" in roles or {"prefill", "decode"} <= roles:
            return ""
        if not roles:
            return "no node has joined yet"
        lacking = {"prefill", "decode"} - roles
        return f"no {' and no '.join(sorted(lacking))} node is up"

    def _welcome(self, member_id: str, incarnation: int, epoch: int) -> None:
        self._outbox.send(member_id, Welcome(member_id, incarnation, epoch))

    def _announce(self) -> None:
        nodes = [node.peer() for node in self.nodes.values()]
        peers = Peers((*nodes, *(gateway.peer() for gateway in self.gateways.values())))
        for member_id in (*self.nodes, *self.gateways):
            self._outbox.send(member_id, peers)
