"""A whole cell in one process: the real coordinator, node cores and gateway records, with a
network, a clock and a model that a seed decides about.

The model is an oracle: the KV of a token is a hash of the KV before it and the token, kept in
simulated pages, and the next token is a hash of every page entry read through the block
table. So a block that is wrong, stale, reused too early or copied too late changes the tokens,
and `expected_tokens` says what they should have been.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kvstore.blocks import BlockPool
from kvstore.transfer import Push
from kvstore.transport.events import Arrived, Pushed
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.gateway.record import RequestRecord
from pd.messages import (
    COORDINATOR,
    Cancel,
    Finished,
    GatewayHello,
    Heartbeat,
    Interrupted,
    NodeHello,
    Peers,
    Rejected,
    Submit,
    Tokens,
    Welcome,
)
from pd.node.core import NodeCore, NodeLimits
from pd.outbox import CancelPush, Expect, Forget, Kill, Send
from pd.types import BatchPlan, Request, Role, Sampled, SamplingParams

VOCAB = 997
LAYOUT = 0xFEED
MASK = (1 << 61) - 1


def mix(a: int, b: int) -> int:
    return ((a * 0x9E3779B97F4A7C15) ^ (b + 0x7F4A7C15) * 0xBF58476D1CE4E5B9) & MASK


def next_token(entries: list[int], seed: int, position: int) -> int:
    value = mix(seed, position)
    for entry in entries:
        value = mix(value, entry)
    return value % VOCAB


def expected_tokens(request: Request, index: int) -> list[int]:
    """What an undisturbed model gives for this output."""
    params = request.params
    entries: list[int] = []
    previous = 0
    for token in request.prompt:
        previous = mix(previous, token)
        entries.append(previous)
    output: list[int] = []
    while True:
        token = next_token(entries, params.seed_of(index), len(output))
        output.append(token)
        if token in request.eos_token_ids or len(output) >= params.max_tokens:
            return output
        previous = mix(previous, token)
        entries.append(previous)


class OracleEngine:
    """Pages of KV and the model that reads them."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pages = [[-1] * block_size for _ in range(num_blocks)]

    def _read(self, blocks: list[int], position: int) -> int:
        return self.pages[blocks[position // self.block_size]][position % self.block_size]

    def _write(self, blocks: list[int], position: int, token: int) -> None:
        previous = self._read(blocks, position - 1) if position else 0
        page = self.pages[blocks[position // self.block_size]]
        page[position % self.block_size] = mix(previous, token)

    def execute(self, plan: BatchPlan, tables: dict[int, list[int]]) -> list[Sampled]:
        """`tables` are the block tables as they were when the plan was made."""
        for source, target in plan.copies:
            self.pages[target] = list(self.pages[source])
        samples = []
        for chunk in plan.chunks:
            blocks, end = tables[id(chunk.seq)], chunk.start + chunk.num_tokens
            for position in range(chunk.start, end):
                self._write(blocks, position, chunk.seq.tokens[position])
            for seq in chunk.sample:
                samples.append(self._draw(blocks, end, seq.seed, seq.num_output))
        for seq in plan.decodes:
            blocks = tables[id(seq)]
            self._write(blocks, seq.num_computed, seq.tokens[seq.num_computed])
            samples.append(self._draw(blocks, len(seq.tokens), seq.seed, seq.num_output))
        return samples

    def _draw(self, blocks: list[int], length: int, seed: int, position: int) -> Sampled:
        entries = [self._read(blocks, p) for p in range(length)]
        return Sampled(next_token(entries, seed, position))


@dataclass
class SimNode:
    core: NodeCore
    engine: OracleEngine
    incarnation: int
    expected: dict[int, Expect] = field(default_factory=dict)
    plan: BatchPlan | None = None
    tables: dict[int, list[int]] = field(default_factory=dict)
    peers: dict[str, int] = field(default_factory=dict)  # the epoch it knows each peer by
    frozen: bool = False


@dataclass
class InFlightPush:
    sender: tuple[str, int]
    receiver: tuple[str, int]
    push: Push
    content: list[list[int]]


class Cell:
    """Everything a seed can interleave: deliveries, steps, pushes, ticks, kills, cancels."""

    def __init__(
        self,
        roles: dict[str, Role],
        *,
        num_blocks: int = 40,
        block_size: int = 4,
        limits: NodeLimits | None = None,
        coordinator_limits: CoordinatorLimits | None = None,
        drop_rate: float = 0.0,
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
        self.channels: dict[tuple[str, int, str, int], deque[Any]] = {}
        self.pushes: list[InFlightPush] = []
        self.nodes: dict[str, SimNode] = {}
        self.records: dict[str, RequestRecord] = {}
        self.rejected: dict[str, Rejected] = {}
        self.cancelled: set[str] = set()
        self.num_incarnations = 0
        self.num_steps = 0
        self.drop_rate = drop_rate
        self.kills: list[Kill] = []
        self.gaps: dict[tuple[str, int, int, int], float] = {}
        self.coordinator.on_message("gateway", GatewayHello("gateway", 1, {}), self.now)
        for node_id in roles:
            self.start_node(node_id)
        self._flush_coordinator()
        self.settle(stop_when=lambda: self.coordinator.status(self.now).ready)

    # ------------------------------------------------------------ processes
    def start_node(self, node_id: str) -> None:
        self.num_incarnations += 1
        pool = BlockPool(self.num_blocks, self.block_size)
        role = self.roles[node_id]
        core = NodeCore(node_id, role, pool, self.limits, LAYOUT)
        engine = OracleEngine(self.num_blocks, self.block_size)
        self.nodes[node_id] = SimNode(core, engine, self.num_incarnations)
        hello = NodeHello(
            node_id, role, self.num_incarnations, {}, LAYOUT, self.num_blocks, self.block_size,
            self.num_blocks * self.block_size, self.limits.max_num_seqs, 0, "sim",
        )  # fmt: skip
        self._post((node_id, self.num_incarnations), COORDINATOR, hello)

    def kill_node(self, node_id: str, *, noticed: bool = True) -> None:
        """SIGKILL: its memory, its writes in flight and its sockets are gone."""
        node = self.nodes.pop(node_id)
        self.pushes = [p for p in self.pushes if p.sender != (node_id, node.incarnation)]
        if noticed:
            self.coordinator.on_process_lost(node_id, node.incarnation, self.now, "was killed")
            self._flush_coordinator()

    # ------------------------------------------------------------ clients
    def submit(self, request: Request) -> None:
        record = RequestRecord(request)
        self.records[request.request_id] = record
        self._post(("gateway", 1), COORDINATOR, Submit(record.start()))

    def cancel(self, request_id: str) -> None:
        running = self.records[request_id].cancel()
        self.cancelled.add(request_id)
        if running:
            self._post(("gateway", 1), COORDINATOR, Cancel(request_id, running))

    def _gateway(self, message: Any) -> None:
        if isinstance(message, Tokens):
            for event in message.rows():
                record = self.records.get(event.request_id)
                before = record.unfinished
                record.on_token(event)
                ended = tuple(set(before) - set(record.unfinished))
                if ended:
                    self._post(("gateway", 1), COORDINATOR, Finished(event.request_id, ended))
        elif isinstance(message, Interrupted):
            record = self.records[message.request_id]
            indices = message.indices
            if message.unstarted_only:
                indices = record.unstarted(indices)
            self._resume(record, indices, message.attempt, message.reason)
        elif isinstance(message, Rejected):
            self.rejected[message.request_id] = message
            self.records[message.request_id].fail(message.indices, message.message)

    def _resume(
        self, record: RequestRecord, indices: tuple[int, ...], attempt: int, reason: str
    ) -> None:
        for work in record.on_interrupted(indices, attempt, reason):
            self._post(("gateway", 1), COORDINATOR, Submit(work))

    def _heal_gaps(self) -> None:
        """As the live gateway does: a token missing for long was lost on its way."""
        for request_id, record in self.records.items():
            for index in record.gaps:
                seq = record.sequences[index]
                where = (request_id, index, seq.attempt, len(seq.tokens))
                since = self.gaps.setdefault(where, self.now)
                if self.now - since > 1.0:
                    self._resume(record, (index,), seq.attempt, "a token was lost")

    # ------------------------------------------------------------ network
    def _post(self, sender: tuple[str, int], to: str, message: Any) -> None:
        """Queue a message for the process that the sender believes is behind this id."""
        if to in self.nodes:
            incarnation = self._believed(sender[0], to)
        elif to in (COORDINATOR, "gateway"):
            incarnation = 1
        else:
            return
        self.channels.setdefault((*sender, to, incarnation), deque()).append(message)

    def _believed(self, sender: str, to: str) -> int:
        """The incarnation of `to` that the sender addresses; -1 for one that is gone."""
        node = self.nodes[to]
        if sender == COORDINATOR:
            member = self.coordinator.members.nodes.get(to)
            if member is not None and member.hello.incarnation == node.incarnation:
                return node.incarnation
            return -1
        epoch = self.nodes[sender].peers.get(to, -1)
        return node.incarnation if epoch == node.core.epoch else -1

    def _alive(self, name: str, incarnation: int) -> bool:
        if name in (COORDINATOR, "gateway"):
            return True
        return name in self.nodes and self.nodes[name].incarnation == incarnation

    def _flush_coordinator(self) -> None:
        for effect in self.coordinator.drain():
            if isinstance(effect, Send):
                self._post((COORDINATOR, 1), effect.to, effect.message)
            elif isinstance(effect, Kill):
                self.kills.append(effect)
                if self._alive(effect.id, effect.incarnation):
                    self.kill_node(effect.id, noticed=False)

    def _flush_node(self, node_id: str) -> None:
        node = self.nodes[node_id]
        me = (node_id, node.incarnation)
        for effect in node.core.drain():
            if isinstance(effect, Send):
                self._post(me, effect.to, effect.message)
            elif isinstance(effect, Expect):
                node.expected[effect.transfer_id] = effect
            elif isinstance(effect, Forget):
                node.expected.pop(effect.transfer_id, None)
            elif isinstance(effect, Push):
                receiver = self.nodes.get(effect.receiver)
                known = receiver is not None and receiver.core.epoch == effect.receiver_epoch
                self.pushes.append(
                    InFlightPush(
                        me, (effect.receiver, receiver.incarnation if known else -1), effect, []
                    )
                )
            elif isinstance(effect, CancelPush):
                self._cancel_pushes(me, effect.transfer_id)

    def _cancel_pushes(self, me: tuple[str, int], transfer_id: int) -> None:
        """Those that have begun to copy go on; the others come back undone."""
        for item in [p for p in self.pushes if p.sender == me]:
            if item.push.transfer_id == transfer_id and not item.content:
                self.pushes.remove(item)
                self._pushed(item, ok=False)

    # ------------------------------------------------------------ one thing happens
    def actions(self) -> list[tuple[str, Any]]:
        """Everything that may happen next."""
        found: list[tuple[str, Any]] = []
        for key, queue in self.channels.items():
            if queue and not (key[2] in self.nodes and self.nodes[key[2]].frozen):
                found.append(("deliver", key))
        for node_id, node in self.nodes.items():
            if not node.frozen:
                found.append(("finish" if node.plan else "plan", node_id))
        found.extend(("push", item) for item in self.pushes if not self._frozen(item.sender[0]))
        found.append(("time", None))
        return found

    def _frozen(self, node_id: str) -> bool:
        return node_id in self.nodes and self.nodes[node_id].frozen

    def act(self, kind: str, what: Any) -> None:
        self.num_steps += 1
        getattr(self, f"_do_{kind}")(what)
        self._flush_coordinator()

    def step(self) -> None:
        actions = self.actions()
        # Time passes rarely beside everything else, so that leases end only when they should.
        weights = [0.15 if kind == "time" else 1.0 for kind, _ in actions]
        self.act(*self.rng.choices(actions, weights)[0])

    def _do_deliver(self, key: tuple[str, int, str, int]) -> None:
        sender, sender_inc, to, to_inc = key
        message = self.channels[key].popleft()
        if not self.channels[key]:
            del self.channels[key]
        if not self._alive(to, to_inc) or not self._alive(sender, sender_inc):
            return
        between_nodes = sender in self.nodes and to in self.nodes
        if between_nodes and self.rng.random() < self.drop_rate:
            return
        if to == COORDINATOR:
            self.coordinator.on_message(sender, message, self.now)
        elif to == "gateway":
            self._gateway(message)
        else:
            core = self.nodes[to].core
            if isinstance(message, Welcome):
                core.epoch = message.epoch
            elif isinstance(message, Peers):
                self.nodes[to].peers = {peer.id: peer.epoch for peer in message.peers}
            else:
                core.on_message(sender, message, self.now)
            self._flush_node(to)

    def _do_plan(self, node_id: str) -> None:
        node = self.nodes[node_id]
        node.core.tick(self.now)
        plan = node.core.plan(self.now)
        if plan is not None:
            node.plan = plan
            node.tables = {id(c.seq): list(c.seq.blocks) for c in plan.chunks}
            node.tables |= {id(s): list(s.blocks) for s in plan.decodes}
        self._flush_node(node_id)

    def _do_finish(self, node_id: str) -> None:
        node = self.nodes[node_id]
        assert node.plan is not None
        samples = node.engine.execute(node.plan, node.tables)
        node.plan, node.tables = None, {}
        node.core.commit(samples, self.now)
        self._flush_node(node_id)

    def _do_push(self, item: InFlightPush) -> None:
        """Two moments: the copy reads the source, and later it lands."""
        source = self.nodes[item.sender[0]]
        if not item.content:
            item.content = [list(source.engine.pages[b]) for b in item.push.src]
            return
        self.pushes.remove(item)
        if not self._alive(*item.receiver):
            self._pushed(item, ok=False)
            return
        receiver = self.nodes[item.receiver[0]]
        # As through shared memory: the write lands whether or not the receiver looks.
        for block, content in zip(item.push.dst, item.content, strict=True):
            receiver.engine.pages[block] = list(content)
        self._pushed(item, ok=True)
        expect = receiver.expected.get(item.push.transfer_id)
        if expect is not None and expect.sender == item.sender[0]:
            event = Arrived(item.push.transfer_id, item.push.first, len(item.push.dst), True)
            receiver.core.on_transfer(event, self.now)
            self._flush_node(item.receiver[0])

    def _pushed(self, item: InFlightPush, *, ok: bool) -> None:
        if self._alive(*item.sender):
            push = item.push
            event = Pushed(push.transfer_id, push.first, len(push.src), ok)
            self.nodes[item.sender[0]].core.on_transfer(event, self.now)
            self._flush_node(item.sender[0])

    def _do_time(self, _: Any) -> None:
        self.now += 0.1
        self.coordinator.on_message("gateway", Heartbeat("gateway"), self.now)
        self.coordinator.tick(self.now)
        self._heal_gaps()

    # ------------------------------------------------------------ checks
    def settle(self, *, limit: int = 200_000, stop_when: Any = None) -> None:
        """Run until nothing is left to do (every request has ended and every node is idle)."""
        for _ in range(limit):
            if stop_when() if stop_when is not None else self.quiet():
                return
            self.step()
        raise AssertionError(f"not quiet after {limit} steps: {self.describe()}")

    def quiet(self) -> bool:
        return all(record.finished for record in self.records.values()) and all(
            not n.core.prefill.tasks and not n.core.decode.handoffs
            and not n.core.decode.scheduler.running and n.plan is None
            for n in self.nodes.values()
        )  # fmt: skip

    def describe(self) -> str:
        lines = [f"now={self.now:.1f} assigned={self.coordinator._assigned}"]
        lines += [f"{r.request.request_id}: {r.unfinished}" for r in self.records.values()]
        for node_id, node in self.nodes.items():
            core = node.core
            lines.append(
                f"{node_id}: tasks={core.prefill.tasks} handoffs={core.decode.handoffs} "
                f"running={core.decode.scheduler.running} free={core.pool.num_free} "
                f"frozen={node.frozen}"
            )
        return "\n".join(lines)

    def check(self) -> None:
        """Every request ended, with the right tokens, and nothing is held anywhere."""
        for request_id, record in self.records.items():
            if request_id in self.rejected:
                continue
            for seq in record.sequences:
                expected = expected_tokens(record.request, seq.index)
                if request_id in self.cancelled:
                    assert seq.tokens == expected[: len(seq.tokens)], request_id
                else:
                    assert seq.finish in ("stop", "length"), (request_id, record.error)
                    assert seq.tokens == expected, (request_id, seq.index)
        for node in self.nodes.values():
            node.core.check_idle()


def make_request(
    request_id: str,
    prompt: tuple[int, ...],
    *,
    max_tokens: int = 8,
    n: int = 1,
    seed: int = 0,
    priority: int = 0,
    eos: tuple[int, ...] = (),
    arrival_s: float = 0.0,
) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, seed=seed)
    return Request(
        request_id, "gateway", prompt, params, eos, arrival_s=arrival_s, priority=priority
    )
