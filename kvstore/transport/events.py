"""What a transport reports to the node it belongs to. Plain data, standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pushed:
    """A push came back to its sender: its source blocks are no longer read."""

    transfer_id: int
    first: int
    count: int
    ok: bool
    seconds: float = 0.0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Arrived:
    """Blocks [first, first + count) of a transfer are in the receiver's pages.

    `ok` says that their content was verified against the sender's checksum.
    """

    transfer_id: int
    first: int
    count: int
    ok: bool
    num_bytes: int = 0


TransferEvent = Pushed | Arrived
