"""A gateway's place in its cell: joining, signs of life, and who else is there."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from pd.gateway.courier import Mailbox
from pd.messages import COORDINATOR, CellStatus, GatewayHello, Heartbeat, Peers, Welcome
from pd.types import Peer

log = logging.getLogger(__name__)

NOT_JOINED = "the gateway has not joined the cell yet: the coordinator has not answered"


class Joined(Enum):
    """What a welcome means for the requests that run."""

    AS_BEFORE = "the coordinator knows them"
    ANEW = "the coordinator was started anew: they run, and it does not know them"
    FORGOTTEN = "this gateway was given up meanwhile, and they with it"


class Membership:
    """Says hello until welcomed, then sends heartbeats, and says hello again in a silence.

    A coordinator that was started anew answers with an epoch of its own that is new.
    """

    def __init__(
        self,
        gateway_id: str,
        mailbox: Mailbox,
        coordinator: Peer,
        clock: Callable[[], float],
        *,
        heartbeat_s: float,
        timeout_s: float,
    ) -> None:
        self._mailbox = mailbox
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._hello = GatewayHello(
            gateway_id,
            time.time_ns(),
            {"control": mailbox.endpoint},
            os.getpid(),
            socket.gethostname(),
        )
        self._next_beat_s = float("-inf")
        self._peers: dict[str, Peer] = {COORDINATOR: coordinator}
        self.joined = False
        self.told = asyncio.Event()  # how the cell is
        self.heard_s = clock()
        self.status = CellStatus(False, NOT_JOINED, ())
        mailbox.connect(coordinator)

    @property
    def id(self) -> str:
        return self._hello.gateway_id

    @property
    def incarnation(self) -> int:
        """When this process began, which tells it from those before it."""
        return self._hello.incarnation

    @property
    def silence_s(self) -> float:
        """Seconds since the coordinator was last heard of."""
        return self._clock() - self.heard_s

    def readiness(self) -> tuple[bool, str]:
        """Whether requests can be served, and why not."""
        if not self.joined:
            return False, NOT_JOINED
        if self.silence_s > self._timeout_s:
            return False, f"nothing heard from the coordinator for {self.silence_s:.0f} s"
        return self.status.ready, self.status.reason

    def beat(self) -> None:
        """Called often; sends what is due."""
        now = self._clock()
        if now < self._next_beat_s:
            return
        self._next_beat_s = now + self._heartbeat_s
        if not self.joined or self.silence_s > 4 * self._heartbeat_s:
            peers = tuple(peer for peer in self._peers.values() if peer.id != COORDINATOR)
            hello = replace(self._hello, epoch=self._mailbox.epoch, peers=peers)
            self._mailbox.send(COORDINATOR, hello)
        if self.joined:
            self._mailbox.send(COORDINATOR, Heartbeat(self.id))

    def on_welcome(self, message: Welcome) -> Joined:
        known = self._peers[COORDINATOR]
        if message.id != self.id or message.incarnation != self._hello.incarnation:
            return Joined.AS_BEFORE
        forgotten = self.joined and message.epoch != self._mailbox.epoch
        anew = self.joined and message.coordinator != known.epoch
        if message.coordinator != known.epoch:
            self._peers[COORDINATOR] = known = replace(known, epoch=message.coordinator)
            self._mailbox.connect(known)
        self._mailbox.epoch = message.epoch
        self.joined = True
        return Joined.FORGOTTEN if forgotten else Joined.ANEW if anew else Joined.AS_BEFORE

    def on_status(self, message: CellStatus) -> None:
        self.status = message
        self.told.set()

    def on_peers(self, message: Peers) -> None:
        current = {peer.id: peer for peer in message.peers if peer.id != self.id}
        current.setdefault(COORDINATOR, self._peers[COORDINATOR])
        for peer_id, known in self._peers.items():
            if current.get(peer_id) != known:
                self._mailbox.forget(peer_id)
        for peer_id, peer in current.items():
            if self._peers.get(peer_id) != peer:
                self._mailbox.connect(peer)
        self._peers = current
