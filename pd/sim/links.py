"""Block transfers in virtual time: every node has one way out and one way in. Pure."""

from __future__ import annotations

from collections import defaultdict

from pd.cost.model import Link


class Links:
    """When a push ends. A node's pushes leave one after the other, and so do arrive those that
    go to one node; what they wait for is the bytes before them, not their latency."""

    def __init__(self) -> None:
        self._out: defaultdict[str, float] = defaultdict(float)  # busy until
        self._into: defaultdict[str, float] = defaultdict(float)
        self.num_bytes = 0

    def push(
        self, sender: str, receiver: str, num_bytes: int, link: Link, now: float
    ) -> tuple[float, float]:
        """Begin a push as soon as both ends are free: (when it begins, when it has arrived)."""
        takes_s = num_bytes / link.bytes_per_s
        begins = max(now, self._out[sender], self._into[receiver])
        self._out[sender] = self._into[receiver] = begins + takes_s
        self.num_bytes += num_bytes
        return begins, begins + takes_s + link.latency_s

    def lost(self, node_id: str) -> None:
        """Its process is gone, and what it was sending or receiving with it."""
        self._out.pop(node_id, None)
        self._into.pop(node_id, None)
