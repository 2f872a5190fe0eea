"""Messages to the coordinator, in order, retrying for a short while what a socket refuses."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pd.messages import COORDINATOR, Message
from pd.types import Peer

log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """The socket to the cell, as `pd.mailbox.AsyncMailbox` is one."""

    epoch: int

    @property
    def endpoint(self) -> str: ...

    def connect(self, peer: Peer) -> None: ...

    def forget(self, peer_id: str) -> None: ...

    def send(self, peer_id: str, message: Message) -> bool:
        """False if the peer is unknown or its queue is full."""
        ...

    async def recv(self, timeout_s: float) -> tuple[str, Message] | None:
        """The next (sender, message), or None when none came in time."""
        ...

    def close(self, linger_s: float = 0.0) -> None: ...


class Courier:
    """Nothing overtakes a message that waits, so a Cancel never arrives before its Submit."""

    def __init__(
        self, mailbox: Mailbox, clock: Callable[[], float], timeout_s: float, max_waiting: int
    ) -> None:
        self._mailbox = mailbox
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[float, Message, Callable[[], None] | None]] = deque()
        self.lost = 0

    def send(self, message: Message, on_lost: Callable[[], None] | None = None) -> None:
        """Send now or soon; `on_lost` is called if that proves impossible in time."""
        if not self._waiting and self._mailbox.send(COORDINATOR, message):
            return
        if len(self._waiting) >= self._max_waiting:
            self._lose(message, on_lost)
            return
        self._waiting.append((self._clock() + self._timeout_s, message, on_lost))

    def clear(self) -> None:
        """Drop what waits: it was for a coordinator that is gone."""
        self._waiting.clear()

    def retry(self) -> None:
        now = self._clock()
        while self._waiting:
            deadline, message, on_lost = self._waiting[0]
            if not self._mailbox.send(COORDINATOR, message):
                if now < deadline:
                    return
                self._waiting.popleft()
                self._lose(message, on_lost)
                continue
            self._waiting.popleft()

    def _lose(self, message: Message, on_lost: Callable[[], None] | None) -> None:
        self.lost += 1
        log.error(
            "the coordinator took no %s for %.1f s: is it running?",
            type(message).__name__, self._timeout_s,
        )  # fmt: skip
        if on_lost is not None:
            on_lost()
