"""What a pool node's brain wants from its disk, and hears back. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pd.outbox import Effect


@dataclass(frozen=True, slots=True)
class DiskWrite:
    """Write the block of this key from a page into a slot."""

    slot: int
    key: bytes
    page: int


@dataclass(frozen=True, slots=True)
class DiskRead:
    """Read a slot into a page and verify that it holds the block of this key."""

    slot: int
    key: bytes
    page: int


@dataclass(frozen=True, slots=True)
class DiskErase:
    """Nothing in this slot is to be found again."""

    slot: int


@dataclass(frozen=True, slots=True)
class DiskOutcome:
    """A write or read is over; without `ok` nothing of it may be used."""

    kind: Literal["write", "read"]
    slot: int
    key: bytes
    ok: bool


DiskEffect = DiskWrite | DiskRead | DiskErase
PoolEffect = Effect | DiskEffect
