"""A cell in memory: the gateway's mailbox, with a coordinator and two nodes behind it.

Tokens are scripted, so every test knows what its client must see. The attributes say how the
cell behaves; tests set them before a request, from another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from text_model import EOS

from pd.messages import (
    COORDINATOR,
    Admitted,
    Cancel,
    CellStatus,
    ChangeRole,
    Finished,
    GatewayHello,
    Heartbeat,
    Interrupted,
    Message,
    Ongoing,
    Rejected,
    RoleChanged,
    Submit,
    Tokens,
    Welcome,
)
from pd.types import Notice, Peer, Request, TokenEvent, Work

PREFILL, DECODE = "prefill-0", "decode-0"
Script = Callable[[Request, int], list[int]]


def text_tokens(text: str) -> list[int]:
    return [*text.encode(), EOS]


class FakeCell:
    def __init__(self) -> None:
        self.endpoint = "inproc://fake"
        self.epoch = 0
        self.closed = False
        self._queue: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.reset()

    def reset(self) -> None:
        """The friendly cell: admits everything, says "hello world", at once."""
        self.script: Script = lambda request, index: text_tokens("hello world")
        self.step_s = 0.0
        self.reject: Callable[[Work], Rejected | None] = lambda work: None
        self.silent = False  # takes messages and never answers
        self.full = False  # takes no messages
        self.welcome = True
        self.ready = True
        self.interrupt_after: dict[int, int] = {}  # attempt -> tokens it delivers first
        self.lose: set[tuple[int, int]] = set()  # (attempt, position) lost on the way
        self.swap_first = False  # the first token arrives after the second
        self.fail_with: str | None = None  # a node's finish reason for the third token
        self.logprobs: Callable[[int], tuple[float, tuple[tuple[int, float], ...]]] | None = None
        self.nodes: tuple[dict[str, Any], ...] = (
            {"id": PREFILL, "role": "prefill", "epoch": 2, "num_waiting": 3, "free_blocks": 10},
            {"id": DECODE, "role": "decode", "epoch": 3, "num_waiting": 0, "free_blocks": 5},
        )
        self.notices: list[Notice] = []
        self.works: list[Work] = []
        self.role_changes: list[ChangeRole] = []
        self.role_refusal = ""
        self.cancels: list[Cancel] = []
        self.finished: list[Finished] = []
        self.ongoing: list[Ongoing] = []
        self.running: set[tuple[str, int, int]] = set()
        self.emitted = 0

    # ------------------------------------------------------------------ the mailbox
    def connect(self, peer: Peer) -> None:
        pass

    def forget(self, peer_id: str) -> None:
        pass

    def close(self, linger_s: float = 0.0) -> None:
        self.closed = True
        for task in self._tasks:
            task.cancel()

    async def recv(self, timeout_s: float) -> tuple[str, Message] | None:
        try:
            return await asyncio.wait_for(self._queue.get(), timeout_s)
        except asyncio.TimeoutError:
            return None

    def send(self, peer_id: str, message: Message) -> bool:
        assert peer_id == COORDINATOR
        if self.full:
            return False
        if isinstance(message, GatewayHello):
            if self.welcome:
                self.say(Welcome(message.gateway_id, message.incarnation, self.epoch or 1))
                self.say_status()
        elif isinstance(message, Heartbeat):
            if not self.silent:
                self.say_status()
        elif isinstance(message, Submit):
            self._on_submit(message.work)
        elif isinstance(message, ChangeRole):
            self.role_changes.append(message)
            if not self.silent:
                self.say(RoleChanged(message.call, self.role_refusal))
        elif isinstance(message, Cancel):
            self.cancels.append(message)
            for index in message.indices:
                self.running = {r for r in self.running if r[:2] != (message.request_id, index)}
        elif isinstance(message, Ongoing):
            self.ongoing.append(message)
        elif isinstance(message, Finished):
            self.finished.append(message)
        return True

    # ------------------------------------------------------------------ the cell
    def say(self, message: Message, sender: str = COORDINATOR) -> None:
        self._queue.put_nowait((sender, message))

    def say_status(self) -> None:
        reason = "" if self.ready else "no decode node is up"
        nodes = self.nodes if self.ready else ()
        self.say(
            CellStatus(self.ready, reason, nodes, len(self.running), notices=tuple(self.notices))
        )

    def _on_submit(self, work: Work) -> None:
        self.works.append(work)
        if self.silent:
            return
        rejected = self.reject(work)
        if rejected is not None:
            self.say(rejected)
            return
        request_id = work.request.request_id
        why = {"cached_tokens": 8, "fetch_from": "pool-0", "predicted_ttft_s": 0.25}
        self.say(Admitted(request_id, work.indices, work.attempt, PREFILL, DECODE, **why))  # type: ignore[arg-type]
        for index in work.indices:
            self.running.add((request_id, index, work.attempt))
        task = asyncio.get_running_loop().create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Work) -> None:
        request, attempt = work.request, work.attempt
        scripts = {index: self.script(request, index) for index in work.indices}
        position = len(work.output)
        held: list[Tokens] = []
        while True:
            live = [i for i in work.indices if (request.request_id, i, attempt) in self.running]
            if not live:
                return
            if self.interrupt_after.get(attempt) == position - len(work.output):
                self.say(Interrupted(request.request_id, tuple(live), attempt, "told to"), DECODE)
                self.running -= {(request.request_id, i, attempt) for i in live}
                return
            events = [self._event(request, i, attempt, position, scripts[i]) for i in live]
            for event in events:
                if event.finish is not None:
                    self.running.discard((request.request_id, event.index, attempt))
            node = PREFILL if position == len(work.output) else DECODE
            batch = Tokens.pack(events, node)
            if position == len(work.output):
                batch.prefilled[request.request_id] = (0.0, 1e-6)
            if self.swap_first and position == len(work.output):
                held.append(batch)
            elif (attempt, position) not in self.lose:
                self.say(batch, node)
                self.emitted += len(events)
                while held:
                    self.say(held.pop(), PREFILL)
            position += 1
            await asyncio.sleep(self.step_s)

    def _event(
        self, request: Request, index: int, attempt: int, position: int, script: list[int]
    ) -> TokenEvent:
        token = script[position % len(script)]
        params = request.params
        finish: Any = None
        if token in (*request.eos_token_ids, *params.stop_token_ids) and not params.ignore_eos:
            finish = "stop"
        elif position + 1 >= params.max_tokens:
            finish = "length"
        if self.fail_with is not None and position == 2:
            finish = self.fail_with
        logprob, top = None, ()
        if params.logprobs is not None and self.logprobs is not None:
            logprob, top = self.logprobs(token)
            top = top[: params.logprobs]
        return TokenEvent(request.request_id, index, attempt, position, token, finish, logprob, top)
