"""The live loop of a process that holds blocks: what nodes and pools have in common."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from kvstore.transport.events import TransferEvent
from pd.mailbox import Mailbox
from pd.messages import COORDINATOR, Message, NodeHello, PeerLost, Peers, Welcome
from pd.node.blockmover import BlockMover
from pd.outbox import CancelPush, Expect, Forget, Push, Send
from pd.types import Peer, Role

log = logging.getLogger(__name__)

_HELLO_S = 0.5  # between two hellos that nobody answers
_SILENCE_S = 2.0  # of the coordinator, after which it may be another process: hello again
_MAX_MESSAGES = 256  # handled before the work gets its turn again
_MAX_WAIT_S = 0.5


class Core(Protocol):
    """A brain that such a loop drives."""

    node_id: str
    epoch: int

    @property
    def role(self) -> Role: ...

    def on_message(self, sender: str, message: Message, now: float) -> None: ...
    def on_transfer(self, event: TransferEvent, now: float) -> None: ...
    def tick(self, now: float) -> None: ...
    def next_tick(self) -> float: ...
    def drain(self) -> Sequence[Any]: ...


C = TypeVar("C", bound=Core)


class MemberLoop(ABC, Generic[C]):
    """Drives one core until `stop`. Everything but `stop` belongs to the loop's thread."""

    def __init__(
        self,
        core: C,
        mailbox: Mailbox,
        mover: BlockMover,
        coordinator: Peer,
        hello: NodeHello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._mailbox = mailbox
        self._mover = mover
        self._hub = mover.hub
        self._hello = hello
        self._clock = clock
        self._coordinator = coordinator
        self._heard_s = clock()  # when the coordinator last said anything
        self._known: dict[str, Peer] = {}
        self._unburied: dict[str, Peer] = {}  # no peers any more, and not known to be gone yet
        self._next_hello = 0.0
        self._stopping = threading.Event()
        mailbox.connect(coordinator)

    def stop(self) -> None:
        """End the loop soon. From any thread."""
        self._stopping.set()
        self._mailbox.wake()

    def run(self) -> None:
        """Serve until stopped."""
        core, clock = self._core, self._clock
        while not self._stopping.is_set():
            finished = self._collect()
            self._receive(0.0 if finished else self._wait_s(clock()))
            self._mover.poll(self._on_transfer)
            self._advance()
            now = clock()
            if now >= self._next_hello and (not core.epoch or now - self._heard_s >= _SILENCE_S):
                self._next_hello = now + _HELLO_S
                self._say_hello()
            core.tick(now)
            for effect in core.drain():
                self._do(effect)

    # -------------------------------------------------------------- what differs
    @abstractmethod
    def _collect(self) -> bool:
        """Take finished work into the core; whether there was any."""

    def _advance(self) -> None:
        """Start what the core now wants, before it is asked for its effects."""

    def _do(self, effect: Any) -> None:
        if isinstance(effect, Send):
            self._mailbox.send(effect.to, effect.message)
        elif isinstance(effect, Expect | Forget | Push | CancelPush):
            self._mover.act(effect)

    # -------------------------------------------------------------- inside
    def _on_transfer(self, event: TransferEvent) -> None:
        self._core.on_transfer(event, self._clock())

    def _say_hello(self) -> None:
        """To whichever coordinator there is: one that was started anew has to learn who is here."""
        core = self._core
        hello = self._hello
        if core.epoch:
            peers = tuple({**self._unburied, **self._known}.values())
            hello = replace(hello, role=core.role, epoch=core.epoch, peers=peers)
        self._mailbox.send(COORDINATOR, hello)

    def _wait_s(self, now: float) -> float:
        due = self._core.next_tick() if self._core.epoch else self._next_hello
        return min(_MAX_WAIT_S, max(0.0, due - now))

    def _receive(self, timeout_s: float) -> None:
        for _ in range(_MAX_MESSAGES):
            received = self._mailbox.recv(timeout_s)
            if received is None:
                return
            self._handle(*received)
            timeout_s = 0.0

    def _handle(self, sender: str, message: Message) -> None:
        if sender == COORDINATOR:
            self._heard_s = self._clock()
        if isinstance(message, Welcome):
            self._joined(message)
        elif isinstance(message, Peers):
            self._meet(message.peers)
        elif not self._core.epoch:
            log.debug("%s before the welcome: dropped", type(message).__name__)
        else:
            if isinstance(message, PeerLost):
                self._part(message.id, message.epoch)
                unburied = self._unburied.get(message.id)
                if unburied is not None and unburied.epoch <= message.epoch:
                    del self._unburied[message.id]
            self._core.on_message(sender, message, self._clock())

    def _joined(self, message: Welcome) -> None:
        if message.incarnation != self._hello.incarnation:
            return
        if message.coordinator != self._coordinator.epoch:
            self._coordinator = replace(self._coordinator, epoch=message.coordinator)
            self._mailbox.connect(self._coordinator)
        if message.epoch != self._core.epoch:
            log.info("%s joined with epoch %d", message.id, message.epoch)
            self._mailbox.epoch = self._core.epoch = message.epoch
            self._hub.epoch = message.epoch

    def _meet(self, peers: tuple[Peer, ...]) -> None:
        present = {peer.id: peer for peer in peers if peer.id != self._core.node_id}
        for peer_id in self._known.keys() - present.keys():
            self._unburied[peer_id] = self._known[peer_id]
            self._part(peer_id, self._known[peer_id].epoch)
        for peer_id, peer in present.items():
            if self._known.get(peer_id) != peer:
                self._mailbox.connect(peer)
                self._hub.connect(peer)
        self._known = present

    def _part(self, peer_id: str, epoch: int) -> None:
        known = self._known.get(peer_id)
        if known is not None and known.epoch <= epoch:
            self._mailbox.forget(peer_id)
            self._hub.forget_peer(peer_id)
            del self._known[peer_id]
