"""`CellLink`: the asyncio bridge between HTTP handlers and the cell.

Handlers get a `TokenStream` from `submit`; joining the cell, taking its messages apart and
ending requests happen here, and `continuity` keeps their work going meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from pd.errors import RejectedError
from pd.gateway.continuity import Continuity, LinkOptions
from pd.gateway.courier import Courier, Mailbox
from pd.gateway.journal import Journal
from pd.gateway.membership import Joined, Membership
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.stream import RunningRequest, StreamFailedError, TokenStream
from pd.gateway.trace_context import TraceContext
from pd.gateway.tracing import Tracer
from pd.messages import (
    COORDINATOR,
    Admitted,
    Cancel,
    CellStatus,
    ChangeRole,
    Finished,
    Interrupted,
    Message,
    Peers,
    Rejected,
    RoleChanged,
    Started,
    Tokens,
    Welcome,
)  # fmt: skip
from pd.types import Peer, Request, Role, TokenEvent

log = logging.getLogger(__name__)

_TICK_S = 0.05
_ANSWER_S = 5.0
_SLICE_S = 0.002
_RETIRED_S = 2.0  # tokens of a request that ended this recently were merely on their way


class CellLink:
    """Everything between one gateway and its cell. Lives in one event loop."""

    def __init__(
        self,
        gateway_id: str,
        mailbox: Mailbox,
        coordinator: Peer,
        metrics: GatewayMetrics,
        options: LinkOptions = LinkOptions(),  # noqa: B008
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer | None = None,
    ) -> None:
        self.options = options
        self.clock = clock
        self.metrics = metrics
        self._mailbox = mailbox
        self._courier = Courier(mailbox, clock, options.send_timeout_s, 4 * options.max_streams)
        self.membership = Membership(
            gateway_id, mailbox, coordinator, clock,
            heartbeat_s=options.heartbeat_s, timeout_s=options.coordinator_timeout_s,
        )  # fmt: skip
        self.journal = Journal(metrics, clock, tracer=tracer)
        self._tracer = tracer
        self._continuity = Continuity(
            self._courier, metrics, self.journal, options, clock, self._retire
        )
        self._running: dict[str, RunningRequest] = {}
        self._retired: dict[str, float] = {}
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._num_asked = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._stopped = False

    # ------------------------------------------------------------------ for handlers
    @property
    def id(self) -> str:
        return self.membership.id

    @property
    def running(self) -> tuple[RunningRequest, ...]:
        return tuple(self._running.values())

    def status(self) -> CellStatus:
        return self.membership.status

    def readiness(self) -> tuple[bool, str]:
        if self._closing:
            return False, "the server is shutting down"
        return self.membership.readiness()

    def submit(self, requests: Sequence[Request], trace: TraceContext | None = None) -> TokenStream:
        """Hand requests to the cell; raises RejectedError when that is pointless now. `trace` is
        the one that they belong to: without, and with traces on, each begins one."""
        if self._closing or not self.membership.joined:
            raise RejectedError(self.readiness()[1], status=503)
        if len(self._running) + len(requests) > self.options.max_streams:
            raise RejectedError(
                f"{len(self._running)} requests are in flight and this gateway's limit is "
                f"{self.options.max_streams}; try again later"
            )
        stream = TokenStream(
            requests, self.clock(), max_backlog=self.options.max_backlog, cancel=self._cancel
        )
        self._idle.clear()
        for running in stream.requests:
            running.trace = trace or (None if self._tracer is None else TraceContext.new())
            self._running[running.id] = running
            self._continuity.submit(running, running.record.start())
        return stream

    async def change_role(self, node_id: str, role: Role, *, migrate: bool) -> str:
        """Ask the coordinator to give a node another role; returns why it does not, or nothing.

        RejectedError if it does not answer."""
        if self._closing or not self.membership.joined:
            raise RejectedError(self.readiness()[1], status=503)
        self._num_asked += 1
        call = self._num_asked
        answer = self._asked[call] = asyncio.get_running_loop().create_future()
        try:
            self._courier.send(ChangeRole(call, node_id, role, migrate))
            return await asyncio.wait_for(answer, _ANSWER_S)
        except asyncio.TimeoutError:
            raise RejectedError(
                f"the coordinator has not answered for {_ANSWER_S:g} s; ask for the role again, "
                "which changes nothing if it was changed",
                status=503,
            ) from None
        finally:
            del self._asked[call]

    # ------------------------------------------------------------------ life
    def start(self) -> None:
        """Join the cell and keep up with it, in tasks of the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._receive()), loop.create_task(self._tick())]

    async def await_cell(self, timeout_s: float) -> None:
        """Return once the cell has said how it is, or after so long: until then it is of no use."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.membership.told.wait(), timeout_s)

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, and wait for those that run."""
        self._closing = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    def fail_all(self, error: Exception) -> None:
        """End every stream with this error; new ones are refused from now on."""
        self._closing = True
        for running in self.running:
            running.stream.fail(error)

    async def close(self) -> None:
        self.fail_all(StreamFailedError("the server is shutting down", status=503))
        self._courier.retry()
        self._stopped = True  # a cancellation can be lost to a message that arrives with it
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._mailbox.close(linger_s=0.2)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _receive(self) -> None:
        busy_since_s = self.clock()
        while not self._stopped:
            received = await self._mailbox.recv(1.0)
            if received is None:
                continue
            # A socket that always has more never suspends: let handlers write in between.
            if self.clock() - busy_since_s > _SLICE_S:
                await asyncio.sleep(0)
                busy_since_s = self.clock()
            try:
                self._on_message(*received)
            except Exception:  # one bad message must not end all streams
                log.exception("cannot handle %s from %s", type(received[1]).__name__, received[0])

    async def _tick(self) -> None:
        next_watch_s = self.clock() + self.options.watch_s
        while True:
            self.membership.beat()
            self._courier.retry()
            if self.clock() >= next_watch_s:
                next_watch_s = self.clock() + self.options.watch_s
                self._watch()
            await asyncio.sleep(_TICK_S)

    # ------------------------------------------------------------------ from the cell
    def _on_message(self, sender: str, message: Message) -> None:
        if type(message) is Tokens:
            self._on_tokens(message)
            return
        if sender == COORDINATOR:
            self.membership.heard_s = self.clock()
        match message:
            case Admitted():
                self._on_admitted(message)
            case Rejected():
                self._on_rejected(message)
            case Interrupted():
                self._on_interrupted(message)
            case RoleChanged():
                answer = self._asked.get(message.call)
                if answer is not None and not answer.done():
                    answer.set_result(message.error)
            case Started():
                self._on_started(message)
            case CellStatus():
                self.membership.on_status(message)
                self.journal.status(message)
            case Peers():
                self.membership.on_peers(message)
            case Welcome():
                self._on_welcome(message)
            case _:
                log.warning("unexpected %s from %s", type(message).__name__, sender)

    def _on_welcome(self, message: Welcome) -> None:
        joined = self.membership.on_welcome(message)
        if joined is Joined.AS_BEFORE:
            return
        log.warning("%s: %s", joined.value, f"{len(self._running)} requests")
        self._courier.clear()
        for running in self.running:
            if joined is Joined.ANEW:
                self._continuity.restate(running)
            else:
                self._continuity.resume_all(running, "the cell had given up its gateway")

    def _on_tokens(self, message: Tokens) -> None:
        now = self.clock()
        running_of = self._running.get
        for request_id, (fetch_s, compute_s) in message.prefilled.items():
            running = running_of(request_id)
            if running is not None:
                running.timeline.prefilled(fetch_s, compute_s)
        for event in message.rows():
            running = running_of(event.request_id)
            if running is None:
                self._on_orphan(event, now, message.node)
                continue
            events = running.record.on_token(event)
            if events:
                self._deliver(running, events, now)

    def _deliver(self, running: RunningRequest, events: list[TokenEvent], now: float) -> None:
        last = events[-1]
        clock = running.timeline.clocks[last.index]
        if clock.tokens == 0:
            self.metrics.first_token(now - running.timeline.arrival_s, now)
        else:
            self.metrics.itl.observe(now - clock.last_s)
        clock.arrived(now, len(events))
        running.progress_s = now
        running.answer_by_s = None
        stream = running.stream
        stream.push(running.number, events)
        if last.finish is not None:
            if last.finish in ("stop", "length"):
                timeline = running.timeline
                self._courier.send(
                    Finished(running.id, (last.index,), timeline.ttft_s, clock.tokens)
                )
            else:
                stream.fail(StreamFailedError(f"a node ended the request: {last.finish}"))
            self._retire(running)
        elif stream.overflowed:
            stream.fail(
                StreamFailedError(
                    f"the client left more than {self.options.max_backlog} tokens unread"
                )
            )

    def _on_orphan(self, event: TokenEvent, now: float, node: str) -> None:
        """A node still works for a request that has ended here: its Cancel was lost."""
        if now - self._retired.get(event.request_id, float("-inf")) > _RETIRED_S:
            self._retired[event.request_id] = now
            self._courier.send(Cancel(event.request_id, (event.index,), node, event.attempt))

    def _on_admitted(self, message: Admitted) -> None:
        running = self._running.get(message.request_id)
        if running is None:
            self._disown(message)
            return
        running.answer_by_s = None
        running.record.on_admitted(message)
        running.timeline.admitted(self.clock())
        if running.runs(message.indices, message.attempt):
            running.prefill, running.decode = message.prefill, message.decode

    def _on_started(self, message: Started) -> None:
        self.metrics.started(message)
        running = self._running.get(message.request_id)
        if running is not None:
            running.moved_bytes += message.moved_bytes
            running.early_bytes += message.early_bytes
            running.handoff_wait_s += message.wait_s
            running.timeline.moved(message.wait_s)

    def _disown(self, message: Admitted | Interrupted) -> None:
        """The cell keeps a place for a request that has ended here: refused, and then taken after
        all when a second copy of its Submit came, or cancelled while its Cancel was lost."""
        self._courier.send(Cancel(message.request_id, message.indices))

    def _on_interrupted(self, message: Interrupted) -> None:
        running = self._running.get(message.request_id)
        if running is None:
            self._disown(message)
            return
        indices = message.indices
        if message.unstarted_only:
            indices = running.record.unstarted(indices)
        self._continuity.resume(running, indices, message.attempt, message.reason)

    def _on_rejected(self, message: Rejected) -> None:
        running = self._running.get(message.request_id)
        if running is not None:
            self._continuity.on_rejected(running, message)

    # ------------------------------------------------------------------ ends
    def _cancel(self, running: RunningRequest, indices: tuple[int, ...]) -> None:
        self._courier.send(Cancel(running.id, indices))
        self._retire(running)

    def _retire(self, running: RunningRequest) -> None:
        if running.record.finished and self._running.pop(running.id, None) is not None:
            running.timeline.end_s = self._retired[running.id] = self.clock()
            running.stream.retire()
            self.journal.ended(running, running.timeline.end_s)
            if not self._running:
                self._idle.set()

    def _watch(self) -> None:
        now = self.clock()
        self.journal.tick(self.status)
        for running in self.running:
            self._continuity.watch(running, now, self.membership.silence_s)
        for request_id, ended_s in list(self._retired.items()):
            if now - ended_s > 10 * _RETIRED_S:
                del self._retired[request_id]
