"""One way to ask of a cell of real processes and of a simulated one, so that a test can be made
of both: requests go out together, something may happen in their midst, answers come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from live_cell import STATUS_S, WAIT_S, LiveCell
from sim_cells import BLOCK_BYTES, COST, check_idle

from pd.config import Config
from pd.sim.cell import SimCell
from pd.sim.spec import CellSpec, NodeGroup
from pd.types import Role
from pd.workload.arrival import Arrival

BLOCK_SIZE = 16
SPREAD_S = 0.002  # between two requests that go out together, about
SLICE_S = 0.005  # of virtual time between two looks at what has come


@dataclass(frozen=True)
class Ask:
    """A request; its client goes away once it has `leave_after` tokens."""

    prompt: tuple[int, ...]
    max_tokens: int = 8
    leave_after: int | None = None


@dataclass
class Answer:
    """What came of one. `status` is ok, rejected, left or what went wrong."""

    status: str = ""
    num_tokens: int = 0
    prefill: str = ""
    decode: str = ""
    moved_blocks: float = 0.0
    attempts: int = 1


@dataclass(frozen=True)
class Fault:
    """Once so many tokens have come in all, kill a node or give it another role. A real one that
    `hangs` is killed once it is missed, so that no process takes its place before; a simulated one
    is missed at once."""

    node: str
    after_tokens: int
    role: Role | None = None
    hangs: bool = False


class AnyCell(Protocol):
    """A cell of either kind, with the nodes and options that it was made with."""

    def ask(self, asks: Sequence[Ask], fault: Fault | None = None) -> list[Answer]:
        """Send all at once; returns when all have ended."""
        ...

    def settle(self) -> None:
        """Wait until every node is up and has given everything back; fails if that never is."""
        ...

    def set_role(self, node: str, role: Role) -> None: ...

    def total(self, counter: str) -> int:
        """A counter of the nodes' snapshots, all together."""
        ...

    def roles(self) -> dict[str, str]:
        """As the coordinator knows them, by node."""
        ...

    def num_decided(self, what: str) -> int:
        """How often the coordinator has decided this."""
        ...


class LiveAsk:
    """The real one: processes, sockets, HTTP."""

    def __init__(self, cell: LiveCell, block_bytes: int) -> None:
        self._cell = cell
        self._block_bytes = block_bytes

    def ask(self, asks: Sequence[Ask], fault: Fault | None = None) -> list[Answer]:
        answers = [Answer() for _ in asks]
        happens: Callable[[], None] | None = None
        if fault is not None:
            happens = self._prepare(fault)
        asyncio.run(self._ask(asks, answers, fault, happens))
        return answers

    def settle(self) -> None:
        self._cell.wait_idle()

    def set_role(self, node: str, role: Role) -> None:
        response = self._cell.http.post(f"/v1/nodes/{node}/role", json={"role": role})
        assert response.status_code == 200, response.text

    def total(self, counter: str) -> int:
        time.sleep(STATUS_S)
        return self._cell.total(counter)

    def roles(self) -> dict[str, str]:
        return {row["id"]: row["role"] for row in self._cell.status()["nodes"]}

    def num_decided(self, what: str) -> int:
        time.sleep(STATUS_S)
        rows = self._cell.http.get("/v1/decisions?limit=200").json()["decisions"]
        return sum(row["times"] for row in rows if row["what"] == what)

    def _prepare(self, fault: Fault) -> Callable[[], None]:
        if fault.role is not None:
            node, role = fault.node, fault.role
            return lambda: self.set_role(node, role)
        (pid,) = [row["pid"] for row in self._cell.status()["nodes"] if row["id"] == fault.node]
        return lambda: os.kill(pid, signal.SIGSTOP if fault.hangs else signal.SIGKILL)

    async def _ask(
        self,
        asks: Sequence[Ask],
        answers: Sequence[Answer],
        fault: Fault | None,
        happens: Callable[[], None] | None,
    ) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self._cell.url, timeout=WAIT_S, limits=limits
        ) as client:
            running = asyncio.gather(
                *(self._one(client, ask, answer) for ask, answer in zip(asks, answers))
            )
            while not running.done():
                if happens is not None and fault is not None:
                    if sum(answer.num_tokens for answer in answers) >= fault.after_tokens:
                        await asyncio.to_thread(happens)
                        happens = None
                await asyncio.wait([running], timeout=0.005)
            await running
        assert happens is None, "all had ended before it could happen"

    async def _one(self, client: httpx.AsyncClient, ask: Ask, answer: Answer) -> None:
        body = {
            "prompt": list(ask.prompt), "max_tokens": ask.max_tokens, "ignore_eos": True,
            "temperature": 0, "stream": True, "return_token_ids": True, "include_pd_metrics": True,
        }  # fmt: skip
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                rejected = response.status_code in (400, 429, 503)
                answer.status = "rejected" if rejected else str(response.status_code)
                return
            with contextlib.suppress(_LeftError):
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        _take(json.loads(line[6:]), ask, answer)
            answer.moved_blocks /= self._block_bytes


class _LeftError(Exception):
    """The client has enough."""


def _take(event: dict[str, Any], ask: Ask, answer: Answer) -> None:
    if "error" in event:
        answer.status = event["error"]["message"]
        return
    for choice in event["choices"]:
        answer.num_tokens += len(choice.get("token_ids") or ())
        if choice["finish_reason"]:
            answer.status = "ok"
    for request in (event.get("pd") or {}).get("requests", ()):
        answer.prefill, answer.decode = request["prefill_node"], request["decode_node"]
        answer.moved_blocks = request["kv_moved_bytes"]
        answer.attempts = request["attempts"]
    if ask.leave_after is not None and answer.num_tokens >= ask.leave_after:
        answer.status = "left"
        raise _LeftError


@dataclass
class SimAsk:
    """The simulated one."""

    cell: SimCell
    _answers: dict[str, Answer] = field(default_factory=dict)
    _decided: Counter[str] = field(default_factory=Counter)

    @classmethod
    def start(cls, counts: Mapping[Role, int], num_blocks: int, options: dict[str, Any]) -> SimAsk:
        config = Config.from_dict(None, **{**options, **counts})
        groups = tuple(
            NodeGroup(role, count, COST, num_blocks, BLOCK_BYTES)
            for role, count in counts.items()
            if count
        )
        spec = CellSpec(groups, config, restart_s=4.0)
        asked: list[SimAsk] = []
        cell = SimCell(
            spec,
            id_tokens=BLOCK_SIZE,
            on_note=lambda now, kind, about, more: asked and asked[0]._note(kind, about, more),
        )
        asked.append(cls(cell))
        return asked[0]

    def ask(self, asks: Sequence[Ask], fault: Fault | None = None) -> list[Answer]:
        cell = self.cell
        self._answers = {}
        for number, ask in enumerate(asks):
            cell.queue.at(cell.now + number * SPREAD_S, self._submit, ask)
        happened = fault is None
        while len(self._answers) < len(asks) or cell.gateway.running:
            cell.queue.run_until(cell.now + SLICE_S)
            cell.catch_up()
            self._count(asks)
            num_tokens = sum(answer.num_tokens for answer in self._answers.values())
            if fault is not None and not happened and num_tokens >= fault.after_tokens:
                happened = True
                self._happens(fault)
        assert happened, "all had ended before it could happen"
        return list(self._answers.values())

    def settle(self) -> None:
        check_idle(self.cell)

    def set_role(self, node: str, role: Role) -> None:
        self.cell.set_role(node, role)

    def total(self, counter: str) -> int:
        return sum(
            getattr(member.core.snapshot(self.cell.now), counter) for member in self.cell.nodes()
        )

    def roles(self) -> dict[str, str]:
        nodes = self.cell.coordinator.members.nodes.values()
        return {node.id: node.hello.role for node in nodes}

    def num_decided(self, what: str) -> int:
        return self._decided[what]

    # -------------------------------------------------------------- inside
    def _submit(self, ask: Ask) -> None:
        ends = range(BLOCK_SIZE, len(ask.prompt) + BLOCK_SIZE, BLOCK_SIZE)
        prefix = tuple(hash(ask.prompt[:end]) for end in ends)
        arrival = Arrival(self.cell.now, len(ask.prompt), ask.max_tokens, prefix)
        self._answers[f"r{self.cell.gateway.num_submitted}"] = Answer()
        self.cell.gateway.submit(arrival)

    def _happens(self, fault: Fault) -> None:
        if fault.role is None:
            self.cell.kill(fault.node)
        else:
            self.set_role(fault.node, fault.role)

    def _count(self, asks: Sequence[Ask]) -> None:
        for (request_id, answer), ask in zip(list(self._answers.items()), asks):
            running = self.cell.gateway.running.get(request_id)
            if running is None:
                continue
            answer.num_tokens, answer.attempts = running.record.num_output, running.record.attempts
            if ask.leave_after is not None and answer.num_tokens >= ask.leave_after:
                self.cell.gateway.cancel(request_id)
                answer.status = "left"

    def _note(self, kind: str, about: str, more: Mapping[str, Any]) -> None:
        if kind == "decided":
            self._decided[about] += 1
        answer = self._answers.get(about)
        if answer is None:
            return
        if kind == "place":
            answer.prefill, answer.decode = more["prefill"], more["decode"]
        elif kind == "handed over":
            answer.moved_blocks = more["moved_bytes"] / BLOCK_BYTES
        elif kind == "resume":
            answer.attempts += 1
        elif kind == "end":
            answer.status, answer.num_tokens = more["status"], more["tokens"]
