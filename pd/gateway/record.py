"""The record of a running request: enough to continue it anywhere, exactly.

Pure: events go in, the tokens that are next in line and the work to submit come out. The
first token of a sequence comes from its prefill node and the rest from its decode node over
another socket, so positions may arrive out of order; here they leave in order, each once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pd.messages import Admitted, Ongoing, Submit
from pd.types import FinishReason, Request, TokenEvent, Work

MAX_FRUITLESS_ATTEMPTS = 8


class SequenceRecord:
    """One output stream: the tokens its client has, and which attempt may extend them."""

    __slots__ = (
        "index", "tokens", "attempt", "finish", "early", "fruitless", "resumed_at", "admitted",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.attempt = 0
        self.finish: FinishReason | None = None
        self.early: dict[int, TokenEvent] = {}  # tokens ahead of the next one, by position
        self.fruitless = 0  # interruptions in a row without a token between them
        self.resumed_at = 0  # number of tokens at the last interruption
        self.admitted: Admitted | None = None  # where its last admitted attempt runs

    def end(self, reason: FinishReason) -> None:
        if self.finish is None:
            self.finish = reason
            self.early.clear()


class RequestRecord:
    """A request with all its sequences, from submission to the last token or failure."""

    __slots__ = ("request", "sequences", "max_fruitless", "error", "attempts")

    def __init__(self, request: Request, max_fruitless: int = MAX_FRUITLESS_ATTEMPTS) -> None:
        self.request = request
        self.sequences = [SequenceRecord(index) for index in range(request.params.n)]
        self.max_fruitless = max_fruitless
        self.error: str | None = None  # why a sequence ended with "error"
        self.attempts = 1  # pieces of work submitted so far

    def start(self) -> Work:
        """The work of the whole request, to be submitted first."""
        return Work(self.request, tuple(range(len(self.sequences))))

    @property
    def finished(self) -> bool:
        return all(seq.finish is not None for seq in self.sequences)

    @property
    def num_output(self) -> int:
        return sum(len(seq.tokens) for seq in self.sequences)

    @property
    def unfinished(self) -> tuple[int, ...]:
        return tuple(seq.index for seq in self.sequences if seq.finish is None)

    @property
    def gaps(self) -> tuple[int, ...]:
        """Sequences that hold later tokens but miss the next: one was lost, or is late."""
        return tuple(seq.index for seq in self.sequences if seq.early)

    def unstarted(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Those of which no token of the present attempt has come."""
        return tuple(
            index
            for index in indices
            if 0 <= index < len(self.sequences)
            and len(self.sequences[index].tokens) == self.sequences[index].resumed_at
        )

    def on_admitted(self, message: Admitted) -> None:
        """The coordinator says where this runs."""
        for index in message.indices:
            if 0 <= index < len(self.sequences):
                seq = self.sequences[index]
                if seq.attempt == message.attempt:
                    seq.admitted = message

    def restate(self) -> list[Ongoing | Submit]:
        """What a coordinator has to hear that knows nothing of this request: where its unfinished
        sequences run, and once more the work of those that nobody has admitted."""
        ongoing: dict[Admitted, list[int]] = {}
        fresh: dict[int, list[int]] = {}  # by attempt
        works: list[Work] = []
        for seq in self.sequences:
            if seq.finish is not None:
                continue
            if seq.admitted is not None and seq.admitted.attempt == seq.attempt:
                ongoing.setdefault(seq.admitted, []).append(seq.index)
            elif seq.resumed_at:
                given = tuple(seq.tokens[: seq.resumed_at])
                works.append(Work(self.request, (seq.index,), given, seq.attempt))
            else:
                fresh.setdefault(seq.attempt, []).append(seq.index)
        for attempt, indices in fresh.items():
            works.insert(0, Work(self.request, tuple(indices), (), attempt))
        known = (Ongoing(replace(each, indices=tuple(i))) for each, i in ongoing.items())
        return [*known, *(Submit(work) for work in works)]

    def on_token(self, event: TokenEvent) -> list[TokenEvent]:
        """Take one event; returns the tokens it makes deliverable, in order, often just it.

        Repeated, stale and impossible events return nothing.
        """
        if not 0 <= event.index < len(self.sequences):
            return []
        seq = self.sequences[event.index]
        if seq.finish is not None or event.attempt != seq.attempt:
            return []
        position = len(seq.tokens)
        if event.position != position:
            if position < event.position < self.request.params.max_tokens:
                seq.early[event.position] = event
            return []
        seq.tokens.append(event.token)
        if event.finish is not None:
            seq.end(event.finish)
            return [event]
        if not seq.early:
            return [event]
        released = [event]
        while (early := seq.early.pop(len(seq.tokens), None)) is not None:
            seq.tokens.append(early.token)
            released.append(early)
            if early.finish is not None:
                seq.end(early.finish)
        return released

    def on_run(self, event: TokenEvent, count: int) -> bool:
        """Take `count` equal tokens in a row, of which `event` is the first and says why the last
        ends the sequence. False, and nothing taken, where they are not next in line."""
        seq = self.sequences[event.index]
        next_in_line = event.position == len(seq.tokens) and not seq.early
        if seq.finish is not None or event.attempt != seq.attempt or not next_in_line:
            return False
        seq.tokens.extend([event.token] * count)
        if event.finish is not None:
            seq.end(event.finish)
        return True

    def on_interrupted(self, indices: Iterable[int], attempt: int, reason: str) -> list[Work]:
        """These sequences of this attempt will draw no more; returns the work that goes on.

        Sequences without a token yet stay together and share one prefill. A sequence
        interrupted `max_fruitless` times in a row without progress ends with "error".
        """
        return self._resume(indices, attempt, reason, counted=True)

    def on_refused(self, indices: Iterable[int], attempt: int, reason: str) -> list[Work]:
        """A continuation found no room for now. As an interruption that says nothing about
        the work itself, so it is not counted; the caller bounds the waiting by time."""
        return self._resume(indices, attempt, reason, counted=False)

    def _resume(
        self, indices: Iterable[int], attempt: int, reason: str, *, counted: bool
    ) -> list[Work]:
        fresh: list[int] = []
        works: list[Work] = []
        for index in dict.fromkeys(indices):
            if not 0 <= index < len(self.sequences):
                continue
            seq = self.sequences[index]
            if seq.finish is not None or seq.attempt != attempt:
                continue
            if len(seq.tokens) >= self.request.params.max_tokens:
                seq.end("length")
                continue
            if counted:
                progressed = len(seq.tokens) > seq.resumed_at
                seq.fruitless = 1 if progressed else seq.fruitless + 1
            if seq.fruitless > self.max_fruitless:
                self.fail((index,), f"gave up after {self.max_fruitless} attempts: {reason}")
                continue
            seq.resumed_at = len(seq.tokens)
            seq.attempt = attempt + 1
            seq.early.clear()
            if seq.tokens:
                works.append(Work(self.request, (index,), tuple(seq.tokens), attempt + 1))
            else:
                fresh.append(index)
        if fresh:
            works.insert(0, Work(self.request, tuple(fresh), (), attempt + 1))
        self.attempts += len(works)
        return works

    def end(self, index: int, reason: FinishReason) -> bool:
        """The gateway ends a sequence itself (a stop string); False if it had ended already."""
        seq = self.sequences[index]
        if seq.finish is not None:
            return False
        seq.end(reason)
        return True

    def fail(self, indices: Iterable[int], reason: str) -> None:
        """End these sequences, where still running, with "error"."""
        for index in indices:
            if self.end(index, "error"):
                self.error = reason

    def cancel(self) -> tuple[int, ...]:
        """End whatever still runs; returns the indices the cell must be told about."""
        running = self.unfinished
        for index in running:
            self.end(index, "cancelled")
        return running
