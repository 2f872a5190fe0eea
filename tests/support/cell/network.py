"""Messages and blocks on their way between the processes of a cell.

A process is named by its id and its incarnation, so what was addressed to a process that has
died never reaches the one that took its place. Messages between two processes stay in order;
nothing else is ordered. What a dead process had sent may still arrive, or be lost from some
point on.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvstore.transport.events import Pushed
from pd.messages import GatewayHello, NodeHello
from pd.outbox import Push
from pd.types import Peer


class Address(NamedTuple):
    """One process: what is behind an id changes when it is replaced."""

    id: str
    incarnation: int


NOBODY = -1  # the incarnation of a process that the sender knows by an old epoch


class Channel(NamedTuple):
    sender: Address
    receiver: Address


@dataclass
class Link:
    """What a process knows of the coordinator and of the others, as its loop keeps it.

    `centre` is the coordinator that welcomed it last, `peers` those that it would name to another.
    """

    hello: NodeHello | GatewayHello
    centre: Address
    heard: float
    next_hello: float = 0.0
    epoch: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)


@dataclass(eq=False)
class Copy:
    """A push on its way: queued, then read from the source, then written to the target.

    `content` is set once the source was read; from then on the write lands, come what may,
    unless its sender dies.
    """

    sender: Address
    receiver: Address
    push: Push
    content: list[list[int]] | None = None

    @property
    def begun(self) -> bool:
        return self.content is not None


@dataclass(eq=False)
class Notice:
    """What a transport reports to a process about a push: `Arrived` or `Pushed`."""

    to: Address
    sender: Address
    event: Any


@dataclass
class Network:
    """Everything under way. It moves only when the cell says so."""

    rng: random.Random
    channels: dict[Channel, deque[Any]] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def post(self, sender: Address, receiver: Address, message: Any) -> None:
        self.channels.setdefault(Channel(sender, receiver), deque()).append(message)

    def take(self, channel: Channel) -> Any:
        """The next message of a channel."""
        queue = self.channels[channel]
        message = queue.popleft()
        if not queue:
            del self.channels[channel]
        return message

    def cancel_copies(self, sender: Address, transfer_id: int) -> None:
        """Those that have begun go on; the others come back undone."""
        for copy in list(self.copies):
            if copy.sender == sender and copy.push.transfer_id == transfer_id and not copy.begun:
                self.copies.remove(copy)
                self.pushed(copy, ok=False)

    def pushed(self, copy: Copy, *, ok: bool) -> None:
        """Tell the sender that its copy is over."""
        event = Pushed(copy.push.transfer_id, copy.push.first, len(copy.push.src), ok)
        self.notices.append(Notice(copy.sender, copy.receiver, event))

    def died(self, process: Address) -> None:
        """What it was copying stops; of what it sent, a part of each channel still arrives."""
        self.copies = [copy for copy in self.copies if copy.sender != process]
        self.notices = [notice for notice in self.notices if notice.to != process]
        for channel in list(self.channels):
            if channel.receiver == process:
                del self.channels[channel]
            elif channel.sender == process:
                queue = self.channels[channel]
                for _ in range(self.rng.randint(0, len(queue))):
                    queue.pop()
                if not queue:
                    del self.channels[channel]
