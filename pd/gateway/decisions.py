"""What was decided in the cell of late, and why: the coordinator's decisions, and what follows from
what this gateway sees. The last few hundred, newest last; what `/v1/decisions` shows.

The same again is counted, not repeated: an overload that turns thousands away is one line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pd.messages import CellStatus

Nodes = Mapping[str, Mapping[str, Any]]  # descriptions by id

MAX_DECISIONS = 256
_AGAIN_S = 10.0  # within which the same decision is the same line


class Decisions:
    """`add` what was decided; `status` finds out who came, went and changed."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        self._seq = 0
        self._last: dict[tuple[str, str], dict[str, Any]] = {}
        self._told: set[tuple[float, str]] = set()  # notices of the last status
        self._nodes: Nodes | None = None  # as of the last status
        self._left: dict[str, tuple[Mapping[str, Any], float]] = {}

    def add(
        self,
        kind: str,
        what: str,
        reason: str,
        at: float,
        numbers: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`at` is Unix time, `what` a short sentence, `reason` why."""
        same = self._last.get((kind, what))
        if same is not None and at - same["last_at"] <= _AGAIN_S:
            same["times"] += 1
            same["last_at"], same["reason"] = at, reason
            return
        self._seq += 1
        made = {
            "seq": self._seq, "at": at, "last_at": at, "times": 1, "kind": kind, "what": what,
            "reason": reason, "numbers": dict(numbers),
        }  # fmt: skip
        self._kept.append(made)
        self._last = {(each["kind"], each["what"]): each for each in self._kept}

    def status(self, status: CellStatus, at: float) -> None:
        """A new status of the cell: what the coordinator decided, and how its nodes differ."""
        for each in status.notices:
            if (each.at, each.what) not in self._told:
                self.add(each.kind, each.what, each.reason, each.at, each.numbers)
        self._told = {(each.at, each.what) for each in status.notices}
        if not status.nodes and self._nodes is None:
            return
        nodes = {str(node["id"]): node for node in status.nodes}
        before, self._nodes = self._nodes, nodes
        if before is not None:
            self._compare(before, nodes, at)

    def _compare(self, before: Nodes, nodes: Nodes, at: float) -> None:
        for node_id in before.keys() - nodes.keys():
            self._left[node_id] = (before[node_id], at)
            self.add("node", f"{node_id} left", "it died, hung or was removed", at)
        for node_id, node in nodes.items():
            old = before.get(node_id)
            gone = self._left.pop(node_id, None)
            if old is None:
                reason = "a node is new"
                if gone is not None:
                    reason = f"it was away for {at - gone[1]:.1f} s; a new process took its place"
                self.add("node", f"{node_id} joined as a {node.get('role')} node", reason, at)
                continue
            if old.get("epoch") != node.get("epoch"):
                reason = "a new process took its place before it was missed"
                self.add("node", f"{node_id} was replaced", reason, at)
            if old.get("role") != node.get("role"):
                reason = f"it was a {old.get('role')} node"
                self.add("role", f"{node_id} is a {node.get('role')} node now", reason, at)

    def gone(self, at: float, within_s: float = 300.0) -> list[dict[str, Any]]:
        """Nodes that left lately and have not come back."""
        for node_id in [n for n, (_, left) in self._left.items() if at - left > within_s]:
            del self._left[node_id]
        return [
            {"id": node_id, "role": node.get("role", ""), "since": left}
            for node_id, (node, left) in sorted(self._left.items())
        ]

    def latest(self, limit: int = MAX_DECISIONS) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self._kept)[::-1][:limit]
