"""What pure code wants done: the effects it collects while it handles an event.

A node core, a phase or the coordinator never sends anything itself. It writes into an
`Outbox`; the live runner turns the entries into sockets and copies, the simulator into
events on a virtual clock, a test into assertions.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Literal

from kvstore.transfer import Push
from pd.messages import Message, Tokens
from pd.types import FinishReason, Sampled, Sequence, TokenEvent

# A sequence has drawn a token; a reason, if that ended it.
Drawn = tuple[Sequence, Sampled, FinishReason | None]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a process of the cell."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Expect:
    """Let this sender write into these blocks of ours, and nobody else."""

    transfer_id: int
    sender: str
    sender_epoch: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Accept nothing more for this transfer."""

    transfer_id: int


@dataclass(frozen=True, slots=True)
class CancelPush:
    """Drop the queued pushes of this transfer; each still comes back, not ok."""

    transfer_id: int


ANY_PROCESS = 0  # as an incarnation: whichever process is behind the id


@dataclass(frozen=True, slots=True)
class Kill:
    """End a process that no longer answers, so that its supervisor starts a new one."""

    id: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decided:
    """For whoever reads the log: what was decided, why, and the numbers that led to it."""

    what: str
    reason: str
    numbers: Mapping[str, float]
    kind: Literal["balance", "breaker", "scale"] = "balance"


Effect = Send | Expect | Forget | Push | CancelPush | Kill | Decided


class Outbox:
    """Effects in the order they were asked for; tokens of a step become one message a gateway."""

    def __init__(self, node_id: str = "") -> None:
        self._node_id = node_id
        self._effects: list[Effect] = []
        self._tokens: dict[str, list[TokenEvent]] = {}
        self._prefilled: dict[str, dict[str, tuple[float, float]]] = {}

    def send(self, to: str, message: Message) -> None:
        # A message that follows tokens must not overtake them: `Interrupted` says which
        # tokens a gateway will not get from here.
        if to in self._tokens:
            self._flush(to)
        self._effects.append(Send(to, message))

    def token(self, gateway: str, event: TokenEvent, count: int = 1) -> None:
        """With `count`, the same token so often in a row: `event` says why the last ends it."""
        events = self._tokens.setdefault(gateway, [])
        if count > 1:
            first = event.position
            events.extend(replace(event, position=first + i, finish=None) for i in range(count - 1))
            event = replace(event, position=first + count - 1)
        events.append(event)

    def drawn(self, drawn: Seq[Drawn], times: int = 1) -> None:
        """Each of these sequences has this token more, so many `times` in a row; the last of them
        ends it where a reason is given."""
        for seq, sampled, reason in drawn:
            request = seq.request
            event = TokenEvent(
                request.request_id, seq.index, seq.attempt, seq.num_output - times, sampled.token,
                reason, sampled.logprob, sampled.top,
            )  # fmt: skip
            self.token(request.gateway, event, times)

    def prefilled(self, gateway: str, request_id: str, fetch_s: float, compute_s: float) -> None:
        """What the prompt of the tokens that were just given took."""
        self._prefilled.setdefault(gateway, {})[request_id] = (fetch_s, compute_s)

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def drain(self) -> list[Effect]:
        for gateway in list(self._tokens):
            self._flush(gateway)
        self._prefilled.clear()
        effects, self._effects = self._effects, []
        return effects

    def drain_grants(self) -> list[Expect | Forget]:
        """Only what opens our pages to senders and closes them again; the rest stays."""
        grants = [effect for effect in self._effects if isinstance(effect, Expect | Forget)]
        if grants:
            self._effects = [e for e in self._effects if not isinstance(e, Expect | Forget)]
        return grants

    def _flush(self, gateway: str) -> None:
        message = Tokens.pack(self._tokens.pop(gateway), self._node_id)
        if gateway in self._prefilled:
            message.prefilled.update(self._prefilled.pop(gateway))
        self._effects.append(Send(gateway, message))
