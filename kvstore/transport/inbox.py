"""The receiver's side: checks what comes, has it taken in, and answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

from kvstore.layout import KVLayout
from kvstore.transport.base import LocalNode
from kvstore.transport.events import Arrived
from kvstore.transport.expected import Grant
from pd import wire
from pd.errors import WireError

log = logging.getLogger(__name__)

MAX_BODY = 4096
_DAMAGED = "damaged on the way"

# As many messages as are taken before the thread looks at anything else.
_BURST = 8


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks [first, first + count) of a transfer, and the digest of their bytes.

    They are in this dtype and of these heads; no dtype means that the receiver's layout is meant.
    """

    first: int
    count: int
    digest: int
    dtype: str = ""
    kv_head_start: int = 0
    num_kv_heads: int = 0


@dataclass(frozen=True, slots=True)
class Landed:
    """The answer to the `Blocks` of this sequence number; `reason` says why not `ok`."""

    sequence: int
    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The `Blocks` of this sequence number may come: the receiver waits for their bytes."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Written:
    """The bytes of the `Blocks` of this sequence number are where they belong."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """An entry of the table by which the two ends of a connection `group` find each other."""

    group: int
    key: str
    value: bytes


CODEC = wire.Codec({100: Blocks, 101: Landed, 102: Ready, 103: Written, 104: Rendezvous})


@dataclass(frozen=True, slots=True, eq=False)
class Landing:
    """Blocks that were let in: from whom, and where they go. What comes has this `layout`."""

    identity: bytes
    header: wire.Header
    message: Blocks
    grant: Grant
    pages: tuple[int, ...]
    layout: KVLayout


# Whether the pages now have what the sender sent; None if the transport will `finish` it later.
Land = Callable[[Landing, Sequence[zmq.Frame]], bool | None]

# (identity, header, message) -> whether a message that is not of blocks was understood
Hear = Callable[[bytes, wire.Header, object], bool]


class Inbox:
    """A ROUTER socket that believes nothing it is told.

    Every `Blocks` that is well-formed is answered, so that its sender need not wait for a
    time-out. An `Arrived` is only reported of a transfer that is expected from that sender.
    """

    def __init__(
        self,
        node: LocalNode,
        name: str,
        socket: zmq.Socket[bytes],
        land: Land,
        payload_bytes: int,
        hear: Hear | None = None,
    ) -> None:
        self.node = node
        self.name = name
        self.socket = socket
        self._land = land
        self._payload_bytes = payload_bytes
        self._hear = hear

    def receive(self) -> None:
        """Deal with the messages that are there, or with some if they are many."""
        with suppress(zmq.Again):
            for _ in range(_BURST):
                self._take_in(*self.socket.recv_multipart(zmq.NOBLOCK, copy=False))

    def _take_in(self, identity: zmq.Frame, *frames: zmq.Frame) -> None:
        node = self.node
        try:
            header, message = CODEC.decode(
                [frame.buffer for frame in frames], cluster_id=node.cluster_id,
                max_body=MAX_BODY, max_payload=self._payload_bytes,
            )  # fmt: skip
            if not isinstance(message, Blocks):
                if self._hear is None or not self._hear(identity.bytes, header, message):
                    raise WireError(f"{message} is not for a receiver")
                return
        except WireError as error:
            self.refused(error)
            return
        reason = self._take(identity.bytes, header, message, frames[1:])
        if reason is not None:
            self._answer(identity.bytes, header, reason)

    def _take(
        self,
        identity: bytes,
        header: wire.Header,
        message: Blocks,
        payload: Sequence[zmq.Frame],
    ) -> str | None:
        """Take blocks in if everything about them is right; else why not. None: later."""
        node = self.node
        layout = node.arena.layout
        if header.receiver_epoch != node.epoch:
            return f"meant for epoch {header.receiver_epoch}, this is {node.epoch}"
        payload_layout = _payload_layout(message, layout)
        if payload_layout is None or header.layout != payload_layout.fingerprint:
            return "KV layouts differ (model, layers, heads or block size)"
        grant = node.expected.find(header.transfer_id, header.sender, header.sender_epoch)
        if grant is None:
            return "not expected"
        pages = node.expected.fill(grant, message.first, message.count)
        landing = Landing(identity, header, message, grant, pages, payload_layout)
        if not pages:
            reason = f"blocks {message.first} + {message.count} are not granted, or came twice"
            return self._arrived(landing, reason)
        landed = self._land(landing, payload)
        return None if landed is None else self._arrived(landing, "" if landed else _DAMAGED)

    def finish(self, landing: Landing, ok: bool) -> None:
        """Report and answer what was to land later."""
        reason = self._arrived(landing, "" if ok else _DAMAGED)
        self._answer(landing.identity, landing.header, reason)

    def drop(self, landing: Landing) -> None:
        """Answer what was let in and did not come. Nothing has arrived, so nothing is reported."""
        self._answer(landing.identity, landing.header, "the bytes did not come")

    def _arrived(self, landing: Landing, reason: str) -> str:
        """Report blocks of a grant, taken in if there is no reason why not."""
        if landing.grant.open:
            message, size = landing.message, landing.layout.block_bytes
            num_bytes = 0 if reason else len(landing.pages) * size
            self.node.events.put(
                Arrived(
                    landing.header.transfer_id, message.first, message.count, not reason, num_bytes
                )
            )
        return reason

    def _answer(self, identity: bytes, header: wire.Header, reason: str) -> None:
        if reason:
            self.refused(f"blocks of transfer {header.transfer_id} from {header.sender}: {reason}")
        self.say(identity, header, Landed(header.sequence, not reason, reason))

    def say(self, identity: bytes, header: wire.Header, message: object) -> None:
        """Answer the message of this header."""
        node = self.node
        answer = CODEC.encode(
            message, cluster_id=node.cluster_id, sender=node.id, sender_epoch=node.epoch,
            receiver_epoch=header.sender_epoch, transfer_id=header.transfer_id,
        )  # fmt: skip
        with suppress(zmq.ZMQError):  # the sender is gone, or does not read its answers
            self.socket.send_multipart([identity, *answer], zmq.NOBLOCK)

    def refused(self, reason: object) -> None:
        self.node.counters["refused"] += 1
        log.warning("%s transport of %s refused: %s", self.name, self.node.id, reason)


def _payload_layout(message: Blocks, layout: KVLayout) -> KVLayout | None:
    """The layout that these blocks claim to have, if a receiver of `layout` has any use for it."""
    claimed = message.dtype, message.kv_head_start, message.num_kv_heads
    if not message.dtype or claimed == (layout.dtype, layout.kv_head_start, layout.num_kv_heads):
        return layout
    try:
        part = layout.part(*claimed)
    except ValueError:
        return None
    ours = part.kv_head_start >= layout.kv_head_start and part.kv_heads.stop <= layout.kv_heads.stop
    return part if ours else None
