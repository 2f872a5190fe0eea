"""Block transfers in virtual time: every node has one way out and one way in. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pd.cost.model import CostModel, Link

Route = tuple[str, str]


class Links:
    """When a push ends. A node's pushes leave one after the other, and so do arrive those that
    go to one node; what they wait for is the bytes before them, not their latency.

    `overrides` are paths that replace those of the cost models.
    """

    def __init__(self, overrides: Mapping[str, Link]) -> None:
        self._overrides = overrides
        self._out: defaultdict[str, float] = defaultdict(float)  # busy until
        self._into: defaultdict[str, float] = defaultdict(float)
        self._figures: dict[tuple[int, str], tuple[float, float]] = {}
        self.num_bytes = 0
        self.busy_s: defaultdict[str, float] = defaultdict(float)  # by sender

    def push(
        self, sender: str, receiver: str, num_bytes: int, path: str, cost: CostModel, now: float
    ) -> tuple[float, float]:
        """Begin a push as soon as both ends are free: (when it begins, when it has arrived)."""
        latency_s, takes_s = self._times(num_bytes, path, cost)
        begins = max(now, self._out[sender], self._into[receiver])
        self._out[sender] = self._into[receiver] = begins + takes_s
        self.num_bytes += num_bytes
        self.busy_s[sender] += takes_s
        return begins, begins + takes_s + latency_s

    def lost(self, node_id: str) -> None:
        """Its process is gone, and what it was sending or receiving with it."""
        self._out.pop(node_id, None)
        self._into.pop(node_id, None)

    def _times(self, num_bytes: int, path: str, cost: CostModel) -> tuple[float, float]:
        link = self._overrides.get(path)
        if link is not None:
            return link.latency_s, num_bytes / link.bytes_per_s
        key = (id(cost), path)
        if key not in self._figures:
            latency_s = cost.transfer_s(0, path)
            self._figures[key] = latency_s, cost.transfer_s(1 << 30, path) - latency_s
        latency_s, gib_s = self._figures[key]
        return latency_s, gib_s * num_bytes / (1 << 30)
