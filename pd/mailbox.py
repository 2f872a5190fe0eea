"""The control plane: every process has one mailbox and talks to any other through it.

A mailbox is one PULL socket that everybody connects to and one PUSH socket per peer. Sending
never blocks and never raises for what the network does: a message that cannot be queued is
refused and counted, one that is lost with a broken connection is missed by its number and
sent again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import zmq

from pd import sockets, wire
from pd.errors import WireError
from pd.line import Heard, Said, Verdict
from pd.messages import Beacon, GatewayHello, Message, NodeHello, Resend
from pd.types import Peer
from pd.waker import Waker

log = logging.getLogger(__name__)

_CONTROL = "control"  # the mailbox's name among a peer's endpoints
_BEAT_S = 0.5  # between two looks for lines that have fallen quiet, or lack messages


@dataclass(slots=True, eq=False)
class _Line:
    """Our end of the connection to a peer."""

    peer: Peer
    socket: zmq.Socket[bytes]
    connection: int
    said: Said = field(default_factory=Said)


class Mailbox:
    """Messages in and out of one process.

    One thread sends and receives; only `wake` may be called from others. What is received
    is from this cluster, from a sender not known to be replaced, and addressed to this
    process: everything else is dropped and counted in `counters`. A sender without an epoch
    can only say hello. `on_gap(sender)` is called when messages of a sender were lost for good,
    `on_held(sender)` when one is held back until those before it have come.
    """

    def __init__(
        self,
        my_id: str,
        cluster_id: int,
        *,
        bind: str = sockets.LOOPBACK,
        secret: str | None = None,
        high_water_mark: int = 4096,
        max_message_bytes: int = 16 << 20,
        on_gap: Callable[[str], None] | None = None,
    ) -> None:
        self.my_id = my_id
        self.cluster_id = cluster_id
        self.on_gap = on_gap
        self.on_held: Callable[[str], None] | None = None
        self.counters: Counter[str] = Counter()
        self._epoch = 0
        self._max_message_bytes = max_message_bytes
        self._high_water_mark = high_water_mark
        self._keys = None if secret is None else sockets.CurveKeys.derive(secret, cluster_id)
        self._lines: dict[str, _Line] = {}
        self._num_connections = 0
        self._heard: dict[str, Heard] = {}
        self._next_beat = 0.0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._inbox = sockets.bind(
                self._context, zmq.PULL, bind, high_water_mark=high_water_mark,
                max_message_bytes=max_message_bytes, keys=self._keys,
            )  # fmt: skip
        except BaseException:
            self._context.term()
            raise
        self.endpoint = self._inbox.getsockopt_string(zmq.LAST_ENDPOINT)
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)

    @property
    def epoch(self) -> int:
        """This process's epoch, 0 until it was welcomed. A new one numbers messages anew."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if epoch == self._epoch:  # a second welcome, because the first was late
            return
        self._epoch = epoch
        for line in self._lines.values():
            line.said.restart()

    # ------------------------------------------------------------------ peers
    def connect(self, peer: Peer) -> None:
        """Learn how to reach a peer, or that it was replaced.

        A changed epoch or address drops what is queued for the process before it. WireError
        if the peer has no usable address.
        """
        address = peer.endpoints.get(_CONTROL)
        if address is None:
            raise WireError(f"peer {peer.id} has no {_CONTROL!r} endpoint")
        line = self._lines.get(peer.id)
        if line is not None and line.peer.endpoints[_CONTROL] == address:
            # From unknown to known is an introduction, not a replacement: keep the queue.
            if line.peer.epoch in (0, peer.epoch):
                line.peer = peer
                return
        self.forget(peer.id)
        socket = sockets.connect(
            self._context, zmq.PUSH, address,
            high_water_mark=self._high_water_mark, keys=self._keys,
        )  # fmt: skip
        self._num_connections += 1
        self._lines[peer.id] = _Line(peer, socket, self._num_connections)

    def forget(self, peer_id: str) -> None:
        """Close the connection to a peer and drop what is queued for it."""
        line = self._lines.pop(peer_id, None)
        if line is not None:
            line.socket.close()

    # ------------------------------------------------------------------ out
    def send(self, peer_id: str, message: Message) -> bool:
        """Queue a message. False when the peer is unknown or its queue is full."""
        line = self._lines.get(peer_id)
        if line is None:
            self.counters["unsent_unknown_peer"] += 1
            return False
        (frame,) = wire.encode(
            message, cluster_id=self.cluster_id, sender=self.my_id, sender_epoch=self._epoch,
            receiver_epoch=line.peer.epoch, connection=line.connection, sequence=line.said.sequence,
        )  # fmt: skip
        if len(frame) > self._max_message_bytes:
            self.counters["unsent_too_long"] += 1
            log.warning(
                "%s to %s not sent: its %d bytes are over the limit of %d",
                type(message).__name__, peer_id, len(frame), self._max_message_bytes,
            )  # fmt: skip
            return False
        try:
            line.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self.counters["unsent_queue_full"] += 1
            return False
        if not isinstance(message, NodeHello | GatewayHello):
            line.said.add(bytes(frame))
        self.counters["sent"] += 1
        return True

    def _beat(self) -> None:
        """Tell peers to whom nothing was said lately how much was said before, and ask again for
        what is missing: the last request may have been lost, too."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + _BEAT_S
        for line in self._lines.values():
            if line.said.beat() and self._epoch:
                self._send_beacon(line)
        for sender, heard in self._heard.items():
            self._ask(sender, heard, now)

    def _ask(self, sender: str, heard: Heard, now: float) -> None:
        line = self._lines.get(sender)
        if line is not None and heard.asks(now):
            self._send_unnumbered(line, Resend(heard.connection, heard.next_sequence))

    def _send_beacon(self, line: _Line) -> None:
        self._send_unnumbered(line, Beacon(line.said.oldest))

    def _send_unnumbered(self, line: _Line, message: Beacon | Resend) -> None:
        """These wait for no others, or two that both lack messages would wait for each other."""
        (frame,) = wire.encode(
            message, cluster_id=self.cluster_id, sender=self.my_id,
            sender_epoch=self._epoch, receiver_epoch=line.peer.epoch,
            connection=line.connection, sequence=line.said.sequence,
        )  # fmt: skip
        with suppress(zmq.Again):
            line.socket.send(frame, zmq.NOBLOCK)

    def _send_again(self, to: str, wanted: Resend) -> None:
        line = self._lines.get(to)
        if line is None or line.connection != wanted.connection:
            return
        if wanted.first < line.said.oldest:
            self._send_beacon(line)
        with suppress(zmq.Again):
            for frame in line.said.again(wanted.first, time.monotonic()):
                line.socket.send(frame, zmq.NOBLOCK)
                self.counters["resent"] += 1

    # ------------------------------------------------------------------ in
    def recv(self, timeout_s: float) -> tuple[str, Message] | None:
        """(sender, message), or None after `timeout_s`, at once when woken."""
        deadline = time.monotonic() + timeout_s
        while True:
            received = self._next()
            if received is not None:
                return received
            left_s = deadline - time.monotonic()
            # Rounded up: waking before the deadline would spin.
            ready = dict(self._poller.poll(max(0, int(left_s * 1000 + 0.999))))
            if self._waker.fileno() in ready:
                self._waker.drain()
                return None
            if left_s <= 0:
                return None

    def wake(self) -> None:
        """Make `recv` return. Callable from any thread; calls between two recvs count once."""
        self._waker.wake()

    def _next(self) -> tuple[str, Message] | None:
        """The next good message that is already here."""
        self._beat()
        # Bounded: a flood of garbage must not keep the caller from its other work.
        for _ in range(256):
            try:
                frames = self._inbox.recv_multipart(zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return None
            received = self._open(frames)
            if received is not None:
                return received
        return None

    def _open(self, frames: list[bytes]) -> tuple[str, Message] | None:
        try:
            header, message = wire.decode(
                frames, cluster_id=self.cluster_id, max_body=self._max_message_bytes
            )
        except wire.ForeignClusterError as error:
            self._drop("foreign_cluster", error)
            return None
        except WireError as error:
            self._drop("malformed", error)
            return None
        sender, hello = header.sender, isinstance(message, NodeHello | GatewayHello)
        # A hello introduces its sender to whoever is behind this id now.
        if header.receiver_epoch not in (0, self._epoch) and not hello:
            self._drop("wrong_receiver", f"for epoch {header.receiver_epoch} of this id")
            return None
        if not hello:
            if header.sender_epoch == 0:
                self._drop("stale", f"{type(message).__name__} of {sender}, not yet welcomed")
                return None
            if not self._in_order(header, message):
                return None
        self.counters["received"] += 1
        return sender, message

    def _in_order(self, header: wire.Header, message: Message) -> bool:
        """Whether this is to be taken: its sender still is who it was, and this comes next."""
        sender, epoch, now = header.sender, header.sender_epoch, time.monotonic()
        line = self._lines.get(sender)
        heard = self._heard.get(sender)
        stale = line is not None and epoch < line.peer.epoch
        if heard is None or (epoch, header.connection) > (heard.epoch, heard.connection):
            if not stale:
                heard = self._heard[sender] = Heard(epoch, header.connection)
        else:
            stale |= (epoch, header.connection) < (heard.epoch, heard.connection)
        if stale or heard is None:
            self._drop("stale", f"epoch {epoch} of {sender}")
            return False
        if type(message) is Resend:
            self._send_again(sender, message)
            return False
        if type(message) is Beacon:
            verdict = heard.beacon(header.sequence, message.oldest, now)
        else:
            verdict = heard.judge(header.sequence, now, can_ask=line is not None)
        if verdict is Verdict.GAP:
            self.counters["gaps"] += 1
            if self.on_gap is not None:
                self.on_gap(sender)
        elif verdict is not Verdict.TAKE:
            self.counters[f"dropped_{verdict.value}"] += 1
            if self.on_held is not None:
                self.on_held(sender)
        self._ask(sender, heard, now)
        return type(message) is not Beacon and verdict in (Verdict.TAKE, Verdict.GAP)

    def _drop(self, reason: str, detail: object) -> None:
        self.counters[f"dropped_{reason}"] += 1
        log.debug("dropped a message: %s", detail)

    def close(self, linger_s: float = 0.0) -> None:
        """Close every socket, after at most `linger_s` for what is still queued."""
        if self._context.closed:
            return
        for line in self._lines.values():
            line.socket.close(linger=int(linger_s * 1000))
        self._lines.clear()
        self._inbox.close()
        self._context.term()
        self._waker.close()


class AsyncMailbox(Mailbox):
    """The same mailbox for a coroutine: only `recv` differs."""

    async def recv(self, timeout_s: float) -> tuple[str, Message] | None:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            received = self._next()
            if received is not None:
                return received
            left_s = deadline - loop.time()
            woken = await self._readable(loop, left_s)
            if woken:
                self._waker.drain()
                return None
            if left_s <= 0:
                return None

    async def _readable(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> bool:
        """Wait until something may be here; True if somebody called `wake`."""
        ready: asyncio.Future[bool] = loop.create_future()

        def resolve(woken: bool) -> None:
            if not ready.done():
                ready.set_result(woken)

        # Watched only while waiting: ZeroMQ's descriptor stays readable until its socket is
        # read, so a watch without a reader would spin.
        descriptor = self._inbox.fileno()
        loop.add_reader(self._waker.fileno(), resolve, True)
        loop.add_reader(descriptor, resolve, False)
        timer = loop.call_later(max(0.0, timeout_s), resolve, False)
        try:
            return await ready
        finally:
            timer.cancel()
            loop.remove_reader(self._waker.fileno())
            loop.remove_reader(descriptor)
