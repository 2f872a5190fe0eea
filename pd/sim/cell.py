"""A whole cell on a virtual clock: the live coordinator and cores, joined by messages and links.

Everything that is decided here is decided by the objects of the live system. This file carries
messages, lets time pass, and makes nodes fail.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from random import Random
from typing import Any

from kvstore.blocklog import BlockLog
from kvstore.blocks import BlockPool
from kvstore.pool.core import PoolCore
from kvstore.transfer import Push
from pd.coordinator import Coordinator
from pd.cost.model import Link
from pd.cost.sweep import first_points
from pd.errors import ConfigError
from pd.limits import coordinator_limits, node_limits, pool_limits
from pd.messages import COORDINATOR, GatewayHello, Message, NodeHello, Peers, Welcome
from pd.node.core import NodeCore
from pd.outbox import Decided, Kill, Send
from pd.sim.events import EventQueue
from pd.sim.gateway import GATEWAY, SimGateway
from pd.sim.host import SimHost
from pd.sim.links import Links
from pd.sim.member import SimMember
from pd.sim.node import SimNode
from pd.sim.outbox import RunOutbox
from pd.sim.pool import SimDisk, SimPool
from pd.sim.prompts import PrefixKeys
from pd.sim.spec import CellSpec, Failure, NodeGroup
from pd.types import Role
from pd.workload.outcome import Outcome

LAYOUT = 1  # one model, one KV layout
TICK_S = 0.1  # of the coordinator, as live
NEVER_S = 1e12  # a timeout where nothing can fall silent
_JOINING = 10  # latencies: a hello, its answer, and who the others are
_KEYS = PrefixKeys()

Note = Callable[[float, str, str, Mapping[str, Any]], None]


class SimCell:
    """One cell from its start. `id_tokens` are what each prefix id of an arrival names;
    `on_end` hears of every request that has ended, `on_note` of what happens on the way."""

    def __init__(
        self,
        spec: CellSpec,
        *,
        id_tokens: int = 512,
        seed: int = 0,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
        on_note: Note | None = None,
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.queue = EventQueue(-_JOINING * spec.latency_s)  # at 0 everybody has joined
        self.links = Links()
        self.members: dict[str, SimMember] = {}
        self.lost: list[SimMember] = []  # killed ones, for what they did while they lived
        self.found: Counter[str] = Counter()  # where prompts' KV was, on nodes that are gone
        self._on_note = on_note
        self._disks: dict[str, SimDisk] = {}
        self._hosts: dict[str, SimHost] = {}
        self._groups = self._name_groups()
        self._num_incarnations = 0
        self._incarnations: dict[int, SimMember | SimGateway] = {}
        self._known_links: dict[tuple[int, bool], Link] = {}
        self._mail: list[tuple[SimMember | SimGateway, Message]] = []  # that comes at
        self._mail_at = -math.inf
        self._withdrawn: set[int] = set()  # pushes that were cancelled before they began
        self._to_tell: dict[SimMember | SimGateway, Peers] = {}
        self._known_peers: tuple[Peers | None, dict[str, int]] = (None, {})
        limits = coordinator_limits(spec.config, _KEYS)
        limits = replace(limits, status_s=NEVER_S)
        if not spec.can_hang:
            limits = replace(limits, node_timeout_s=NEVER_S)
        self.coordinator = Coordinator(limits)
        self.gateway = SimGateway(self, id_tokens, on_end)
        self._num_incarnations += 1
        self._incarnations[self._num_incarnations] = self.gateway
        self.to_coordinator(self.gateway, GatewayHello(GATEWAY, self._num_incarnations, {}))
        for node_id in spec.node_ids():
            self._start(node_id)
        self.queue.run_until(0.0)
        self.queue.at(TICK_S, self._tick)
        for failure in spec.failures:
            self.queue.at(failure.at_s, self._fail, failure)

    @property
    def now(self) -> float:
        return self.queue.now

    def note(self, kind: str, about: str, **more: Any) -> None:
        """Something worth a line in a log of events."""
        if self._on_note is not None:
            self._on_note(self.queue.now, kind, about, more)

    # -------------------------------------------------------------- processes
    def kill(self, node_id: str, *, back_in_s: float | None = None) -> None:
        """The node's process ends, and its supervisor notices; a new one takes its place."""
        member = self.members.pop(node_id)
        member.end()
        self.lost.append(member)
        self.links.lost(node_id)
        self.note("killed", node_id)
        incarnation = member.hello.incarnation
        self.queue.at(self.now + self.spec.notice_s, self._noticed, node_id, incarnation)
        back_in_s = self.spec.restart_s if back_in_s is None else back_in_s
        self.queue.at(self.now + max(back_in_s, self.spec.notice_s), self._start, node_id)

    def set_role(self, node_id: str, role: Role) -> None:
        """Give a node another role. ConfigError says why that cannot be."""
        error = self.coordinator.change_role(node_id, role, migrate=True, now=self.now)
        self._act()
        if error:
            raise ConfigError(error)

    def catch_up(self) -> None:
        """Let all nodes have committed the steps that are over, for who wants to look at them."""
        for member in self.members.values():
            member.catch_up()

    def nodes(self) -> list[SimNode]:
        """Those that compute, in order of their ids' making."""
        return [member for member in self.members.values() if isinstance(member, SimNode)]

    def _start(self, node_id: str) -> None:
        self._num_incarnations += 1
        group, host = self._groups[node_id]
        if group is None:
            member: SimMember = self._make_pool(node_id, host)
        else:
            member = self._make_node(node_id, group, host)
        self.members[node_id] = member
        self._incarnations[self._num_incarnations] = member
        self.note("started", node_id)
        self.to_coordinator(member, member.hello)

    def _make_node(self, node_id: str, group: NodeGroup, host: str) -> SimNode:
        config, cache = self.spec.config, self.spec.config.cache
        limits = node_limits(config, "cuda")
        limits = replace(
            limits,
            max_num_batched_tokens=group.max_num_batched_tokens or limits.max_num_batched_tokens,
            max_num_seqs=group.max_num_seqs or limits.max_num_seqs,
        )
        pool = BlockPool(
            group.num_blocks, cache.block_size, prefix_cache=cache.prefix_cache, log=BlockLog()
        )
        outbox = RunOutbox(node_id)
        longest = config.model.max_model_len or group.num_blocks * cache.block_size
        points = first_points(
            limits.max_num_batched_tokens, limits.max_num_seqs, longest, group.num_blocks,
            cache.block_size,
        )  # fmt: skip
        steps = tuple(point.took(group.cost.step_s(point.load)) for point in points)
        rate = steps[0].prompt_rate
        core = NodeCore(
            node_id, group.role, pool, limits, LAYOUT, group.block_bytes, _KEYS, outbox, rate
        )
        hello = NodeHello(
            node_id, group.role, self._num_incarnations, {}, LAYOUT, group.num_blocks,
            cache.block_size, longest, limits.max_num_seqs, 0, host, "cuda", prefill_rate=rate,
            steps=steps,
        )  # fmt: skip
        rng = Random(f"{self.seed} {node_id} {self._num_incarnations}")
        return SimNode(
            self, core, outbox, hello, group.cost, group.block_bytes, rng, self._host(host)
        )

    def _host(self, name: str) -> SimHost | None:
        """Where a node runs, if it matters to the others who run there."""
        sharing = self.spec.sharing
        if sharing is None:
            return None
        if name not in self._hosts:
            self._hosts[name] = SimHost(sharing)
        return self._hosts[name]

    def _make_pool(self, pool_id: str, host: str) -> SimPool:
        spec, pools = self.spec, self.spec.pools
        assert pools is not None
        group = spec.groups[0]
        limits = pool_limits(spec.config, pools.num_pages, pools.num_slots)
        disk = self._disks.setdefault(pool_id, SimDisk(pools.disk))
        core = PoolCore(pool_id, limits)
        core.recovered(disk.recover())
        hello = NodeHello(
            pool_id, "pool", self._num_incarnations, {}, LAYOUT, pools.num_pages,
            spec.config.cache.block_size, 0, 0, 0, host,
        )  # fmt: skip
        return SimPool(self, core, disk, hello, group.cost, group.block_bytes)

    def _name_groups(self) -> dict[str, tuple[NodeGroup | None, str]]:
        """Every node's group (a pool has none) and host."""
        spec = self.spec
        groups = [group for group in spec.groups for _ in range(group.count)]
        places: dict[str, tuple[NodeGroup | None, str]] = {}
        host, room = -1, 0
        for node_id, group in zip(spec.node_ids(), groups):
            if not room:
                host, room = host + 1, group.per_host
            room -= 1
            places[node_id] = group, f"host-{host}"
        for number, pool_id in enumerate(spec.node_ids()[len(groups) :]):
            places[pool_id] = None, f"host-{number}"
        return places

    def _fail(self, failure: Failure) -> None:
        member = self.members.get(failure.node)
        if member is None:
            return  # it is down already
        if failure.kind == "kill":
            self.kill(failure.node, back_in_s=failure.for_s)
            return
        self.note(failure.kind, failure.node, for_s=failure.for_s, factor=failure.factor)
        ends = self.now + failure.for_s
        if failure.kind == "freeze":
            member.freeze()
            self.queue.at(ends, member.thaw)
        elif isinstance(member, SimNode):
            member.set_slowness(failure.factor)
            self.queue.at(ends, member.set_slowness, 1.0)

    def _noticed(self, node_id: str, incarnation: int) -> None:
        known = self.coordinator.members.nodes.get(node_id)
        if known is not None and known.hello.incarnation == incarnation:
            self.found.update(asdict(known.found))
        self.coordinator.on_process_lost(node_id, incarnation, self.now, "was killed")
        self._act()

    # -------------------------------------------------------------- messages
    def to_coordinator(self, sender: SimMember | SimGateway, message: Message) -> None:
        """Messages that are sent at one time come together."""
        at = self.queue.now + self.spec.latency_s
        if at != self._mail_at:
            self._mail_at, self._mail = at, []
            self.queue.at(at, self._coordinate, self._mail)
        self._mail.append((sender, message))

    def post(self, sender: SimMember, to: str, message: Message) -> None:
        """A message of a node, to the process that it believes is behind this id."""
        if to == COORDINATOR:
            self.to_coordinator(sender, message)
            return
        receiver = self.gateway if to == GATEWAY else self.members.get(to)
        if receiver is not None and receiver.epoch == sender.peers.get(to):
            self._deliver(receiver, sender.id, sender.epoch, message)

    def tokens(self, outbox: RunOutbox, time_s: float) -> None:
        """Tokens that left a node then. The gateway only keeps the record, so that it may have
        them at once."""
        time_s += self.spec.latency_s
        if outbox.firsts:
            firsts, outbox.firsts = outbox.firsts, []
            self.gateway.take_first(firsts, time_s)
        if outbox.streams:
            streams, outbox.streams = outbox.streams, []
            self.gateway.take(streams, time_s)

    def epochs_of(self, peers: Peers) -> dict[str, int]:
        """By id; made once for all who are told."""
        if self._known_peers[0] is not peers:
            self._known_peers = peers, {peer.id: peer.epoch for peer in peers.peers}
        return self._known_peers[1]

    def _deliver(
        self, receiver: SimMember | SimGateway, sender: str, epoch: int, message: Message
    ) -> None:
        self.queue.at(self.now + self.spec.latency_s, receiver.hear, sender, epoch, message)

    def _coordinate(self, mail: list[tuple[SimMember | SimGateway, Message]]) -> None:
        if mail is self._mail:
            self._mail_at = -math.inf  # without latency more may be sent at this very time
        for sender, message in mail:
            # A process that was replaced may still have had something on the way.
            if sender.alive or self.members.get(sender.id) is None:
                self.coordinator.on_message(sender.id, message, self.queue.now)
        self._act()

    def _act(self) -> None:
        members = self.coordinator.members
        for effect in self.coordinator.drain():
            if isinstance(effect, Send):
                message = effect.message
                if isinstance(message, Welcome):
                    incarnation = message.incarnation
                else:
                    known = members.nodes.get(effect.to) or members.gateways.get(effect.to)
                    if known is None:
                        continue
                    incarnation = known.hello.incarnation
                receiver = self._incarnations[incarnation]
                if isinstance(message, Peers):
                    self._tell_peers(receiver, message)
                else:
                    self._deliver(receiver, COORDINATOR, 0, message)
            elif isinstance(effect, Kill):
                self._end(effect)
            elif isinstance(effect, Decided):
                self.note("decided", effect.what, reason=effect.reason, **effect.numbers)

    def _tell_peers(self, receiver: SimMember | SimGateway, peers: Peers) -> None:
        """What a process is told of the others replaces what it was told before: of a thousand
        that join at once, each need only hear once."""
        if not self._to_tell:
            self.queue.at(self.now + self.spec.latency_s, self._tell_all)
        self._to_tell[receiver] = peers

    def _tell_all(self) -> None:
        told, self._to_tell = self._to_tell, {}
        for receiver, peers in told.items():
            receiver.hear(COORDINATOR, 0, peers)

    def _end(self, kill: Kill) -> None:
        """The coordinator wants a process that hangs to be ended; it is started anew."""
        member = self.members.get(kill.id)
        if member is not None and member.hello.incarnation == kill.incarnation:
            self.kill(kill.id)

    def _tick(self) -> None:
        if self.spec.can_hang:
            self.coordinator.members.heard_of(GATEWAY, self.now)
        self.coordinator.tick(self.now)
        self._act()
        self.queue.at(self.now + TICK_S, self._tick)

    # -------------------------------------------------------------- blocks
    def push(self, sender: SimMember, push: Push) -> float:
        """Send blocks; returns when that begins."""
        receiver = self.members.get(push.receiver)
        if receiver is None or receiver.epoch != push.receiver_epoch:
            self.queue.at(self.now + self.spec.latency_s, self._failed, sender, push)
            return self.now
        link = self._link(sender, near=sender.hello.host == receiver.hello.host)
        num_bytes = len(push.src) * sender.block_bytes
        begins, ends = self.links.push(sender.id, receiver.id, num_bytes, link, self.now)
        self.queue.at(ends, self._landed, sender, receiver, push, self.now)
        return begins

    def _link(self, sender: SimMember, *, near: bool) -> Link:
        key = id(sender.cost), near
        if key not in self._known_links:
            self._known_links[key] = self.spec.link(sender.cost, near=near)
        return self._known_links[key]

    def withdraw(self, push: Push) -> bool:
        """A push that has not begun is not to take place; False if that was said before."""
        new = id(push) not in self._withdrawn
        self._withdrawn.add(id(push))
        return new

    def _landed(self, sender: SimMember, receiver: SimMember, push: Push, began: float) -> None:
        if id(push) in self._withdrawn:
            self._withdrawn.discard(id(push))
            return
        if not sender.alive:
            return
        if receiver.alive:
            receiver.landed(push, sender.id)
        sender.pushed(push, began, receiver.alive)

    def _failed(self, sender: SimMember, push: Push) -> None:
        sender.pushed(push, self.now, False)
