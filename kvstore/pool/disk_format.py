"""What the disk tier writes about each of its slots.

A slot's header takes 128 bytes, little-endian:

    offset  size  field
         0     8  magic
         8     4  version of this format
        12     4  flags: bit 0, the payload has a checksum
        16     8  fingerprint of the KV layout
        24     8  sequence number: larger is newer
        32    32  key of the block
        64     8  bytes of payload
        72     8  XXH3-64 of the payload
        80    40  zero
       120     8  XXH3-64 of the 120 bytes before

An empty slot has a header of zeros. A header never straddles a sector of a disk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

KEY_BYTES = 32
HEADER_BYTES = 128
EMPTY = bytes(HEADER_BYTES)

_MAGIC = b"PDKVSLOT"
# Raise it when the header changes, or where a slot's payload lies.
_VERSION = 1
_CHECKED = 1
_FIELDS = struct.Struct("<8sIIQQ32sQQ40x")
_CHECKSUM = struct.Struct("<Q")
_ROW = np.dtype(
    [("magic", "S8"), ("version", "<u4"), ("flags", "<u4"), ("fingerprint", "<u8"),
     ("sequence", "<u8"), ("key", f"V{KEY_BYTES}"), ("payload_bytes", "<u8"), ("rest", "V56")]
)  # fmt: skip


class Header(NamedTuple):
    """What a slot holds; `checksum` is None if its writer took none."""

    key: bytes
    sequence: int
    checksum: int | None


class Inventory(NamedTuple):
    """What a table of headers says.

    `slots` are those whose header can be trusted, oldest first; of several slots with one
    key the newest. The others that were not empty are counted by why they were dropped.
    """

    slots: list[tuple[int, bytes]]
    last_sequence: int
    torn: int
    foreign: int
    unchecked: int
    duplicates: int


@dataclass(frozen=True)
class HeaderFormat:
    """Headers of one layout's blocks, each with a payload of `payload_bytes`."""

    fingerprint: int
    payload_bytes: int

    def pack(self, header: Header) -> bytes:
        flags, checksum = (0, 0) if header.checksum is None else (_CHECKED, header.checksum)
        fields = _FIELDS.pack(
            _MAGIC, _VERSION, flags, self.fingerprint, header.sequence, header.key,
            self.payload_bytes, checksum,
        )  # fmt: skip
        return fields + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))

    def parse(self, raw: bytes) -> Header | None:
        """None for a header that is empty, damaged, or of another format or layout."""
        if not _is_whole(raw):
            return None
        magic, version, flags, fingerprint, sequence, key, payload_bytes, checksum = (
            _FIELDS.unpack_from(raw)
        )
        if (magic, version) != (_MAGIC, _VERSION):
            return None
        if (fingerprint, payload_bytes) != (self.fingerprint, self.payload_bytes):
            return None
        return Header(key, sequence, checksum if flags & _CHECKED else None)

    def scan(self, table: bytes, *, checked_only: bool) -> Inventory:
        """Read the headers of slots 0, 1, ... that lie one after the other.

        `checked_only` drops the blocks that have no checksum.
        """
        rows = np.frombuffer(table, np.uint8).reshape(-1, HEADER_BYTES)
        written = np.flatnonzero(rows.any(axis=1))
        view = memoryview(table)
        whole = np.array(
            [_is_whole(view[i * HEADER_BYTES : (i + 1) * HEADER_BYTES]) for i in written], bool
        )
        slots = written[whole]
        fields = rows.view(_ROW).reshape(-1)[slots]
        ours = (
            (fields["magic"] == _MAGIC)
            & (fields["version"] == _VERSION)
            & (fields["fingerprint"] == self.fingerprint)
            & (fields["payload_bytes"] == self.payload_bytes)
        )
        usable = ours & ((fields["flags"] & _CHECKED) != 0) if checked_only else ours
        newest = _newest(slots[usable], fields[usable])
        return Inventory(
            slots=newest,
            last_sequence=int(fields["sequence"][ours].max(initial=0)),
            torn=len(written) - len(slots),
            foreign=len(slots) - int(ours.sum()),
            unchecked=int(ours.sum()) - int(usable.sum()),
            duplicates=int(usable.sum()) - len(newest),
        )


def _is_whole(raw: bytes | memoryview) -> bool:
    at = _FIELDS.size
    (said,) = _CHECKSUM.unpack_from(raw, at)
    return said == xxhash.xxh3_64_intdigest(raw[:at])


def _newest(slots: NDArray[np.intp], fields: NDArray[np.void]) -> list[tuple[int, bytes]]:
    """(slot, key) by age, and of equal keys only the last."""
    order = np.argsort(fields["sequence"], kind="stable")
    found: dict[bytes, int] = {}
    for slot, key in zip(slots[order].tolist(), fields["key"][order].tolist()):
        found.pop(key, None)  # so that the key moves to the end
        found[key] = slot
    return [(slot, key) for key, slot in found.items()]
