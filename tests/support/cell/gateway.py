"""A simulated gateway: real request records, and what it tells the coordinator about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cell.network import Address, Link
from pd.gateway.record import RequestRecord
from pd.messages import (
    Admitted,
    Cancel,
    CellStatus,
    Finished,
    Interrupted,
    Peers,
    Rejected,
    Submit,
    Tokens,
    Welcome,
)
from pd.types import FinishReason, Request

TOKEN_WAIT_S = 1.0  # a token that others overtook by this much was lost


class SimGateway:
    """One gateway process. `send` posts a message to the coordinator."""

    def __init__(self, address: Address, send: Callable[[Any], None]) -> None:
        self.address = address
        self.link: Link  # set by the cell
        self._centre: tuple[int, int] | None = None  # own epoch and the coordinator's
        self._told: dict[tuple[str, int], float] = {}  # when a node was last told to stop
        self.peers: dict[str, int] = {}
        self.records: dict[str, RequestRecord] = {}
        self.rejected: dict[str, Rejected] = {}
        self.cancelled: set[str] = set()
        self.stopped: set[tuple[str, int]] = set()  # outputs that it ended itself
        self.interruptions = 0
        self.status: CellStatus | None = None
        self._send = send
        self._gaps: dict[tuple[str, int, int, int], float] = {}

    def submit(self, request: Request) -> None:
        record = self.records[request.request_id] = RequestRecord(request)
        self._send(Submit(record.start()))

    def cancel(self, request_id: str) -> None:
        """The client went away."""
        running = self.records[request_id].cancel()
        self.cancelled.add(request_id)
        if running:
            self._send(Cancel(request_id, running))

    def stop(self, request_id: str, index: int, reason: FinishReason = "stop") -> None:
        """End one output, as for a stop string found in its text."""
        if self.records[request_id].end(index, reason):
            self.stopped.add((request_id, index))
            self._send(Cancel(request_id, (index,)))

    def on_message(self, message: Any, now: float) -> None:
        if isinstance(message, Tokens):
            self._on_tokens(message, now)
        elif isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Admitted):
            record = self.records.get(message.request_id)
            if record is None or record.finished:
                self._send(Cancel(message.request_id, message.indices))
            else:
                record.on_admitted(message)
        elif isinstance(message, Interrupted):
            record = self.records.get(message.request_id)
            if record is None or record.finished:
                self._send(Cancel(message.request_id, message.indices))
                return
            indices = message.indices
            if message.unstarted_only:
                indices = record.unstarted(indices)
            self._resume(record, indices, message.attempt, message.reason)
        elif isinstance(message, Rejected):
            record = self.records.get(message.request_id)
            if record is not None:
                self.rejected[message.request_id] = message
                record.fail(message.indices, message.message)
        elif isinstance(message, Peers):
            self.peers = {peer.id: peer.epoch for peer in message.peers}
        elif isinstance(message, CellStatus):
            self.status = message

    def heal_gaps(self, now: float) -> None:
        """Submit again what waits for a token that was lost on its way."""
        for request_id, record in self.records.items():
            for index in record.gaps:
                seq = record.sequences[index]
                where = (request_id, index, seq.attempt, len(seq.tokens))
                if now - self._gaps.setdefault(where, now) > TOKEN_WAIT_S:
                    self._resume(record, (index,), seq.attempt, "a token was lost")

    def _on_welcome(self, message: Welcome) -> None:
        known, self._centre = self._centre, (message.epoch, message.coordinator)
        if known == self._centre:
            return
        for record in self.records.values():
            if known is None or known[0] == message.epoch:  # None: clients asked too early
                for each in record.restate():
                    self._send(each)
                continue
            attempts = {record.sequences[i].attempt for i in record.unfinished}
            for attempt in sorted(attempts, reverse=True):
                self._resume(record, record.unfinished, attempt, "was given up")

    def _on_tokens(self, message: Tokens, now: float) -> None:
        for event in message.rows():
            record = self.records.get(event.request_id)
            if record is None:  # of the gateway that was here before
                continue
            if record.finished:
                if now - self._told.get((event.request_id, event.index), -1.0) >= 1.0:
                    self._told[event.request_id, event.index] = now
                    cancel = Cancel(event.request_id, (event.index,), message.node, event.attempt)
                    self._send(cancel)
                continue
            before = record.unfinished
            record.on_token(event)
            ended = tuple(set(before) - set(record.unfinished))
            if ended:
                self._send(Finished(event.request_id, ended))

    def _resume(
        self, record: RequestRecord, indices: tuple[int, ...], attempt: int, reason: str
    ) -> None:
        for work in record.on_interrupted(indices, attempt, reason):
            self.interruptions += 1
            self._send(Submit(work))
