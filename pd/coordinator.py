"""The cell's coordinator as a pure object: events and `now` in, messages and kills out.

It admits and places work, knows which process is which (epochs), notices the ones that are
gone, and tells everybody. It never sees a generated token: the gateways keep the record of
every stream, so what a lost node was doing is submitted again by them.

Feeding the same events to a fresh coordinator gives the same effects (`pd.recorder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pd.assignment import Assignment, Assignments, Parked
from pd.foresight import learn, missed
from pd.health import Health
from pd.holders import Holders
from pd.member import Absent, Gateway, Member, Node, in_order
from pd.members import Members
from pd.messages import (
    COORDINATOR,
    Abort,
    Admitted,
    BlockEvents,
    Cancel,
    CellStatus,
    ChangeRole,
    Drain,
    Draining,
    Finished,
    GatewayHello,
    Heartbeat,
    Interrupted,
    Message,
    NodeHello,
    Ongoing,
    Rejected,
    Reserve,
    RoleChanged,
    Scale,
    Scaling,
    Snapshot,
    StartPrefill,
    Submit,
    UsePool,
    Verify,
)
from pd.outbox import Effect, Outbox
from pd.policies.admit import Admission, Overload, admit
from pd.policies.balance import BalanceOptions
from pd.policies.breaker import BreakerOptions
from pd.policies.demand import DemandWatch
from pd.policies.fit import never_fits
from pd.policies.lengths import OutputLengths
from pd.router import Query, Route, Router, RouterOptions
from pd.steering import Steering
from pd.types import Request, Role, Work

_PREFIXES = 10  # the most popular ones, in the cell's status


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """Bounds on waiting work, times in seconds, and how work is placed.

    `recovery_timeout_s` is how long interrupted work waits for a lost node to come back, and
    `stand_in_s` how long the cell waits for one of a phase that it has no other node of. `epoch`
    is this coordinator's own, greater than that of any before it and all the epochs they gave.
    With predicted `admission` a request has to fit below the bound on the queue, too. With
    `balance` nodes are given the roles that the load needs.
    """

    max_waiting_per_node: int = 256
    node_timeout_s: float = 10.0
    recovery_timeout_s: float = 120.0
    stand_in_s: float = 60.0
    status_s: float = 0.5
    router: RouterOptions = field(default_factory=RouterOptions)
    admission: Admission = "queue"
    admission_margin: float = 1.0
    balance: BalanceOptions | None = None
    epoch: int = 1
    breaker: BreakerOptions = field(default_factory=BreakerOptions)


class Coordinator:
    """Admission, placement and membership of one cell."""

    def __init__(self, limits: CoordinatorLimits) -> None:
        self.limits = limits
        self.outbox = Outbox()
        self.holders = Holders(self.outbox)
        self.members = Members(self.outbox, limits.node_timeout_s, self.holders, limits.epoch)
        self._lengths = OutputLengths()
        self.router = Router(limits.router, self.members, self.holders, self._lengths)
        self.health = Health(limits.breaker, self.members, self.outbox)
        demand = DemandWatch(self._lengths, sheds=limits.admission == "predicted")
        self._steering = Steering(
            limits.balance, self.members, self.outbox, demand, limits.stand_in_s
        )
        self._assigned = Assignments()
        self._parked: list[Parked] = []
        # Below 1 << 62, where the ids begin that nodes make themselves.
        self._next_transfer_id = (limits.epoch - 1 << 32) + 1
        self._next_status = 0.0

    # -------------------------------------------------------------- events in
    def on_message(self, sender: str, message: Message, now: float) -> None:
        self.members.heard_of(sender, now)
        if not isinstance(message, NodeHello | GatewayHello):
            self.members.announce_joined()
        if isinstance(message, Snapshot):
            self.health.observe(sender, message.snapshot, now)
            self.members.on_snapshot(sender, message.snapshot)
            self.router.reported(sender)
        elif isinstance(message, BlockEvents):
            self._block_events(sender, message, now)
        elif isinstance(message, Submit):
            self._submit(message.work, now)
        elif isinstance(message, Finished):
            for assignment, _ in self._release(message.request_id, message.indices):
                self._lengths.ended(message.num_tokens, assignment.max_tokens, now)
                node = self.members.nodes.get(assignment.admitted.decode)
                if node is not None:
                    node.pace.ended.count(now)
                learn(assignment, message.ttft_s, self.members)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Ongoing):
            self._restore(sender, message.admitted)
        elif isinstance(message, NodeHello | GatewayHello):
            self._hello(sender, message, now)
        elif isinstance(message, ChangeRole):
            error = self.change_role(
                message.node_id, message.role, migrate=message.migrate, now=now
            )
            self.outbox.send(sender, RoleChanged(message.call, error))
        elif isinstance(message, Drain):
            error = self.members.drain(message.node_id, message.move_s, now)
            self.outbox.send(sender, Draining(message.call, error))
            self._next_status = now
        elif isinstance(message, Scale):
            self._steering.scaler.configure(message.options, message.targets)
            self.outbox.send(sender, Scaling(message.call))
        elif not isinstance(message, Heartbeat):
            raise TypeError(f"the coordinator has no use for {type(message).__name__}")

    def on_process_lost(self, member_id: str, incarnation: int, now: float, reason: str) -> None:
        """The supervisor saw this process end."""
        lost = self.members.remove(member_id, incarnation)
        self._lost(lost, reason)
        self._next_status = now

    def on_undeliverable(self, to: str, message: Message) -> None:
        """A message could not be queued for its receiver."""
        if isinstance(message, StartPrefill | Reserve):
            work = message.work
            self.router.not_sent(to, message.transfer_id)
            self._abort(work.request.request_id, work.indices)
            self._interrupt(work, f"{to} could not be reached")
        elif isinstance(message, Verify):
            for assignment, indices in self._assigned.of(message.admitted):
                self._interrupt_assigned(assignment, indices, "could not be asked", decodes=True)
        elif isinstance(message, UsePool):
            self.members.pool_not_told(to)

    def change_role(self, node_id: str, role: Role, *, migrate: bool, now: float) -> str:
        """Give a node another role; returns why that cannot be, or nothing."""
        error = self.members.change_role(node_id, role, migrate=migrate, now=now)
        if not error:
            self._next_status = now
        return error

    def tick(self, now: float) -> None:
        self.members.announce_joined()
        for lost in self.members.silent(now):
            self.outbox.add(lost.kill(f"silent for {self.limits.node_timeout_s:g} s"))
            self._lost(lost, f"was silent for {self.limits.node_timeout_s:g} s")
            self._next_status = now
        self.members.tick(now)
        self.health.tick(now)
        for node in self.members.to_empty(now):
            self._interrupt_all(node, "is to be removed")
        if self._steering.tick(now):
            self._next_status = now
        self.holders.tick(now)
        self._unpark(now)
        if now >= self._next_status:
            self._next_status = now + self.limits.status_s
            status = self.status(now)
            for gateway_id in self.members.gateways:
                self.outbox.send(gateway_id, status)
            for node_id in self.members.nodes:  # whoever hears nothing says hello
                self.outbox.send(node_id, Heartbeat(COORDINATOR))

    def drain(self) -> list[Effect]:
        self.members.announce_joined()
        return self.outbox.drain()

    def _hello(self, sender: str, hello: NodeHello | GatewayHello, now: float) -> None:
        members = self.members
        restored = hello.epoch and not members.knows(hello)
        replaced = (
            members.node_joins(hello, now)
            if isinstance(hello, NodeHello)
            else members.gateway_joins(hello, now)
        )
        others = restored and members.knows(hello) and members.learn(sender, hello.peers, now)
        for lost in (replaced, *(others or ())):
            self._lost(lost, "was replaced by a new process")
        if restored and sender in members.nodes:
            self._verify(sender)
        self._next_status = now

    def _block_events(self, sender: str, events: BlockEvents, now: float) -> None:
        known = sender in self.members.nodes
        if known and self.holders.on_events(sender, events, now):
            self.router.stored(sender, events)

    # -------------------------------------------------------------- requests
    def _submit(self, work: Work, now: float) -> None:
        request = work.request
        if request.gateway not in self.members.gateways:
            return  # it was sent before its gateway was lost: nobody waits for it any more
        self._abort(request.request_id, work.indices)  # of an earlier attempt
        query = self.router.query(work)
        if self._start(work, query, now):
            return
        if work.attempt or self.members.absent:
            self._parked.append(Parked(work, query, now))
        else:
            self._turn_away(work)

    def _turn_away(self, work: Work) -> None:
        """New work that no node can take now, or ever."""
        reason = never_fits([node.hello for node in self.members.serving], work)
        if reason is not None:
            self._reject(work, 400, reason)
        else:
            self._reject(work, 503, f"the cell is not ready: {self._lacks()}", 5.0)

    def _start(self, work: Work, query: Query, now: float) -> bool:
        """Place it, or refuse what is new and too much; False if there is no node for it."""
        slow = self.health.slow()
        route = self.router.route(query, self.members.fleet_for(work, without=slow))
        if route is None and slow:
            route = self.router.route(query, self.members.fleet_for(work))
        if route is None:
            return False
        if not work.attempt:
            self._steering.asked(work, route.num_computed, now)
            self._lengths.asked(work.request.params.max_tokens, now)
        overload = None if work.attempt else self._overload(work.request, route)
        if overload is not None:
            self._reject(work, overload.status, overload.message, overload.retry_after_s)
        else:
            self._place(work, route)
        return True

    def _restore(self, gateway_id: str, admitted: Admitted) -> None:
        """An earlier coordinator placed this, and its gateway still waits for it."""
        if gateway_id not in self.members.gateways:
            return
        assignment = Assignment(gateway_id, 0, admitted)
        self._assigned.put(assignment)
        for node_id, epoch in (
            (admitted.prefill, admitted.prefill_epoch), (admitted.decode, admitted.decode_epoch),
        ):  # fmt: skip
            if self.members.is_gone(node_id, epoch):
                decodes = node_id == admitted.decode
                self._interrupt_assigned(assignment, admitted.indices, "was lost", decodes=decodes)
        if admitted.decode in self.members.nodes:
            self.outbox.send(admitted.decode, Verify(gateway_id, admitted))

    def _verify(self, node_id: str) -> None:
        """A node is back that decodes what an earlier coordinator sent to it, or so it seems."""
        for assignment in self._assigned.inherited_by(node_id):
            self.members.announce_joined()  # it is to answer another member
            self.outbox.send(node_id, Verify(assignment.gateway, assignment.admitted))

    def _place(self, work: Work, route: Route) -> None:
        request, placement = work.request, route.placement
        transfer_id, self._next_transfer_id = self._next_transfer_id, self._next_transfer_id + 1
        prefill = self.members.nodes[placement.prefill]
        decode = self.members.nodes[placement.decode]
        admitted = Admitted(
            request.request_id, work.indices, work.attempt, prefill.id, decode.id,
            prefill.epoch, decode.epoch, route.num_cached * prefill.hello.block_size,
            route.sources[0].holder if route.sources else "", route.forecast.ttft_s,
        )  # fmt: skip
        assignment = Assignment(
            request.gateway, transfer_id, admitted, request.slo.ttft_s, request.params.max_tokens
        )
        self._assigned.put(assignment)
        self.router.sent(route, work, transfer_id)
        self.health.sent(prefill, decode)
        self._steering.sent(prefill.id, route.work_s)
        if decode is not prefill:
            self.outbox.send(decode.id, Reserve(work, transfer_id, prefill.id, prefill.epoch))
        start = StartPrefill(work, transfer_id, decode.id, decode.epoch, route.sources)
        self.outbox.send(prefill.id, start)
        self.outbox.send(request.gateway, admitted)

    def _cancel(self, message: Cancel) -> None:
        request_id, indices = message.request_id, message.indices
        self._abort(request_id, indices)
        if message.node in self.members.nodes:
            self.outbox.send(message.node, Abort(request_id, indices, message.attempt))
        parked, self._parked = self._parked, []
        for item in parked:
            work = item.work
            if work.request.request_id == request_id:
                wanted = tuple(index for index in work.indices if index not in indices)
                item.work = replace(work, indices=wanted)
            if item.work.indices:
                self._parked.append(item)

    def _abort(self, request_id: str, indices: tuple[int, ...]) -> None:
        """Drop these outputs on the nodes they were assigned to, in whatever attempt."""
        targets: dict[str, tuple[set[int], int]] = {}
        for assignment, index in self._release(request_id, indices):
            admitted = assignment.admitted
            for node_id in {admitted.prefill, admitted.decode}:
                dropped, attempt = targets.get(node_id, (set(), 0))
                dropped.add(index)
                targets[node_id] = (dropped, max(attempt, admitted.attempt))
        for node_id in sorted(targets):
            if node_id in self.members.nodes:
                dropped, attempt = targets[node_id]
                abort = Abort(request_id, tuple(sorted(dropped)), attempt)
                self.outbox.send(node_id, abort)

    def _release(self, request_id: str, indices: tuple[int, ...]) -> list[tuple[Assignment, int]]:
        """Forget assignments; returns those that were known."""
        released = self._assigned.release(request_id, indices)
        for assignment, _ in released:
            self.router.ended(assignment.transfer_id)
        return released

    def _reject(self, work: Work, status: int, message: str, retry_after_s: float = 1.0) -> None:
        request = work.request
        rejected = Rejected(
            request.request_id, work.indices, work.attempt, status, message, retry_after_s
        )
        self.outbox.send(request.gateway, rejected)

    def _interrupt(self, work: Work, reason: str) -> None:
        request = work.request
        interrupted = Interrupted(request.request_id, work.indices, work.attempt, reason)
        self.outbox.send(request.gateway, interrupted)

    def _interrupt_assigned(
        self, assignment: Assignment, indices: Iterable[int], reason: str, *, decodes: bool
    ) -> None:
        """These outputs have lost the node that decodes them, or else the one of their prompt."""
        admitted = assignment.admitted
        node = f"decode node {admitted.decode}" if decodes else f"prefill node {admitted.prefill}"
        interrupted = Interrupted(
            admitted.request_id, tuple(indices), admitted.attempt, f"{node} {reason}",
            unstarted_only=not decodes,
        )  # fmt: skip
        self.outbox.send(assignment.gateway, interrupted)

    def _unpark(self, now: float) -> None:
        if not self._parked:
            return
        parked, self._parked = self._parked, []
        for item in parked:
            if self._start(item.work, item.query, now):
                continue
            if not item.work.attempt and not self.members.absent:
                self._turn_away(item.work)
            elif now - item.since >= self.limits.recovery_timeout_s:
                reason = f"no node came back to go on with it: {self._lacks()}"
                self._reject(item.work, 503, reason, 5.0)
            else:
                self._parked.append(item)

    # -------------------------------------------------------------- losses
    def _lost(self, member: Member | None, reason: str) -> None:
        if isinstance(member, Node | Absent):
            self._node_lost(member, reason)
        if isinstance(member, Gateway | Absent):
            self._gateway_lost(member)

    def _node_lost(self, node: Node | Absent, reason: str) -> None:
        """What was prefilled there and is on its way to a decode node, that node interrupts
        itself when it hears of the loss."""
        self.router.lost(node.id)
        self._interrupt_all(node, reason)

    def _interrupt_all(self, node: Node | Absent, reason: str) -> None:
        """Interrupt what was to decode there, and what waits for its first token from there."""
        for assignment, indices in self._assigned.on(node.id, node.epoch):
            decodes = assignment.admitted.decode == node.id
            self._interrupt_assigned(assignment, indices, reason, decodes=decodes)

    def _gateway_lost(self, gateway: Gateway | Absent) -> None:
        for request_id, indices in self._assigned.of_gateway(gateway.id):
            self._abort(request_id, indices)
        self._parked = [p for p in self._parked if p.work.request.gateway != gateway.id]

    # -------------------------------------------------------------- views
    def _lacks(self) -> str:
        return self.members.missing() or "no node with room for a prompt of this size is up"

    def _num_waiting(self) -> int:
        """Prompts in the cell that have not been computed yet, on the way ones included."""
        return self.members.fleet.num_prompts + len(self._parked)

    def _overload(self, request: Request, route: Route) -> Overload | None:
        """Why this request is turned away, or None."""
        limits = self.limits
        if limits.admission == "none":
            return None
        fleet = self.members.fleet
        limit = limits.max_waiting_per_node * max(1, len(fleet.prefills) + len(fleet.mixed))
        waiting = self._num_waiting()
        if waiting < limit:
            if limits.admission == "queue":
                return None
            return missed(route, request.slo, limits.admission_margin, self.members)
        waits = (c.wait_s() for c in fleet.nodes.values() if c.role != "decode")
        return admit(waiting, limit, min(waits, default=0.0))

    def status(self, now: float) -> CellStatus:
        """The cell as `/ready`, `/metrics` and `pd status` show it."""
        missing = self.members.missing()
        nodes: list[Mapping[str, str | int | float | bool]] = [
            {**node.describe(now), "directory_blocks": self.holders.directory.num_blocks(node.id)}
            for node in sorted(self.members.nodes.values(), key=in_order)
        ]
        lens = [node.hello.max_model_len for node in self.members.serving]
        return CellStatus(
            ready=not missing,
            reason=missing,
            nodes=tuple(nodes),
            num_requests=len(self._assigned) + len(self._parked),
            max_model_len=min(lens, default=0),
            prefixes=tuple(self.router.popular_prefixes(_PREFIXES)),
            wanted=self._steering.scaler.wanted,
        )
