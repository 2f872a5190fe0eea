"""What may be written into this node's pages, and by whom."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Grant:
    """Pages one sender may fill. `open` until the owner forgets the transfer."""

    transfer_id: int
    sender: str
    sender_epoch: int
    blocks: tuple[int, ...]
    open: bool = True
    filled: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.filled = bytearray(len(self.blocks))


class Expected:
    """The grants of a node; shared between its owner and the threads of its transports.

    Only these decide where arriving bytes go: a message names a transfer and a place in it,
    never a page. Whoever writes into pages holds `lock` and looks at `Grant.open` first, so
    that after `forget` has returned no thread of this process writes into them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._grants: dict[int, Grant] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def expect(
        self, transfer_id: int, sender: str, sender_epoch: int, blocks: Sequence[int]
    ) -> None:
        with self.lock:
            if transfer_id in self._grants:
                raise ValueError(f"transfer {transfer_id} is expected already")
            self._grants[transfer_id] = Grant(transfer_id, sender, sender_epoch, tuple(blocks))

    def forget(self, transfer_id: int) -> None:
        with self.lock:
            grant = self._grants.pop(transfer_id, None)
            if grant is not None:
                grant.open = False

    def find(self, transfer_id: int, sender: str, sender_epoch: int) -> Grant | None:
        """The grant of this transfer to this sender in this epoch, if there is one."""
        grant = self._grants.get(transfer_id)
        if grant is None or (grant.sender, grant.sender_epoch) != (sender, sender_epoch):
            return None
        return grant

    def fill(self, grant: Grant, first: int, count: int) -> tuple[int, ...]:
        """The pages of a run, marked as filled. None are given twice, nor any outside of the
        grant: then the answer is empty."""
        with self.lock:
            inside = 0 <= first < first + count <= len(grant.blocks)
            if not inside or not grant.open or any(grant.filled[first : first + count]):
                return ()
            grant.filled[first : first + count] = b"\1" * count
            return grant.blocks[first : first + count]
