"""One prompt on its way to a decode node, from the request for room to its first decode step."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.transfer import IncomingStatus, IncomingTransfer
from pd.messages import Interrupted, Started
from pd.types import Work
from prefill_node.scheduler import PrefillTask

_WANTED = (IncomingStatus.RESERVED, IncomingStatus.RECEIVING, IncomingStatus.COMPLETE)


@dataclass(slots=True, eq=False)
class Handoff:
    """One prompt on its way in. `transfer` and `table` exist once room is granted.

    `task` is set when the prompt is prefilled on this very node; then no transfer is needed.
    `first` are the first tokens of the sequences that go on, once the prefill node sent them.
    """

    work: Work
    transfer_id: int
    sender: str
    sender_epoch: int
    hashes: list[bytes]
    task: PrefillTask | None = None
    transfer: IncomingTransfer | None = None
    table: list[int] = field(default_factory=list)
    num_cached: int = 0
    first: dict[int, int] | None = None
    first_at: float = 0.0
    early_blocks: int = 0  # had arrived when the first tokens came
    dropped: set[int] = field(default_factory=set)
    asked_to_stop: float = 0.0

    @property
    def num_live(self) -> int:
        return len(self.work.indices) - len(self.dropped)

    @property
    def receiving(self) -> bool:
        """Granted and not given up: its sender may still fill the pages."""
        return self.transfer is not None and self.transfer.status in _WANTED

    def interrupted(self, reason: str) -> Interrupted | None:
        """What its gateway is told when it ends early; None if nobody waits for it."""
        indices = tuple(index for index in self.work.indices if index not in self.dropped)
        if not indices:
            return None
        return Interrupted(self.work.request.request_id, indices, self.work.attempt, reason)

    def report(self, block_size: int, block_bytes: int, now: float) -> Started:
        """What it took to bring its KV here, told when its sequences start."""
        moved = 0 if self.transfer is None else len(self.transfer.blocks)
        return Started(
            self.work.request.request_id,
            self.work.indices,
            self.work.attempt,
            moved_bytes=moved * block_bytes,
            early_bytes=self.early_blocks * block_bytes,
            cached_tokens=self.num_cached * block_size,
            wait_s=now - self.first_at,
        )
