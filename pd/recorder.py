"""The coordinator's input events in a file, and the same decisions again from it.

    file     magic, then records
    record   length of the payload (u32), kind of event (u8), time (f64), all little-endian;
             then the payload: a frame of `pd.wire` for a message, MessagePack for the rest

The first record holds the coordinator's limits. A coordinator decides by its events alone, so
feeding a recording to a fresh one gives the identical effects: an incident can be replayed,
stopped anywhere and looked into. What was decided then is recorded as a digest, by which a replay
knows that it decides the same. A recording holds prompts; its file is its owner's only.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec

from pd import wire
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.errors import ReplayError, WireError
from pd.messages import Message
from pd.outbox import Effect

log = logging.getLogger(__name__)

MAGIC = b"pdREC\1"
MAX_RECORD_BYTES = 64 << 20
_HEAD = struct.Struct("<IBd")
_CLUSTER = 0  # recorded frames never travel


class EventKind(IntEnum):
    LIMITS = 1
    MESSAGE = 2
    PROCESS_LOST = 3
    UNDELIVERABLE = 4
    TICK = 5
    EFFECTS = 6


@dataclass(frozen=True, slots=True)
class Loss:
    """The arguments of `Coordinator.on_process_lost`, but for the time."""

    member_id: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """One recorded event. `member` is a message's sender or, undeliverable, its receiver."""

    kind: EventKind
    now: float = 0.0
    member: str = ""
    message: Message | None = None
    loss: Loss | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Replayed:
    """An effect, and the time of the event that led to it."""

    now: float
    effect: Effect


class Recorder(Coordinator):
    """A coordinator that writes every event it is given to `path` before it handles it.

    It never fails because of that: when the file cannot be written, or would grow beyond
    `max_bytes`, recording ends with a line in the log and the coordinator goes on.
    """

    def __init__(
        self, limits: CoordinatorLimits, path: str | Path, *, max_bytes: int = 1 << 30
    ) -> None:
        super().__init__(limits)
        self._path = path
        self._room = max_bytes
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file: BinaryIO | None = os.fdopen(descriptor, "wb")
        self._file.write(MAGIC)
        self._record(EventKind.LIMITS, 0.0, msgspec.msgpack.encode(limits))

    def on_message(self, sender: str, message: Message, now: float) -> None:
        self._record(EventKind.MESSAGE, now, _frame(sender, message))
        super().on_message(sender, message, now)

    def on_process_lost(self, member_id: str, incarnation: int, now: float, reason: str) -> None:
        loss = Loss(member_id, incarnation, reason)
        self._record(EventKind.PROCESS_LOST, now, msgspec.msgpack.encode(loss))
        super().on_process_lost(member_id, incarnation, now, reason)

    def on_undeliverable(self, to: str, message: Message) -> None:
        self._record(EventKind.UNDELIVERABLE, 0.0, _frame(to, message))
        super().on_undeliverable(to, message)

    def tick(self, now: float) -> None:
        self._record(EventKind.TICK, now, b"")
        self._flush()
        super().tick(now)

    def drain(self) -> list[Effect]:
        effects = super().drain()
        if effects:
            self._record(EventKind.EFFECTS, 0.0, _digest(effects))
        return effects

    def close(self) -> None:
        """Write out what is buffered. The coordinator itself may go on, unrecorded."""
        self._flush()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _record(self, kind: EventKind, now: float, payload: bytes) -> None:
        if self._file is None:
            return
        self._room -= _HEAD.size + len(payload)
        if self._room < 0:
            log.warning("%s has reached its largest size: recording ends here", self._path)
            self.close()
            return
        try:
            self._file.write(_HEAD.pack(len(payload), kind, now) + payload)
        except OSError as error:
            self._give_up(error)

    def _flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.error("%s cannot be written (%s): recording ends here", self._path, error)
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            pass  # what it could not write before it cannot write now


def read(path: str | Path) -> Iterator[Event | CoordinatorLimits]:
    """The limits, then the events of a recording. One cut off in mid-record, as by the death of
    its writer, ends with the last whole one. WireError for anything else that is not right."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise WireError(f"{path} is not a recording of this version")
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            size, number, now = _HEAD.unpack(head)
            if size > MAX_RECORD_BYTES:
                raise WireError(f"{path} is damaged: a record of {size} bytes")
            payload = file.read(size)
            if len(payload) < size:
                return
            yield _decode(number, now, payload)


def replay(path: str | Path) -> Iterator[Replayed]:
    """Everything that a fresh coordinator does when it is given the events of a recording.

    ReplayError where that is not what was done when it was recorded: by other code, or since
    something else than the events had a say.
    """
    events = read(path)
    limits = next(events, None)
    if not isinstance(limits, CoordinatorLimits):
        raise WireError(f"{path} does not begin with the coordinator's limits")
    coordinator = Coordinator(limits)
    now = 0.0
    for number, event in enumerate(events, 1):
        if isinstance(event, CoordinatorLimits):
            raise WireError(f"{path} holds the coordinator's limits twice")
        if event.kind is not EventKind.EFFECTS:
            now = event.now or now
            apply(coordinator, event)
            continue
        effects = coordinator.drain()
        if _digest(effects) != event.digest:
            raise ReplayError(
                f"event {number} of {path}, at {now:.3f} s: what is decided now is not what was "
                "decided when it was recorded; replay it with the version that recorded it"
            )
        yield from (Replayed(now, effect) for effect in effects)
    yield from (Replayed(now, effect) for effect in coordinator.drain())


def apply(coordinator: Coordinator, event: Event) -> None:
    """Give one recorded event to a coordinator."""
    if event.kind is EventKind.TICK:
        coordinator.tick(event.now)
    elif event.loss is not None:
        loss = event.loss
        coordinator.on_process_lost(loss.member_id, loss.incarnation, event.now, loss.reason)
    elif event.message is not None:
        if event.kind is EventKind.UNDELIVERABLE:
            coordinator.on_undeliverable(event.member, event.message)
        else:
            coordinator.on_message(event.member, event.message, event.now)


def _digest(effects: list[Effect]) -> bytes:
    return blake2b(repr(effects).encode(), digest_size=8).digest()


def _frame(member: str, message: Message) -> bytes:
    (frame,) = wire.encode(message, cluster_id=_CLUSTER, sender=member)
    return bytes(frame)


def _decode(number: int, now: float, payload: bytes) -> Event | CoordinatorLimits:
    try:
        kind = EventKind(number)
        if kind is EventKind.LIMITS:
            return msgspec.msgpack.decode(payload, type=CoordinatorLimits)
        if kind is EventKind.PROCESS_LOST:
            return Event(kind, now, loss=msgspec.msgpack.decode(payload, type=Loss))
        if kind is EventKind.TICK:
            return Event(kind, now)
        if kind is EventKind.EFFECTS:
            return Event(kind, now, digest=payload)
    except (ValueError, msgspec.MsgspecError) as error:
        raise WireError(f"a record of kind {number} cannot be decoded: {error}") from None
    header, message = wire.decode([payload], cluster_id=_CLUSTER, max_body=MAX_RECORD_BYTES)
    return Event(kind, now, header.sender, message)
