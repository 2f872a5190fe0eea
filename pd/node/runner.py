"""The live loop around a node's brain: sockets, copies, clock and compute meet `NodeCore`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kvstore.transport.events import TransferEvent
from pd.mailbox import Mailbox
from pd.messages import COORDINATOR, Message, NodeHello, PeerLost, Peers, Welcome
from pd.node.blockmover import BlockMover
from pd.node.compute import ComputeThread, StepDone
from pd.node.core import NodeCore
from pd.outbox import Effect, Kill, Send
from pd.types import Peer

log = logging.getLogger(__name__)

_HELLO_S = 0.5  # between two hellos that nobody answers
_MAX_MESSAGES = 256  # handled before compute gets its turn again
_MAX_WAIT_S = 0.5


class NodeRunner:
    """Drives one node until `stop`. Everything but `stop` belongs to the loop's thread."""

    def __init__(
        self,
        core: NodeCore,
        mailbox: Mailbox,
        mover: BlockMover,
        compute: ComputeThread[Any],
        coordinator: Peer,
        hello: NodeHello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._mailbox = mailbox
        self._mover = mover
        self._hub = mover.hub
        self._compute = compute
        self._hello = hello
        self._clock = clock
        self._known: dict[str, Peer] = {}
        self._next_hello = 0.0
        self._stopping = threading.Event()
        mailbox.connect(coordinator)

    def stop(self) -> None:
        """End the loop soon. From any thread."""
        self._stopping.set()
        self._mailbox.wake()

    def run(self) -> None:
        """Serve until stopped. Raises what a step raised: a node whose engine failed ends,
        so that it is replaced rather than trusted."""
        core, clock = self._core, self._clock
        while not self._stopping.is_set():
            finished = self._compute.poll()
            for done in finished:
                if isinstance(done, StepDone):
                    core.commit(done.samples, clock())
                else:
                    done.then()
            self._receive(0.0 if finished else self._wait_s(clock()))
            self._mover.poll(self._on_transfer)
            if not core.busy:
                plan = core.plan(clock())
                if plan is not None:
                    # The plan may use pages that a hand-off has just given back: late bytes of
                    # its sender must not land in them.
                    for grant in core.outbox.drain_grants():
                        self._mover.act(grant)
                    # Before the other effects: what the last step drew leaves while this runs.
                    self._compute.submit(plan)
            now = clock()
            if not core.epoch and now >= self._next_hello:
                self._next_hello = now + _HELLO_S
                self._mailbox.send(COORDINATOR, self._hello)
            core.tick(now)
            for effect in core.drain():
                self._do(effect)

    def _on_transfer(self, event: TransferEvent) -> None:
        self._core.on_transfer(event, self._clock())

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
        if isinstance(message, Welcome):
            if message.incarnation == self._hello.incarnation:
                log.info("%s joined with epoch %d", message.id, message.epoch)
                self._mailbox.epoch = self._core.epoch = message.epoch
                self._hub.epoch = message.epoch
        elif isinstance(message, Peers):
            self._meet(message.peers)
        elif not self._core.epoch:
            log.debug("%s before the welcome: dropped", type(message).__name__)
        else:
            if isinstance(message, PeerLost):
                self._part(message.id, message.epoch)
            self._core.on_message(sender, message, self._clock())

    def _meet(self, peers: tuple[Peer, ...]) -> None:
        present = {peer.id: peer for peer in peers if peer.id != self._core.node_id}
        for peer_id in self._known.keys() - present.keys():
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

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._mailbox.send(effect.to, effect.message)
        elif not isinstance(effect, Kill):
            self._mover.act(effect)
