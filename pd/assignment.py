"""Work that the coordinator has placed, or has yet to place. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pd.messages import Admitted
from pd.router import Query
from pd.types import Work


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where one output of a request of this gateway runs now, of up to `max_tokens`.
    `transfer_id` is 0 if an earlier coordinator assigned it, and then that is not known."""

    gateway: str
    transfer_id: int
    admitted: Admitted
    ttft_target_s: float | None = None
    max_tokens: int = 0

    def runs_on(self, node_id: str, epoch: int) -> bool:
        """Whether either half of it runs on this node, or on a process before it."""
        admitted = self.admitted
        return (admitted.decode == node_id and admitted.decode_epoch <= epoch) or (
            admitted.prefill == node_id and admitted.prefill_epoch <= epoch
        )


@dataclass(slots=True)
class Parked:
    """Work that waits for a node to come back: it was interrupted, or the coordinator has just
    been started anew and nodes have yet to say hello."""

    work: Work
    query: Query
    since: float
