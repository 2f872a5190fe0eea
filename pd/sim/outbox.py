"""A node's outbox in the simulator: what a gateway need not hear of at once is told together."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from pd.messages import Interrupted, Message
from pd.outbox import Drawn, Outbox
from pd.types import FinishReason, Sequence, TokenEvent

Streams = list[tuple[Sequence, FinishReason | None]]


class RunOutbox(Outbox):
    """For the one gateway there is. A sequence's first token leaves at once. What it draws after
    that leaves when it ends or is interrupted, or with `tell_all`: the sequence knows how many
    tokens it has, and nobody asks before. No message overtakes tokens: the simulator takes those
    first."""

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.firsts: list[TokenEvent] = []
        self.prompts: list[tuple[str, float, float]] = []  # (request, fetch, compute), seconds
        self.streams: Streams = []  # to be told of, and why they ended if they have
        self._last: Seq[Drawn] = ()  # of the last step: whatever runs is among them

    def token(self, gateway: str, event: TokenEvent, count: int = 1) -> None:
        self.firsts.append(event)

    def drawn(self, drawn: Seq[Drawn], times: int = 1) -> None:
        self._last = drawn
        for seq, _, reason in drawn:
            if reason is not None:
                self.streams.append((seq, reason))

    def prefilled(self, gateway: str, request_id: str, fetch_s: float, compute_s: float) -> None:
        self.prompts.append((request_id, fetch_s, compute_s))

    def send(self, to: str, message: Message) -> None:
        if isinstance(message, Interrupted):
            request_id = message.request_id
            self.tell_all(lambda seq: seq.request.request_id == request_id)
        super().send(to, message)

    def tell_all(self, wanted: Callable[[Sequence], bool] = lambda seq: True) -> None:
        """Somebody wants to know what these sequences have drawn."""
        self.streams += [
            (seq, None) for seq, _, reason in self._last if reason is None and wanted(seq)
        ]
