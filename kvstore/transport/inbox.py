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

# As many messages as are taken before the thread looks at anything else.
_BURST = 8


@dataclass(frozen=True, slots=True)
class Landing:
    """What came, and where it goes: bytes of `layout`, with this digest, for these pages."""

    grant: Grant
    pages: tuple[int, ...]
    layout: KVLayout
    digest: int


# Whether the pages now have what the sender sent.
Land = Callable[[Landing, Sequence[zmq.Frame]], bool]


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


CODEC = wire.Codec({100: Blocks, 101: Landed})


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
    ) -> None:
        self.node = node
        self.name = name
        self.socket = socket
        self._land = land
        self._payload_bytes = payload_bytes

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
                raise WireError(f"{message} is not for a receiver")
        except WireError as error:
            self.refused(error)
            return
        ok, reason = self._take(header, message, frames[1:])
        if not ok:
            self.refused(f"blocks of transfer {header.transfer_id} from {header.sender}: {reason}")
        answer = CODEC.encode(
            Landed(header.sequence, ok, reason), cluster_id=node.cluster_id, sender=node.id,
            sender_epoch=node.epoch, receiver_epoch=header.sender_epoch,
            transfer_id=header.transfer_id,
        )  # fmt: skip
        with suppress(zmq.ZMQError):  # the sender is gone, or does not read its answers
            self.socket.send_multipart([identity, *answer], zmq.NOBLOCK)

    def _take(
        self, header: wire.Header, message: Blocks, payload: Sequence[zmq.Frame]
    ) -> tuple[bool, str]:
        """Take blocks in if everything about them is right; (whether, why not)."""
        node = self.node
        layout = node.arena.layout
        if header.receiver_epoch != node.epoch:
            return False, f"meant for epoch {header.receiver_epoch}, this is {node.epoch}"
        payload_layout = _payload_layout(message, layout)
        if payload_layout is None or header.layout != payload_layout.fingerprint:
            return False, "KV layouts differ (model, layers, heads or block size)"
        grant = node.expected.find(header.transfer_id, header.sender, header.sender_epoch)
        if grant is None:
            return False, "not expected"
        pages = node.expected.fill(grant, message.first, message.count)
        if not pages:
            reason = f"blocks {message.first} + {message.count} are not granted, or came twice"
        elif self._land(Landing(grant, pages, payload_layout, message.digest), payload):
            reason = ""
        else:
            reason = "damaged on the way"
        if grant.open:
            num_bytes = 0 if reason else len(pages) * payload_layout.block_bytes
            node.events.put(
                Arrived(header.transfer_id, message.first, message.count, not reason, num_bytes)
            )
        return not reason, reason

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
