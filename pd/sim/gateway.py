"""A thin gateway: the live records of requests, and when their tokens came. No HTTP, no text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pd.config import Config
from pd.gateway.record import RequestRecord
from pd.messages import (
    Admitted,
    Cancel,
    Finished,
    Interrupted,
    Message,
    Peers,
    Rejected,
    Started,
    Submit,
    Welcome,
)
from pd.sim.outbox import Streams
from pd.sim.prompts import TOKEN, CompactPrompt, SimRequest, as_prompt
from pd.timeline import Timeline
from pd.types import SLO, SamplingParams, TokenEvent
from pd.workload.arrival import Arrival
from pd.workload.outcome import Outcome, Status

if TYPE_CHECKING:
    from pd.sim.cell import SimCell

GATEWAY = "gateway-0"
_MIN_RETRY_S = 0.1
_CANCELLED = "cancelled"


@dataclass(slots=True)
class Running:
    """A request that has not ended."""

    arrival: Arrival
    record: RequestRecord
    timeline: Timeline
    rejected: Rejected | None = None
    decode: str = ""  # the node that was last chosen to decode it


class SimGateway:
    """Turns arrivals into requests, and what comes of them into outcomes, in order of their
    ends. `on_end` hears of each."""

    def __init__(self, cell: SimCell, id_tokens: int, on_end: Callable[[Outcome], None]) -> None:
        self.cell = cell
        self.id = GATEWAY
        self.epoch = 0
        self.alive = True
        self.peers: dict[str, int] = {}
        self.running: dict[str, Running] = {}
        self.num_submitted = 0
        self.interruptions = 0
        self._id_tokens = id_tokens
        self._slo = targets(cell.spec.config)
        self._on_end = on_end

    # -------------------------------------------------------------- clients
    def submit(self, arrival: Arrival) -> str:
        """A client asks, now; returns the request's id."""
        number, now = self.num_submitted, self.cell.now
        self.num_submitted += 1
        request_id = f"r{number}"
        # Below zero, where no trace has its ids.
        prompt = CompactPrompt(arrival.num_prompt, arrival.prefix, self._id_tokens, own=-1 - number)
        request = SimRequest(
            request_id, GATEWAY, as_prompt(prompt), _params(arrival.num_output), arrival_s=now,
            tenant=arrival.tenant, priority=arrival.priority, slo=arrival.slo or self._slo,
            session=arrival.session,
        )  # fmt: skip
        record = RequestRecord(request)
        self.running[request_id] = Running(arrival, record, Timeline(now, 1))
        self.cell.note("submit", request_id, prompt=arrival.num_prompt, output=arrival.num_output)
        self._send(Submit(record.start()))
        return request_id

    def cancel(self, request_id: str) -> None:
        """The client went away; nothing happens where all was over."""
        running = self.running.get(request_id)
        if running is None:
            return
        if running.decode in self.cell.members:
            self.cell.members[running.decode].catch_up()
        if indices := running.record.cancel():
            self._send(Cancel(request_id, indices))
            running.record.error = _CANCELLED
            self._ended(request_id, running, self.cell.now)

    # -------------------------------------------------------------- the cell
    def hear(self, sender: str, epoch: int, message: Message) -> None:
        if isinstance(message, Rejected):
            self._rejected(message)
        elif isinstance(message, Interrupted):
            self._interrupted(message)
        elif isinstance(message, Admitted):
            if message.request_id in self.running:
                self.running[message.request_id].decode = message.decode
            self.cell.note(
                "place", message.request_id, prefill=message.prefill, decode=message.decode,
                attempt=message.attempt,
            )  # fmt: skip
        elif isinstance(message, Started):
            self.cell.note(
                "handed over", message.request_id, moved_bytes=message.moved_bytes,
                early_bytes=message.early_bytes, cached_tokens=message.cached_tokens,
            )  # fmt: skip
        elif isinstance(message, Welcome):
            self.epoch = message.epoch
        elif isinstance(message, Peers):
            self.peers = self.cell.epochs_of(message)

    def take_first(self, events: Iterable[TokenEvent], time_s: float) -> None:
        """First tokens, which come at that time."""
        for event in events:
            running = self.running.get(event.request_id)
            if running is not None and (taken := len(running.record.on_token(event))):
                self._took(running, event, taken, time_s)

    def take(self, streams: Streams, time_s: float) -> None:
        """Whatever these sequences have drawn that is not here yet; the last of it came then."""
        for seq, reason in streams:
            request_id, index = seq.key
            running = self.running.get(request_id)
            if running is None:
                continue
            position = len(running.record.sequences[index].tokens)
            count = seq.num_output - position
            event = TokenEvent(request_id, index, seq.attempt, position, TOKEN, reason)
            if count > 0 and running.record.on_run(event, count):
                self._took(running, event, count, time_s)

    def _took(self, running: Running, event: TokenEvent, count: int, time_s: float) -> None:
        record, clock = running.record, running.timeline.clocks[event.index]
        if not clock.tokens:
            self.cell.note("first token", event.request_id)
        clock.arrived(time_s, count)
        if record.sequences[event.index].finish is not None:
            ttft_s = running.timeline.ttft_s
            self._send(Finished(event.request_id, (event.index,), ttft_s, clock.tokens))
            if record.finished:
                self._ended(event.request_id, running, time_s)

    # -------------------------------------------------------------- inside
    def _rejected(self, message: Rejected) -> None:
        running = self.running.get(message.request_id)
        if running is None:
            return
        if message.attempt and message.status in (429, 503):
            # As the live gateway: a client that waits or reads already waits for room.
            works = running.record.on_refused(message.indices, message.attempt, message.message)
            again = self.cell.now + max(message.retry_after_s, _MIN_RETRY_S)
            for work in works:
                self.cell.queue.at(again, self._send, Submit(work))
            return
        self.cell.note(
            "rejected", message.request_id, code=message.status, reason=message.message,
            retry_after_s=message.retry_after_s,
        )  # fmt: skip
        running.rejected = message
        running.record.fail(message.indices, message.message)
        if running.record.finished:
            self._ended(message.request_id, running, self.cell.now)

    def _interrupted(self, message: Interrupted) -> None:
        running = self.running.get(message.request_id)
        if running is None:
            return
        record, indices = running.record, message.indices
        if message.unstarted_only:
            indices = record.unstarted(indices)
        for work in record.on_interrupted(indices, message.attempt, message.reason):
            self.interruptions += 1
            self.cell.note("resume", message.request_id, reason=message.reason)
            self._send(Submit(work))
        if record.finished:
            self._ended(message.request_id, running, self.cell.now)

    def _ended(self, request_id: str, running: Running, now: float) -> None:
        del self.running[request_id]
        record, timeline, rejected = running.record, running.timeline, running.rejected
        status: Status = "ok"
        if rejected is not None and not rejected.attempt:
            status = "rejected"
        elif record.error is not None:
            status = "error"
        self.cell.note("end", request_id, status=status, tokens=record.num_output)
        self._on_end(
            Outcome(
                running.arrival, timeline.ttft_s, timeline.tpot_s, record.num_output, status, now,
                timeline.arrival_s, detail=record.error or "",
            )
        )  # fmt: skip

    def _send(self, message: Message) -> None:
        self.cell.to_coordinator(self, message)


def targets(config: Config) -> SLO:
    """The deployment's own, for requests that bring none."""
    ttft_ms, tpot_ms = config.slo.ttft_ms, config.slo.tpot_ms
    return SLO(
        None if ttft_ms is None else ttft_ms / 1e3, None if tpot_ms is None else tpot_ms / 1e3
    )


@lru_cache(maxsize=1 << 14)
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
