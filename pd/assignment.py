"""Work that the coordinator has placed, or has yet to place. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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
class Assignments:
    """Where everything runs: of each request its outputs, by index. What is found is grouped by
    assignment, since that is how it is told of."""

    by_request: dict[str, dict[int, Assignment]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Of requests."""
        return len(self.by_request)

    def put(self, assignment: Assignment) -> None:
        """In place of what was known of these outputs."""
        admitted = assignment.admitted
        outputs = self.by_request.setdefault(admitted.request_id, {})
        outputs.update(dict.fromkeys(admitted.indices, assignment))

    def release(self, request_id: str, indices: Iterable[int]) -> list[tuple[Assignment, int]]:
        """Forget these outputs; returns those that were known."""
        outputs = self.by_request.get(request_id, {})
        released = [(outputs.pop(index), index) for index in indices if index in outputs]
        if not outputs:
            self.by_request.pop(request_id, None)
        return released

    def of(self, admitted: Admitted) -> list[tuple[Assignment, list[int]]]:
        """The outputs that still run as this says."""
        outputs = self.by_request.get(admitted.request_id, {})
        return _grouped((i, each) for i, each in outputs.items() if each.admitted == admitted)

    def on(self, node_id: str, epoch: int) -> list[tuple[Assignment, list[int]]]:
        """What runs on this node, or on a process before it."""
        return [
            found
            for outputs in self.by_request.values()
            for found in _grouped(
                (i, each) for i, each in outputs.items() if each.runs_on(node_id, epoch)
            )
        ]

    def inherited_by(self, node_id: str) -> list[Assignment]:
        """What decodes there, or so an earlier coordinator had it."""
        return [
            assignment
            for outputs in self.by_request.values()
            for assignment in dict.fromkeys(outputs.values())
            if not assignment.transfer_id and assignment.admitted.decode == node_id
        ]

    def of_gateway(self, gateway_id: str) -> list[tuple[str, tuple[int, ...]]]:
        """Its requests, and the outputs of each."""
        return [
            (request_id, tuple(outputs))
            for request_id, outputs in self.by_request.items()
            if next(iter(outputs.values())).gateway == gateway_id
        ]


def _grouped(outputs: Iterable[tuple[int, Assignment]]) -> list[tuple[Assignment, list[int]]]:
    found: dict[Assignment, list[int]] = {}
    for index, assignment in outputs:
        found.setdefault(assignment, []).append(index)
    return list(found.items())


@dataclass(slots=True)
class Parked:
    """Work that waits for a node to come back: it was interrupted, or the coordinator has just
    been started anew and nodes have yet to say hello."""

    work: Work
    query: Query
    since: float
