"""Keeps the work of running requests going in the cell, within bounds.

Submissions that nobody answers, interruptions, refusals of a continuation, tokens lost on
the way, streams that stand still: each is either resumed or ended here in bounded time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pd.errors import RejectedError
from pd.gateway.courier import Courier
from pd.gateway.journal import Journal
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.stream import RunningRequest, StreamFailedError, rejection
from pd.messages import Rejected, Submit
from pd.types import Work

log = logging.getLogger(__name__)

_MAX_BACKOFF_S = 2.0
_RETRY_AFTER_S = 5.0  # a coordinator that hangs takes about so long to be replaced


@dataclass(frozen=True)
class LinkOptions:
    """Bounds on every wait, in seconds, and on every queue."""

    heartbeat_s: float = 0.5
    send_timeout_s: float = 2.0  # a message that the socket does not take
    submit_timeout_s: float = 20.0  # a Submit that the coordinator does not answer
    coordinator_timeout_s: float = 30.0  # a silent coordinator, until the gateway is not ready
    recovery_timeout_s: float = 120.0  # a silent coordinator and a stream without progress
    stall_timeout_s: float = 300.0  # a stream without progress, whatever the reason
    gap_timeout_s: float = 5.0  # a token that is missing while later ones have arrived
    backoff_s: float = 0.05  # doubled with every attempt that made no progress
    watch_s: float = 1.0  # between two looks for all of these
    max_streams: int = 4096
    max_backlog: int = 8192  # tokens a stream keeps for a client that does not read


class Continuity:
    """Acts on one running request at a time; `retire` is called where it ends one."""

    def __init__(
        self,
        courier: Courier,
        metrics: GatewayMetrics,
        journal: Journal,
        options: LinkOptions,
        clock: Callable[[], float],
        retire: Callable[[RunningRequest], None],
    ) -> None:
        self._courier = courier
        self._metrics = metrics
        self._journal = journal
        self._options = options
        self._clock = clock
        self._retire = retire

    def submit(self, running: RunningRequest, work: Work) -> None:
        """Send a Submit, unless what it continues has ended or moved on since."""
        if not running.runs(work.indices, work.attempt):
            return
        if work.attempt == 0:
            running.answer_by_s = self._clock() + self._options.submit_timeout_s
        unreachable = RejectedError(
            "the coordinator cannot be reached; try again later", status=503
        )
        self._courier.send(Submit(work), on_lost=lambda: running.stream.fail(unreachable))

    def on_rejected(self, running: RunningRequest, message: Rejected) -> None:
        if not running.runs(message.indices, message.attempt):
            return
        if message.attempt == 0:
            self._journal.rejected(message.status, message.message)
            running.record.cancel()  # the cell has nothing of it: no Cancel is due
            running.stream.fail(rejection(message.status, message.message, message.retry_after_s))
            self._retire(running)
        elif message.status in (429, 503):
            # Its client waits or reads already: wait for room, within the bound on stalls.
            works = running.record.on_refused(message.indices, message.attempt, message.message)
            self._resubmit(running, works, max(message.retry_after_s, 0.1))
        else:
            running.stream.fail(StreamFailedError(message.message))

    def resume(
        self, running: RunningRequest, indices: Sequence[int], attempt: int, reason: str
    ) -> None:
        """Continue interrupted sequences in a new attempt, later where that keeps failing."""
        works = running.record.on_interrupted(indices, attempt, reason)
        if running.record.error is not None:
            running.stream.fail(StreamFailedError(running.record.error))
            self._retire(running)
            return
        if works:
            log.info(
                "%s continues in attempt %d: %s", running.id, attempt + 1, reason,
                extra={"request_id": running.id, "trace_id": running.trace_id},
            )  # fmt: skip
            self._journal.resumed(running, reason)
            running.interruptions += 1
            self._metrics.interruptions += 1
            sequences = running.record.sequences
            fruitless = max(sequences[i].fruitless for work in works for i in work.indices)
            delay_s = self._options.backoff_s * 2**fruitless if fruitless > 1 else 0.0
            self._resubmit(running, works, min(_MAX_BACKOFF_S, delay_s))
        self._retire(running)

    def resume_all(self, running: RunningRequest, reason: str) -> None:
        """Continue every unfinished sequence: the cell has forgotten the request."""
        running.answer_by_s = None
        attempts = {running.record.sequences[i].attempt for i in running.record.unfinished}
        for attempt in sorted(attempts, reverse=True):  # a resumed one must not be met again
            self.resume(running, running.record.unfinished, attempt, reason)

    def restate(self, running: RunningRequest) -> None:
        """Tell a coordinator that was started anew what runs, and submit again what does not."""
        for message in running.record.restate():
            if isinstance(message, Submit):
                self.submit(running, message.work)
            else:
                self._courier.send(message)

    def watch(self, running: RunningRequest, now: float, silence_s: float) -> None:
        """Called about once a second. `silence_s` is how long the coordinator said nothing."""
        options, stalled_s = self._options, now - running.progress_s
        if running.answer_by_s is not None and running.answer_by_s < now:
            # A continuation needs no answer: the coordinator may keep it until a node is back.
            message = f"no answer from the coordinator in {options.submit_timeout_s:g} s"
            running.stream.fail(RejectedError(message, status=503, retry_after_s=_RETRY_AFTER_S))
        elif stalled_s > options.stall_timeout_s:
            message = f"no progress for {options.stall_timeout_s:g} s"
            running.stream.fail(StreamFailedError(message, status=504))
        elif min(stalled_s, silence_s) > options.recovery_timeout_s:
            message = f"the coordinator has been silent for {options.recovery_timeout_s:g} s"
            running.stream.fail(StreamFailedError(message, status=503))
        else:
            self._heal_gaps(running, now)

    def _heal_gaps(self, running: RunningRequest, now: float) -> None:
        gaps = running.record.gaps
        if not gaps or running.gap_since_s is None or running.progress_s > running.gap_since_s:
            running.gap_since_s = now if gaps else None
            return
        if now - running.gap_since_s <= self._options.gap_timeout_s:
            return
        running.gap_since_s = None
        for index in gaps:
            # What comes after a lost token is of no use; the new attempt ends this one.
            attempt = running.record.sequences[index].attempt
            self.resume(running, (index,), attempt, "a token was lost on its way")

    def _resubmit(self, running: RunningRequest, works: list[Work], delay_s: float) -> None:
        for work in works:
            if delay_s > 0:
                asyncio.get_running_loop().call_later(delay_s, self.submit, running, work)
            else:
                self.submit(running, work)
