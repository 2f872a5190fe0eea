"""Who is in the cell: nodes and gateways, their epochs, and who has gone silent. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pd.holders import Holders
from pd.member import NO_POOL, Absent, Gateway, Leaving, Member, Node
from pd.messages import (
    COORDINATOR,
    GatewayHello,
    NodeHello,
    PeerLost,
    Peers,
    UsePool,
    Welcome,
)
from pd.outbox import ANY_PROCESS, Kill, Outbox
from pd.policies.candidate import Fleet
from pd.policies.fit import fits, kind_of
from pd.policies.lateness import Lateness
from pd.policies.pace import Pace
from pd.policies.pools import assign_pools
from pd.role_orders import CONFIRM_S, RoleOrders
from pd.types import NodeSnapshot, Peer, Role, Work

_END_AGAIN_S = 10.0  # an end may take that long to get through, after a link was cut
_REMEMBERED = 1024  # dead processes, whose late hellos are not to be believed


@dataclass(frozen=True, slots=True)
class Condemned:
    """A silent process that is to be ended. Until that is known it may wake up and write, so
    its peers are only told at `until`, by when it can be taken for unreachable."""

    member: Member
    until: float


class Members:
    """Joining, leaving and falling silent. Every process gets an epoch that never repeats.

    A coordinator that was started anew begins with nobody. Processes that were welcomed before
    keep their epochs and say whom they know; those are `absent` until they say hello themselves,
    are replaced, or have been silent for too long.
    """

    def __init__(
        self, outbox: Outbox, timeout_s: float, holders: Holders | None = None, epoch: int = 1
    ) -> None:
        """`holders` hears of every node that joins or leaves; `epoch` is the coordinator's own,
        and greater than all that those before it gave to anybody."""
        self.nodes: dict[str, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self.absent: dict[str, Absent] = {}
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._holders = holders or Holders(outbox)
        self._epoch = epoch
        self._last_epoch = epoch - 1
        self._condemned: dict[str, Condemned] = {}
        self._dead: deque[tuple[str, int]] = deque(maxlen=_REMEMBERED)
        self._buried: dict[str, int] = {}  # by id, the last epoch of a process that is gone
        self._ended: dict[str, tuple[int, float]] = {}  # by id, the last to be ended, and when
        self._last_check = float("-inf")
        self._heard_since = float("-inf")  # nobody was last heard of before that
        self._joined = False  # somebody did, and the others have not been told
        self._roles = RoleOrders(outbox)
        self._pools_to_tell = False
        self._fleet: Fleet | None = None  # None once another node serves, or in another role
        self._kinds: tuple[NodeHello, ...] = ()  # one of every kind of node that is in it
        self._outdated: dict[str, None] = {}  # nodes that changed since they were put into it

    def knows(self, hello: NodeHello | GatewayHello) -> bool:
        """Whether this very process is a member."""
        known = self._present(_id_of(hello))
        return known is not None and known.incarnation == hello.incarnation

    def node_joins(self, hello: NodeHello, now: float) -> Member | None:
        """Welcome a node; returns the earlier process of that name, if it is now gone."""
        if self._welcome_again(hello) or self._refuse(hello, now):
            return None
        lost = self._replace(hello)
        if hello.epoch and hello.role != "pool":
            self._roles.has(hello.node_id, hello.role)  # also of a process after this one
        elif role := self._roles.role(hello.node_id):  # what it was before it was started anew
            hello = replace(hello, role=role)
        epoch = self._epoch_for(hello)
        empty = NodeSnapshot(
            hello.node_id, hello.role, epoch,
            num_blocks=hello.num_blocks, free_blocks=hello.num_blocks,
            prefill_rate=hello.prefill_rate,
        )  # fmt: skip
        self._fleet = None
        self.nodes[hello.node_id] = Node(
            hello, epoch, now, empty, pace=Pace(hello.steps), _outdated=self._outdated
        )
        self._holders.join(hello.node_id)
        self._welcome(hello.node_id, hello.incarnation, epoch)
        if hello.epoch:
            self._holders.ask(hello.node_id, now)
        else:
            self._roles.tell(hello.node_id, now)
        self._joined = True
        return lost

    def gateway_joins(self, hello: GatewayHello, now: float) -> Member | None:
        """Welcome a gateway; returns the earlier process of that name, if it is now gone."""
        if self._welcome_again(hello) or self._refuse(hello, now):
            return None
        lost = self._replace(hello)
        epoch = self._epoch_for(hello)
        self.gateways[hello.gateway_id] = Gateway(hello, epoch, now)
        self._welcome(hello.gateway_id, hello.incarnation, epoch)
        self._joined = True
        return lost

    def learn(self, member_id: str, peers: Iterable[Peer], now: float) -> list[Member]:
        """A process that just joined was a member before, and these are the others it knew of
        then. Returns who turned out to be gone."""
        lost: list[Member] = []
        for peer in peers:
            if peer.id in (member_id, COORDINATOR):
                continue
            condemned = self._condemned.get(peer.id)
            if condemned is not None and peer.epoch <= condemned.member.epoch:
                continue  # it is told of that end with the others
            known = self._present(peer.id) or self.absent.get(peer.id)
            newest = max(self._buried.get(peer.id, 0), known.epoch if known is not None else 0)
            if peer.epoch < newest or peer.epoch == self._buried.get(peer.id):
                self._outbox.send(member_id, PeerLost(peer.id, peer.epoch))
            elif peer.epoch > newest:
                if known is not None:  # then that is a process which was replaced before
                    self._outbox.add(known.kill("was replaced by a later process"))
                    self._leave(known)
                    self._bury(known)
                    lost.append(known)
                self.absent[peer.id] = Absent(peer, now)
                self._last_epoch = max(self._last_epoch, peer.epoch)
        self._joined = True
        return lost

    def announce_joined(self) -> None:
        """Tell everybody who is there, if somebody joined since that was told: for many that join
        together once, since it is as many messages as there are members, each as long."""
        if self._joined:
            self._announce()

    def is_gone(self, member_id: str, epoch: int) -> bool:
        """Whether the process of this id and epoch is no member, and will not be one again."""
        known = self._present(member_id) or self.absent.get(member_id)
        return known is None or known.epoch != epoch

    def remove(self, member_id: str, incarnation: int) -> Member | None:
        """This process is gone: everybody hears of it. None if it is not a member (any more)."""
        self._dead.append((member_id, incarnation))
        condemned = self._condemned.get(member_id)
        if condemned is not None and condemned.member.incarnation in (incarnation, ANY_PROCESS):
            self._bury(condemned.member)
            return None
        # Of the processes behind an id only the last can be alive: an absent one was that, or
        # came before it.
        member: Member | None = self._present(member_id) or self.absent.get(member_id)
        if member is None or member.incarnation not in (incarnation, ANY_PROCESS):
            return None
        if isinstance(member, Node) and member.leaving is not None:
            self._roles.forget(member_id)
        self._leave(member)
        self._bury(member)
        self._announce()
        return member

    def heard_of(self, sender: str, now: float) -> None:
        member = self._present(sender)
        if member is not None:
            member.last_heard = now

    def on_snapshot(self, sender: str, snapshot: NodeSnapshot) -> None:
        node = self.nodes.get(sender)
        if node is None:
            return
        node.take_snapshot(snapshot)
        if snapshot.role == node.hello.role:
            self._roles.confirmed(sender)

    def silent(self, now: float) -> list[Member]:
        """Condemn and return every process that has not been heard of for too long.

        They are no members any more. The caller has them ended; `remove` tells their peers.
        """
        if now - self._last_check >= self._timeout_s / 2:
            # It is this process that was away: what the others said meanwhile is yet to be read.
            for member in self._everybody():
                member.last_heard = now
        self._last_check = now
        for condemned in list(self._condemned.values()):
            if now >= condemned.until:
                self._bury(condemned.member)
        if now - self._heard_since < self._timeout_s:
            return []
        members = self._everybody()
        gone = [m for m in members if now - m.last_heard >= self._timeout_s]
        for member in gone:
            self._leave(member)
            self._condemned[member.id] = Condemned(member, now + self._timeout_s)
            self._ended[member.id] = member.incarnation, now  # by the caller
        if gone:
            self._announce()
        # Who joins later is heard of later.
        self._heard_since = min((m.last_heard for m in self._everybody()), default=now)
        return gone

    def missing(self, roles_if: Mapping[str, Role] | None = None) -> str:
        """What the cell lacks to serve, in words, or would lack if some nodes had these roles;
        empty when it can."""
        layouts: dict[str, set[int]] = {}
        roles_if = roles_if or {}
        for node in self.serving:
            role = roles_if.get(node.id, node.hello.role)
            layouts.setdefault(role, set()).add(node.hello.layout)
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

    def change_role(
        self, node_id: str, role: Role, *, migrate: bool, now: float, end_s: float = 0.0
    ) -> str:
        """Give a node another role, from now on and after it is started anew; returns why not.

        With `migrate` what the new role would not be sent goes on elsewhere: outputs that run
        where none shall run only after `end_s`.
        """
        node = self.nodes.get(node_id)
        if node is None or not node.serves or node.leaving is not None:
            known = ", ".join(sorted(node.id for node in self.serving)) or "none"
            return f"there is no node {node_id!r} that serves; those that do: {known}"
        if role not in ("prefill", "decode", "mixed"):
            return f"a node that serves cannot become {role!r}: prefill, decode or mixed"
        old = node.hello.role
        if old == role:
            return ""
        node.take_role(role)
        self._fleet = None
        # Whatever else comes back later, with the nodes that are up now the cell can serve then.
        if lacking := self.missing():
            node.take_role(old)
            return f"{node_id} has to stay a {old} node: then {lacking}"
        node.lateness = Lateness()  # what was predicted of it was for its former role
        self._roles.give(node_id, role, migrate, end_s, now)
        return ""

    def drain(self, node_id: str, move_s: float, now: float) -> str:
        """No more work for a node, and in `move_s` what it has is to be moved; returns why not."""
        node = self.nodes.get(node_id)
        if node is None:
            return f"there is no node {node_id!r}; those there are: {', '.join(sorted(self.nodes))}"
        if node.leaving is not None:
            return ""
        node.leaving = Leaving(now + move_s)
        self._fleet = None
        if lacking := self.missing():
            node.leaving = None
            return f"{node_id} has to stay: without it {lacking}"
        self._tell_pools()
        return ""

    def to_empty(self, now: float) -> list[Node]:
        """Nodes that have had their time to end what they do. Asked every `CONFIRM_S`: work that
        was placed again may fail to leave."""
        due = []
        for node in self.nodes.values():
            if node.leaving is not None and now >= node.leaving.move_at:
                node.leaving.move_at = now + CONFIRM_S
                if node.leaving.idle_since is None:
                    due.append(node)
        return due

    @property
    def serving(self) -> list[Node]:
        """The nodes that requests are sent to: all but the pools and those that are to end."""
        return [node for node in self.nodes.values() if node.serves and node.leaving is None]

    @property
    def fleet(self) -> Fleet:
        """These nodes as routing sees them now."""
        if self._fleet is None:
            serving = self.serving
            self._fleet = Fleet(node.candidate() for node in serving)
            kinds = {kind_of(node.hello): node.hello for node in serving}
            self._kinds = tuple(kinds.values())
        else:
            for node_id in self._outdated:
                if node_id in self._fleet.nodes:
                    self._fleet.put(self.nodes[node_id].candidate())
        self._outdated.clear()
        return self._fleet

    def fleet_for(self, work: Work, *, without: Collection[str] = ()) -> Fleet:
        """Those that can hold this work, `without` some."""
        fleet = self.fleet
        if not without and all(
            fits(hello, work, prefill=hello.role == "prefill") for hello in self._kinds
        ):
            return fleet
        return Fleet(
            node.candidate()
            for node in self.serving
            if node.id not in without
            if fits(node.hello, work, prefill=node.hello.role == "prefill")
        )

    def pool_not_told(self, node_id: str) -> None:
        """A node could not be told which pool to use: `tick` tries again."""
        node = self.nodes.get(node_id)
        if node is not None:
            node.pool = None
            self._pools_to_tell = True

    def tick(self, now: float) -> None:
        if self._pools_to_tell:
            self._tell_pools()
        self._roles.tick(self.nodes, now)

    # -------------------------------------------------------------- inside
    def _present(self, member_id: str) -> Node | Gateway | None:
        return self.nodes.get(member_id) or self.gateways.get(member_id)

    def _everybody(self) -> list[Member]:
        return [*self.nodes.values(), *self.gateways.values(), *self.absent.values()]

    def _welcome_again(self, hello: NodeHello | GatewayHello) -> bool:
        """Answer a member whose welcome may have been lost; False if it is none."""
        known = self._present(_id_of(hello))
        if known is None or known.incarnation != hello.incarnation:
            return False
        self._welcome(known.id, hello.incarnation, known.epoch)
        return True

    def _refuse(self, hello: NodeHello | GatewayHello, now: float) -> bool:
        """Whether this is a process that was given up, or replaced: it is to end."""
        member_id, epoch = _id_of(hello), hello.epoch
        if epoch:
            known = self._present(member_id) or self.absent.get(member_id)
            later = known is not None and known.epoch > epoch
            condemned = self._condemned.get(member_id)
            ends = condemned is not None and condemned.member.epoch >= epoch
            if later or ends or epoch <= self._buried.get(member_id, 0):
                self._end(member_id, hello.incarnation, now)
                return True
        if (member_id, hello.incarnation) in self._dead:
            return True
        # A hello may come late: it is one of a process whose successor is here already. Where
        # hosts' clocks disagree it is the successor's, who asks again when this one is gone.
        present = self._present(member_id)
        return not epoch and present is not None and hello.incarnation < present.incarnation

    def _end(self, member_id: str, incarnation: int, now: float) -> None:
        """End it, unless that was asked for just now: it says hello until it is gone, and an end
        that comes late would be its successor's."""
        last, since = self._ended.get(member_id, (None, 0.0))
        if last != incarnation or now - since >= max(self._timeout_s, _END_AGAIN_S):
            self._ended[member_id] = incarnation, now
            self._outbox.add(Kill(member_id, incarnation, "was given up before"))

    def _epoch_for(self, hello: NodeHello | GatewayHello) -> int:
        """The one it has from an earlier coordinator, or a new one."""
        epoch = hello.epoch or self._last_epoch + 1
        self._last_epoch = max(self._last_epoch, epoch)
        return epoch

    def _replace(self, hello: NodeHello | GatewayHello) -> Member | None:
        """A process joins under this id, so what was there before is gone."""
        member_id = _id_of(hello)
        condemned = self._condemned.get(member_id)
        if condemned is not None:
            self._bury(condemned.member)
        absent = self.absent.get(member_id)
        if absent is not None and absent.epoch == hello.epoch:
            del self.absent[member_id]  # this is the one
            return None
        known = self._present(member_id) or absent
        return None if known is None else self.remove(member_id, known.incarnation)

    def _leave(self, member: Member) -> None:
        if self.nodes.pop(member.id, None) is not None:
            self._fleet = None
            self._holders.leave(member.id)
        self.gateways.pop(member.id, None)
        self.absent.pop(member.id, None)

    def _bury(self, member: Member) -> None:
        """It is known to be gone, and with it whatever it was still writing."""
        self._condemned.pop(member.id, None)
        self._buried[member.id] = max(self._buried.get(member.id, 0), member.epoch)
        for node_id in self.nodes:
            self._outbox.send(node_id, PeerLost(member.id, member.epoch))

    def _welcome(self, member_id: str, incarnation: int, epoch: int) -> None:
        self._outbox.send(member_id, Welcome(member_id, incarnation, epoch, self._epoch))

    def _announce(self) -> None:
        self._joined = False
        peers = Peers(tuple(member.peer() for member in self._everybody()))
        for member_id in (*self.nodes, *self.gateways):
            self._outbox.send(member_id, peers)
        self._tell_pools()

    def _tell_pools(self) -> None:
        """Every node hears where to put its blocks from now on, if that is news to it."""
        self._pools_to_tell = False
        pools = [
            node.site() for node in self.nodes.values() if not node.serves and node.leaving is None
        ]
        serving = [node for node in self.serving if pools or node.pool != NO_POOL]
        before = {node.id: node.pool.id for node in serving if node.pool and node.pool.id}
        assigned = assign_pools((node.site() for node in serving), pools, before)
        for node in serving:
            pool = self.nodes.get(assigned.get(node.id, ""))
            use = NO_POOL if pool is None else UsePool(pool.id, pool.epoch)
            if node.pool != use:
                node.pool = use
                self._outbox.send(node.id, use)


def _id_of(hello: NodeHello | GatewayHello) -> str:
    return hello.node_id if isinstance(hello, NodeHello) else hello.gateway_id
