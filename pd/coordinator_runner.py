"""The live loop around the coordinator: its mailbox, its clock, and who reports dead processes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from pd.coordinator import Coordinator
from pd.mailbox import Mailbox
from pd.messages import (
    SUPERVISOR,
    CellStatus,
    Draining,
    GatewayHello,
    Heartbeat,
    Message,
    NodeHello,
    RoleChanged,
    Scaling,
    Welcome,
)
from pd.outbox import Decided, Kill, Send
from pd.types import Notice, Peer

log = logging.getLogger(__name__)

_TICK_S = 0.1
_MAX_MESSAGES = 256
_MAX_NOTICES = 16  # told again with every status, as one may be lost


class CoordinatorRunner:
    """Drives the coordinator until `stop`. `kill(id, incarnation)` ends a process that hangs;
    `meet(id)` hears of everyone who says hello, and of those whom they know.

    `process_lost`, `ask`, `status` and `idle_s` may be called from any thread.
    """

    def __init__(
        self,
        core: Coordinator,
        mailbox: Mailbox,
        kill: Callable[[str, int], None],
        meet: Callable[[str], None] = lambda member_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._mailbox = mailbox
        self._kill = kill
        self._meet = meet
        self._clock = clock
        self._losses: queue.SimpleQueue[tuple[str, int, str]] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[tuple[Callable[[int], Message], Future[str]]] = (
            queue.SimpleQueue()
        )
        self._asked: dict[int, Future[str]] = {}
        self._num_asked = 0
        self._introduced: dict[str, NodeHello | GatewayHello] = {}
        self._status = core.status(clock())
        self._turned_s = clock()
        self._notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        self._stopping = threading.Event()
        mailbox.epoch = core.limits.epoch
        mailbox.on_held = self._alive

    @property
    def status(self) -> CellStatus:
        """The cell as it was at the last turn of the loop."""
        return self._status

    def idle_s(self) -> float:
        """Since the last turn of the loop."""
        return self._clock() - self._turned_s

    def process_lost(self, member_id: str, incarnation: int, reason: str) -> None:
        self._losses.put((member_id, incarnation, reason))
        self._mailbox.wake()

    def ask(self, question: Callable[[int], Message]) -> Future[str]:
        """Ask the coordinator as its supervisor. `question` makes the message that a call of this
        number is; the answer says why it is not done, or nothing."""
        answer: Future[str] = Future()
        self._questions.put((question, answer))
        self._mailbox.wake()
        return answer

    def stop(self) -> None:
        self._stopping.set()
        self._mailbox.wake()

    def run(self) -> None:
        next_tick = 0.0
        while not self._stopping.is_set():
            self._receive(max(0.0, next_tick - self._clock()))
            while not self._losses.empty():
                member_id, incarnation, reason = self._losses.get()
                log.warning("%s %s", member_id, reason)
                self._tell("lost", f"{member_id} was lost", reason)
                self._core.on_process_lost(member_id, incarnation, self._clock(), reason)
            while not self._questions.empty():
                question, answer = self._questions.get()
                self._num_asked += 1
                self._asked[self._num_asked] = answer
                self._core.on_message(SUPERVISOR, question(self._num_asked), self._clock())
            now = self._turned_s = self._clock()
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._core.tick(now)
                self._status = self._core.status(now)
            self._act()

    def _receive(self, timeout_s: float) -> None:
        for _ in range(_MAX_MESSAGES):
            received = self._mailbox.recv(timeout_s)
            if received is None:
                return
            sender, message = received
            if isinstance(message, NodeHello | GatewayHello):
                self._introduce(sender, message)
            self._core.on_message(sender, message, self._clock())
            self._act()
            timeout_s = 0.0

    def _alive(self, sender: str) -> None:
        """What it says has to wait for what it said before; that it lives is known now."""
        self._core.on_message(sender, Heartbeat(sender), self._clock())

    def _introduce(self, sender: str, hello: NodeHello | GatewayHello) -> None:
        """A process that has no epoch yet is addressed without one."""
        known = self._introduced.get(sender)
        if known is None or known.incarnation != hello.incarnation:
            self._introduced[sender] = hello
            self._mailbox.connect(Peer(sender, 0, hello.endpoints))
            for member_id in (sender, *(peer.id for peer in hello.peers)):
                self._meet(member_id)

    def _act(self) -> None:
        for effect in self._core.drain():
            if isinstance(effect, Send):
                self._send(effect.to, effect.message)
            elif isinstance(effect, Kill):
                log.error("ending %s: %s", effect.id, effect.reason)
                self._tell("kill", f"{effect.id} is ended", effect.reason)
                self._kill(effect.id, effect.incarnation)
            elif isinstance(effect, Decided):
                numbers = " ".join(f"{key}={value:.3g}" for key, value in effect.numbers.items())
                log.info("%s: %s (%s)", effect.what, effect.reason, numbers)
                self._tell("change", effect.what, effect.reason, effect.numbers)

    def _tell(
        self, kind: str, what: str, reason: str, numbers: Mapping[str, float] | None = None
    ) -> None:
        """Gateways hear of it with the next status."""
        self._notices.append(Notice(time.time(), kind, what, reason, dict(numbers or {})))

    def _send(self, to: str, message: Message) -> None:
        if to == SUPERVISOR:
            assert isinstance(message, RoleChanged | Draining | Scaling)
            error = "" if isinstance(message, Scaling) else message.error
            self._asked.pop(message.call).set_result(error)
            return
        if isinstance(message, CellStatus):
            message = replace(message, notices=tuple(self._notices))
        if not self._mailbox.send(to, message):
            self._core.on_undeliverable(to, message)
        if isinstance(message, Welcome):
            endpoints = self._introduced[to].endpoints
            self._mailbox.connect(Peer(to, message.epoch, endpoints))
