"""What a handler holds while its requests run: their records, and one inbox for their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pd.errors import RejectedError, RequestError
from pd.gateway.record import RequestRecord
from pd.gateway.trace_context import TraceContext
from pd.timeline import Timeline
from pd.types import FinishReason, Request, TokenEvent

Outcome = Literal["finished", "cancelled", "rejected", "failed"]


class StreamFailedError(RequestError):
    """The cell accepted the request and could not finish it."""

    def __init__(self, message: str, *, status: int = 500) -> None:
        super().__init__(message, status=status, code="generation_failed", kind="server_error")


class ClientGoneError(Exception):
    """The client disconnected: nobody is left to answer."""


class RunningRequest:
    """One request in flight: its record, its times and where it runs.

    `answer_by_s` is when the coordinator has to have admitted or rejected it, None once it has.
    """

    __slots__ = (
        "record", "stream", "number", "timeline", "progress_s", "gap_since_s",
        "answer_by_s", "prefill", "decode", "interruptions", "outcome",
        "moved_bytes", "early_bytes", "handoff_wait_s", "trace",
    )  # fmt: skip

    def __init__(self, request: Request, stream: TokenStream, number: int, now: float) -> None:
        self.record = RequestRecord(request)
        self.stream = stream
        self.number = number  # which prompt of the stream
        self.timeline = Timeline(now, request.params.n)
        self.progress_s = now
        self.gap_since_s: float | None = None
        self.answer_by_s: float | None = None
        self.prefill = ""
        self.decode = ""
        self.interruptions = 0
        # Of all attempts together; see `Started`.
        self.moved_bytes = 0
        self.early_bytes = 0
        self.handoff_wait_s = 0.0
        self.trace: TraceContext | None = None  # which trace it belongs to, if any
        self.outcome: Outcome | None = None  # set where it does not follow from the record

    @property
    def id(self) -> str:
        return self.record.request.request_id

    @property
    def trace_id(self) -> str:
        return "" if self.trace is None else self.trace.trace_id

    def runs(self, indices: Iterable[int], attempt: int) -> bool:
        """Whether this attempt of these sequences is the current one and goes on."""
        sequences = self.record.sequences
        return all(
            0 <= index < len(sequences)
            and sequences[index].attempt == attempt
            and sequences[index].finish is None
            for index in indices
        )

    @property
    def started(self) -> bool:
        """Whether its client may have seen a token."""
        return self.record.num_output > 0

    def attained(self) -> bool | None:
        """Whether it met its SLO; None if it has none."""
        slo = self.record.request.slo
        if slo.ttft_s is None and slo.tpot_s is None:
            return None
        return not self.missed()

    def missed(self) -> tuple[str, ...]:
        """The targets that it missed, of those it has; "end" if it was not answered whole."""
        slo = self.record.request.slo
        if slo.ttft_s is None and slo.tpot_s is None:
            return ()
        if any(seq.finish not in ("stop", "length") for seq in self.record.sequences):
            return ("end",)
        return self.timeline.missed(slo)


class TokenStream:
    """The tokens of one or more requests, woken once per step however many there are.

    Made by `CellLink.submit`. `next()` returns (request number, event) pairs; when it returns
    none, everything has finished. Leaving the `async with` cancels whatever still runs.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        now: float,
        *,
        max_backlog: int,
        cancel: Callable[[RunningRequest, tuple[int, ...]], None],
    ) -> None:
        self.requests = [RunningRequest(each, self, i, now) for i, each in enumerate(requests)]
        self._cancel = cancel
        self._max_backlog = max_backlog
        self._remaining = len(requests)
        self._inbox: list[tuple[int, TokenEvent]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def next(self) -> list[tuple[int, TokenEvent]]:
        """The tokens since the last call, waiting for at least one; [] once all is finished.

        Raises RejectedError or RequestError if the cell refused, StreamFailedError if it could
        not finish, ClientGoneError after `disconnect`. Tokens that came before a failure are
        returned first.
        """
        while True:
            if self._inbox:
                batch, self._inbox = self._inbox, []
                return batch
            if self._error is not None:
                raise self._error
            if not self._remaining:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def push(self, number: int, events: Iterable[TokenEvent]) -> None:
        inbox = self._inbox
        for event in events:  # nearly always one: cheaper than a generator
            inbox.append((number, event))
        self._wake()

    def retire(self) -> None:
        """One of the requests has ended for good."""
        self._remaining -= 1
        self._wake()

    @property
    def overflowed(self) -> bool:
        return len(self._inbox) > self._max_backlog

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the whole stream with this error, unless it has one; frees its place in the cell."""
        if self._error is None:
            self._error = error
            outcome: Outcome = "failed"
            if isinstance(error, RejectedError):
                outcome = "rejected"
            elif isinstance(error, ClientGoneError):
                outcome = "cancelled"
            for running in self.requests:
                running.outcome = running.outcome or outcome
            self.cancel()
            self._wake()

    def disconnect(self) -> None:
        """The client went away: cancel at once, and let the handler notice."""
        self._inbox.clear()
        self.fail(ClientGoneError())

    def cancel(self) -> None:
        """Cancel whatever still runs. Harmless when nothing does."""
        for running in self.requests:
            indices = running.record.cancel()
            if indices:
                self._cancel(running, indices)

    def stop(self, number: int, index: int, reason: FinishReason = "stop") -> None:
        """The gateway ends one sequence itself, because its text holds a stop string."""
        running = self.requests[number]
        if running.record.end(index, reason):
            self._cancel(running, (index,))


def rejection(status: int, message: str, retry_after_s: float) -> RequestError:
    """The error that a coordinator's `Rejected` is for a client."""
    if status in (429, 503):
        return RejectedError(message, status=status, retry_after_s=retry_after_s)
    if 400 <= status < 500:
        return RequestError(message, status=status)
    return StreamFailedError(message)
