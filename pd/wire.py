"""Messages as bytes: a fixed header, a MessagePack body with a schema, raw payload frames.

    frame 0   header (little-endian, HEADER_BYTES long), then the body
    frame 1.. payload: block bytes, as they lie in memory

Everything a header claims is verified before anything is decoded or allocated, and every
refusal is a WireError that names its cause. The checksum covers header and body, so a
flipped bit anywhere in them is noticed; payload is checksummed by whoever sends it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from pd.errors import WireError
from pd.messages import KINDS

MAGIC = b"pdKV"
VERSION = 1
MAX_ID_BYTES = 48

# magic, version, kind, flags, cluster, sender, sender epoch, receiver epoch, transfer, layout,
# connection, sequence, body length, payload length; the checksum follows.
_HEADER = struct.Struct(f"<4sHHIQ{MAX_ID_BYTES}sIIQQIQIQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size

Frame = bytes | bytearray | memoryview


class ForeignClusterError(WireError):
    """The frame belongs to another cell."""


@dataclass(frozen=True, slots=True)
class Header:
    """Who sent a message to whom, and where it stands in their conversation.

    An epoch of 0 means "not known": of a sender that was not welcomed yet, or of a receiver
    that the sender has not been told about. `connection` counts a sender's connections to
    this receiver, `sequence` the messages on one of them, from 0.
    """

    kind: int
    cluster_id: int
    sender: str
    sender_epoch: int = 0
    receiver_epoch: int = 0
    transfer_id: int = 0
    layout: int = 0
    connection: int = 0
    sequence: int = 0
    flags: int = 0
    payload_bytes: int = 0


class Codec:
    """Encodes and decodes the message classes of one conversation, by their kind number."""

    def __init__(self, kinds: Mapping[int, type]) -> None:
        self.kinds = dict(kinds)
        self._kind_of = {message: kind for kind, message in kinds.items()}
        self._name_of = {kind: message.__name__ for kind, message in kinds.items()}
        self._decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {
            kind: msgspec.msgpack.Decoder(message) for kind, message in kinds.items()
        }
        self._encoder = msgspec.msgpack.Encoder()

    def encode(
        self,
        message: object,
        *,
        cluster_id: int,
        sender: str,
        sender_epoch: int = 0,
        receiver_epoch: int = 0,
        transfer_id: int = 0,
        layout: int = 0,
        connection: int = 0,
        sequence: int = 0,
        flags: int = 0,
        payload: Sequence[Frame] = (),
    ) -> list[Frame]:
        """The frames of a message; `payload` frames follow as they are, not copied."""
        kind = self._kind_of.get(type(message))
        if kind is None:
            raise WireError(f"{type(message).__name__} is not a message of this conversation")
        name = sender.encode()
        if not 0 < len(name) <= MAX_ID_BYTES or not sender.isascii() or "\0" in sender:
            raise WireError(f"sender id {sender!r} must be 1 to {MAX_ID_BYTES} ASCII characters")
        body = self._encoder.encode(message)
        size = sum(memoryview(frame).nbytes for frame in payload)
        try:
            header = _HEADER.pack(
                MAGIC, VERSION, kind, flags, cluster_id, name, sender_epoch, receiver_epoch,
                transfer_id, layout, connection, sequence, len(body), size,
            )  # fmt: skip
        except struct.error as error:
            raise WireError(f"a header field is out of range: {error}") from None
        checksum = _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header + body))
        return [header + checksum + body, *payload]

    def decode(
        self, frames: Sequence[Frame], *, cluster_id: int, max_body: int, max_payload: int = 0
    ) -> tuple[Header, Any]:
        """Header and message of `frames`, as they came from a socket.

        Payload frames are only measured; they stay with the caller.
        """
        if not frames:
            raise WireError("no frames")
        view = memoryview(frames[0])
        if view.nbytes < HEADER_BYTES:
            raise WireError(f"{view.nbytes} bytes are too few for a header of {HEADER_BYTES}")
        (
            magic, version, kind, flags, cluster, name, sender_epoch, receiver_epoch,
            transfer_id, layout, connection, sequence, body_bytes, payload_bytes,
        ) = _HEADER.unpack_from(view)  # fmt: skip
        if magic != MAGIC:
            raise WireError("not a frame of this protocol")
        if version != VERSION:
            raise WireError(f"protocol version {version} is not the {VERSION} spoken here")
        if cluster != cluster_id:
            raise ForeignClusterError(f"cluster {cluster:#x} is not ours, {cluster_id:#x}")
        if body_bytes > max_body:
            raise WireError(f"body of {body_bytes} bytes is over the limit of {max_body}")
        if view.nbytes != HEADER_BYTES + body_bytes:
            raise WireError(f"{view.nbytes} bytes, but the header says {HEADER_BYTES + body_bytes}")
        if payload_bytes > max_payload:
            raise WireError(f"payload of {payload_bytes} bytes is over the limit of {max_payload}")
        size = sum(memoryview(frame).nbytes for frame in frames[1:])
        if size != payload_bytes:
            raise WireError(f"payload of {size} bytes, but the header says {payload_bytes}")
        body = view[HEADER_BYTES:]
        (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
        digest = xxhash.xxh3_64(view[: _HEADER.size])
        digest.update(body)
        if digest.intdigest() != checksum:
            raise WireError("checksum of header and body is wrong: the frame is damaged")
        decoder = self._decoders.get(kind)
        if decoder is None:
            raise WireError(f"message kind {kind} is not known here")
        try:
            sender = name.rstrip(b"\0").decode("ascii")
            message = decoder.decode(body)
            if not sender:
                raise ValueError("the sender has no id")
        # What msgspec and the codecs raise on bad input, and nothing that would hide a bug of ours.
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise WireError(f"{self._name_of[kind]} cannot be decoded: {error}") from None
        header = Header(
            kind, cluster, sender, sender_epoch, receiver_epoch, transfer_id, layout,
            connection, sequence, flags, payload_bytes,
        )  # fmt: skip
        return header, message


CONTROL = Codec(KINDS)
encode = CONTROL.encode
decode = CONTROL.decode
