"""A whole cell in one process: the real coordinator, node cores and gateway records, with a
network, a clock and processes that a seed (or a test) decides about.

`actions` lists everything that may happen next, `act` makes one of them happen. Random runs,
the state machine and the named scenarios all are sequences of those.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cell.checks import describe
from cell.gateway import SimGateway
from cell.network import NOBODY, Address, Channel, Copy, Link, Network, Notice
from cell.node import SimNode
from cell.oracle import DAMAGED
from cell.pool import SimDisk, SimPool
from cell.processes import GATEWAY, heard, make_node, make_pool, say_hello
from kvstore.pool.effects import DiskErase, DiskRead, DiskWrite
from kvstore.transport.events import Arrived
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.messages import (
    COORDINATOR,
    ChangeRole,
    GatewayHello,
    Heartbeat,
    NodeHello,
    Peers,
    Welcome,
)
from pd.node.core import NodeLimits
from pd.outbox import ANY_PROCESS, CancelPush, Expect, Forget, Kill, Push, Send
from pd.types import Request, Role

TIME_STEP_S = 0.1
_TIME_WEIGHT = 0.15  # time passes rarely beside everything else: leases end when they should
_EPOCHS = 10_000  # between two coordinators: more than one of them gives
_GUARD_S = 6.0  # after which a coordinator that hangs is ended

Action = tuple[str, Any]


@dataclass(frozen=True)
class Faults:
    """How often things go wrong, as probabilities."""

    drop: float = 0.0  # a message between two nodes is lost
    refuse: float = 0.0  # an order of the coordinator cannot be queued
    damage: float = 0.0  # blocks arrive damaged
    fail: float = 0.0  # a push fails
    disk: float = 0.0  # a read or write of a disk fails


class Cell:
    """Everything a seed can interleave: deliveries, steps, copies, ticks, kills, cancels."""

    def __init__(
        self,
        roles: dict[str, Role],
        *,
        num_blocks: int = 40,
        block_size: int = 4,
        limits: NodeLimits | None = None,
        coordinator_limits: CoordinatorLimits | None = None,
        faults: Faults | None = None,
        pool_pages: int = 24,
        pool_slots: int = 40,
        seed: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.roles = roles
        self.num_blocks, self.block_size = num_blocks, block_size
        self.limits = limits or NodeLimits(
            max_num_batched_tokens=8, max_num_seqs=8, lease_s=2.0, heartbeat_s=0.2
        )
        self.coordinator = Coordinator(
            coordinator_limits or CoordinatorLimits(node_timeout_s=5.0, recovery_timeout_s=600.0)
        )
        self.centre = Address(COORDINATOR, self.coordinator.limits.epoch)
        self.centre_up = True
        self.centre_frozen: float | None = None  # since when
        self.network = Network(self.rng)
        self.nodes: dict[str, Any] = {}  # SimNode or SimPool
        self.pool_pages, self.pool_slots = pool_pages, pool_slots
        self.disks: dict[str, SimDisk] = {}
        self.contents: dict[bytes, list[int]] = {}  # what every key was seen to name
        self.kills: list[Kill] = []  # ordered by the coordinator, not carried out yet
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        self.slow: set[str] = set()  # processes that do things ten times as rarely
        self.cuts: dict[frozenset[str], float] = {}  # links over which nothing comes until then
        self._num_incarnations = 0
        self._epochs: dict[Address, int] = {}
        self._processes: dict[tuple[str, int], Address] = {}  # by id and epoch
        self._last_epoch: dict[str, int] = {}
        self.start_gateway()
        for node_id in roles:
            self.start_node(node_id)
        self.settle(until=self.ready)

    # ------------------------------------------------------------ processes
    def start_gateway(self) -> None:
        """Start the gateway, or a new one in its place that knows nothing of the earlier."""
        address = self._new_address(GATEWAY)
        self.gateway = SimGateway(address, lambda message: self._post(address, message))
        self.gateway.link = Link(
            GatewayHello(GATEWAY, address.incarnation, {}), self.centre, self.now
        )

    def start_node(self, node_id: str) -> None:
        address = self._new_address(node_id)
        make = make_pool if self.roles[node_id] == "pool" else make_node
        self.nodes[node_id] = make(self, node_id, address)

    @property
    def pools(self) -> list[SimPool]:
        return [node for node in self.nodes.values() if isinstance(node, SimPool)]

    def kill_node(self, node_id: str, *, noticed: bool = True) -> None:
        """SIGKILL: its memory, its writes in flight and its sockets are gone."""
        self.counts["kills"] += 1
        node = self.nodes.pop(node_id)
        if isinstance(node, SimNode):
            self.counts["preemptions"] += node.core.decode.scheduler.preemptions
        self.network.died(node.address)
        if noticed and self.centre_up:
            self.coordinator.on_process_lost(*node.address, self.now, "was killed")
            self._flush_coordinator()

    def kill_gateway(self) -> None:
        """The gateway dies, with every record it kept, and a new one starts."""
        self.network.died(self.gateway.address)
        if self.centre_up:
            self.coordinator.on_process_lost(*self.gateway.address, self.now, "was killed")
        self.start_gateway()
        self._flush_coordinator()

    def kill_coordinator(self) -> None:
        """The coordinator dies, with all it knew; `start_coordinator` starts it anew."""
        self.counts["coordinators lost"] += 1
        self.network.died(self.centre)
        self.kills.clear()
        self.centre_up = False
        self.centre_frozen = None

    def start_coordinator(self) -> None:
        limits = self.coordinator.limits
        self.coordinator = Coordinator(replace(limits, epoch=limits.epoch + _EPOCHS))
        self.centre = Address(COORDINATOR, self.coordinator.limits.epoch)
        self.centre_up = True

    def freeze(self, node_id: str) -> None:
        """SIGSTOP: the process does nothing, and neither do its copies."""
        self.counts["freezes"] += 1
        self.nodes[node_id].frozen = True

    def thaw(self, node_id: str) -> None:
        self.nodes[node_id].frozen = False

    def change_role(self, node_id: str, role: Role, *, migrate: bool = True) -> str:
        """As an operator asks for it; the node hears of it by a message."""
        error = self.coordinator.change_role(node_id, role, migrate=migrate, now=self.now)
        self._flush_coordinator()
        return error

    def hear_role_change(self, node_id: str, role: Role) -> None:
        """A gateway asks for it."""
        self._post(self.gateway.address, ChangeRole(0, node_id, role))

    # ------------------------------------------------------------ clients
    def submit(self, request: Request) -> None:
        self.counts["requests"] += 1
        self.gateway.submit(request)

    def cancel(self, request_id: str) -> None:
        self.counts["cancels"] += 1
        self.gateway.cancel(request_id)

    # ------------------------------------------------------------ what may happen next
    def actions(self) -> list[Action]:
        network = self.network
        found: list[Action] = [
            ("deliver", channel)
            for channel in network.channels
            if not self._frozen(channel.receiver) and not self._cut(*channel)
        ]
        for node_id, node in self.nodes.items():
            if not node.frozen:
                found.append(("turn", node_id))
                if node.plan is not None:
                    found.append(("finish", node_id))
                if isinstance(node, SimPool) and node.work:
                    found.append(("disk", node_id))
        found.extend(
            ("copy", copy)
            for copy in network.copies
            if not self._frozen(copy.sender) and not self._cut(copy.sender, copy.receiver)
        )
        found.extend(
            ("notify", notice)
            for notice in network.notices
            if not self._frozen(notice.to) and not self._cut(notice.to, notice.sender)
        )
        found.extend(("kill", kill) for kill in self.kills)
        found.append(("time", None))
        return found

    def act(self, kind: str, what: Any) -> None:
        """Make one of `actions` happen."""
        self.counts["steps"] += 1
        getattr(self, f"_do_{kind}")(what)
        self._flush_coordinator()

    def step(self) -> None:
        """Make a random one of them happen."""
        actions = self.actions()
        if self.slow:
            actions = [each for each in actions if not self._dawdles(each)]
        at = int(self.rng.random() * (len(actions) - 1 + _TIME_WEIGHT))
        self.act(*actions[at])

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def settle(self, *, until: Callable[[], bool] | None = None, limit: int = 200_000) -> None:
        """Run until nothing is left to do, or until a condition holds."""
        until = until or self.quiet
        for _ in range(limit):
            if until():
                return
            self.step()
        raise AssertionError(f"not there after {limit} steps:\n{describe(self)}")

    def _do_deliver(self, channel: Channel) -> None:
        message = self.network.take(channel)
        sender, receiver = channel
        if not self.alive(receiver):
            return
        if sender.id in self.roles and receiver.id in self.roles:
            if self.rng.random() < self.faults.drop:
                self.counts["dropped"] += 1
                return
        if sender.id == COORDINATOR:
            process = self.gateway if receiver.id == GATEWAY else self.nodes[receiver.id]
            if sender.incarnation < process.link.centre.incarnation:
                return  # from a coordinator known to be replaced
            heard(self, process.link, receiver, message)
        if receiver.id == COORDINATOR:
            if self._epochs.get(sender, 0) == self._last_epoch.get(sender.id, 0) or isinstance(
                message, NodeHello | GatewayHello
            ):
                self.coordinator.on_message(sender.id, message, self.now)
            return
        known = self._peers_of(receiver.id)
        if known.get(sender.id, 0) > self._epochs.get(sender, 0):
            return  # from a process known to be replaced
        if receiver.id == GATEWAY:
            self.gateway.on_message(message, self.now)
            return
        node = self.nodes[receiver.id]
        if isinstance(message, Welcome):
            node.core.epoch = message.epoch
        elif isinstance(message, Peers):
            node.peers = {peer.id: peer.epoch for peer in message.peers}
        else:
            node.core.on_message(sender.id, message, self.now)
        self._flush_node(node)

    def _do_turn(self, node_id: str) -> None:
        """A turn of the node's loop: its timers, and a new step if none is in flight."""
        node = self.nodes[node_id]
        say_hello(self, node.link)
        node.core.tick(self.now)
        if node.plan is None:
            node.begin_step(self.now)
        self._flush_node(node)

    def _do_finish(self, node_id: str) -> None:
        node = self.nodes[node_id]
        node.finish_step(self.now)
        self._flush_node(node)

    def _do_disk(self, pool_id: str) -> None:
        pool = self.nodes[pool_id]
        pool.do_disk(fail=self.rng.random() < self.faults.disk)
        self._flush_node(pool)

    def _do_copy(self, copy: Copy) -> None:
        """Two moments: the copy reads its source, and later it is written. As through shared
        memory, it lands whether or not the receiver looks."""
        push, source = copy.push, self.nodes[copy.sender.id]
        if copy.content is None:
            copy.content = [list(source.engine.pages[block]) for block in push.src]
            return
        self.network.copies.remove(copy)
        if not self.alive(copy.receiver) or self.rng.random() < self.faults.fail:
            self.network.pushed(copy, ok=False)
            return
        receiver = self.nodes[copy.receiver.id]
        ok = self.rng.random() >= self.faults.damage
        for block, content in zip(push.dst, copy.content, strict=True):
            receiver.engine.pages[block] = list(content) if ok else [DAMAGED] * self.block_size
        self.counts["damaged"] += not ok
        arrived = Arrived(push.transfer_id, push.first, len(push.dst), ok)
        self.network.notices.append(Notice(copy.receiver, copy.sender, arrived))
        self.network.pushed(copy, ok=True)

    def _do_notify(self, notice: Notice) -> None:
        self.network.notices.remove(notice)
        node, event = self.nodes[notice.to.id], notice.event
        if isinstance(event, Arrived):
            expect = node.expected.get(event.transfer_id)
            if expect is None or expect.sender != notice.sender.id:
                return
        node.core.on_transfer(event, self.now)
        self._flush_node(node)

    def _do_kill(self, kill: Kill) -> None:
        """The supervisor ends the process behind an id, if it is the one that is meant, and
        starts a new one in its place."""
        self.kills.remove(kill)
        behind = self.gateway if kill.id == GATEWAY else self.nodes.get(kill.id)
        if behind is not None and kill.incarnation in (behind.address.incarnation, ANY_PROCESS):
            if kill.id == GATEWAY:
                self.kill_gateway()
            else:
                self.kill_node(kill.id)
        self.coordinator.on_process_lost(kill.id, kill.incarnation, self.now, "was killed")
        if kill.id in self.roles and kill.id not in self.nodes:
            self.start_node(kill.id)

    def _do_time(self, _: None) -> None:
        self.now += TIME_STEP_S
        self.cuts = {link: until for link, until in self.cuts.items() if until > self.now}
        say_hello(self, self.gateway.link)
        if self.gateway.address in self._epochs:
            self._post(self.gateway.address, Heartbeat(GATEWAY))
        if self.centre_frozen is not None and self.now - self.centre_frozen >= _GUARD_S:
            self.kill_coordinator()
            self.start_coordinator()
        if self.centre_up and self.centre_frozen is None:
            self.coordinator.tick(self.now)
        self.gateway.heal_gaps(self.now)

    # ------------------------------------------------------------ effects
    def _flush_coordinator(self) -> None:
        while self.centre_up and (effects := self.coordinator.drain()):
            for effect in effects:
                if isinstance(effect, Kill):
                    self.kills.append(effect)
                elif isinstance(effect, Send):
                    self._send_order(effect)

    def _send_order(self, effect: Send) -> None:
        message, members = effect.message, self.coordinator.members
        if isinstance(message, Welcome):
            address = Address(message.id, message.incarnation)
            self._epochs[address] = self._last_epoch[message.id] = message.epoch
            self._processes[message.id, message.epoch] = address
        else:
            member = members.nodes.get(effect.to) or members.gateways.get(effect.to)
            if member is None:
                return
            address = Address(effect.to, member.hello.incarnation)
        if effect.to in self.roles and self.rng.random() < self.faults.refuse:
            if not isinstance(message, Welcome | Peers):
                self.counts["refused"] += 1
                self.coordinator.on_undeliverable(effect.to, message)
                return
        self.network.post(self.centre, address, message)

    def _flush_node(self, node: SimNode | SimPool) -> None:
        network = self.network
        for effect in node.core.drain():
            if isinstance(effect, Send):
                self._post(node.address, effect.message, effect.to)
            elif isinstance(effect, Expect):
                node.expected[effect.transfer_id] = effect
            elif isinstance(effect, Forget):
                node.expected.pop(effect.transfer_id, None)
            elif isinstance(effect, Push):
                receiver = self._processes[effect.receiver, effect.receiver_epoch]
                network.copies.append(Copy(node.address, receiver, effect))
            elif isinstance(effect, DiskWrite | DiskRead | DiskErase):
                node.work.append(effect)
            elif isinstance(effect, CancelPush):
                network.cancel_copies(node.address, effect.transfer_id)

    def _post(self, sender: Address, message: Any, to: str = COORDINATOR) -> None:
        """Queue a message for the process that the sender believes is behind this id."""
        if to == COORDINATOR:
            process = self.gateway if sender.id == GATEWAY else self.nodes[sender.id]
            receiver = process.link.centre
        else:
            epoch = self._peers_of(sender.id).get(to, 0)
            receiver = self._processes.get((to, epoch), Address(to, NOBODY))
        if self.alive(receiver):
            self.network.post(sender, receiver, message)

    # ------------------------------------------------------------ views
    def _new_address(self, name: str) -> Address:
        self._num_incarnations += 1
        return Address(name, self._num_incarnations)

    def _peers_of(self, name: str) -> dict[str, int]:
        return self.gateway.peers if name == GATEWAY else self.nodes[name].peers

    def alive(self, process: Address) -> bool:
        if process == self.centre:
            return self.centre_up
        if process == self.gateway.address:
            return True
        return process.id in self.nodes and self.nodes[process.id].address == process

    def _cut(self, one: Address, other: Address) -> bool:
        return bool(self.cuts) and frozenset((one.id, other.id)) in self.cuts

    def _dawdles(self, action: Action) -> bool:
        """Whether this is a turn or step of a slow process that is not to be yet."""
        kind, what = action
        return kind in ("turn", "finish", "disk") and what in self.slow and self.rng.random() < 0.9

    def _frozen(self, process: Address) -> bool:
        if process == self.centre:
            return self.centre_frozen is not None
        return self.alive(process) and process.id in self.nodes and self.nodes[process.id].frozen

    def ready(self) -> bool:
        """The coordinator counts on every node, and the gateway knows them."""
        members = self.coordinator.members
        return self.gateway.peers.keys() >= {*self.roles} <= members.nodes.keys()

    def quiet(self) -> bool:
        """Every request has ended, every node is idle and the coordinator knows it."""
        coordinator = self.coordinator
        return (
            self.centre_up
            and not coordinator.members.absent
            and all(record.finished for record in self.gateway.records.values())
            and all(node.idle for node in self.nodes.values())
            and not coordinator._assigned
            and not coordinator._parked
            and not any(node.credit for node in coordinator.members.nodes.values())
        )
