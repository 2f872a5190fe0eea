"""Nodes of one phase do both where the cell has lost those of the other. Pure.

A cell of prefill nodes alone serves nobody, and every one of them could decode as well. So could
those of a cell of decode nodes prefill, which is what is left when a node that had changed its role
is started anew in the one that it was configured for, and nobody is left who knows of the change.
"""

from __future__ import annotations

from pd.members import Members
from pd.outbox import Decided, Outbox
from pd.types import Role

_LOOK_S = 1.0
_END_S = 5.0  # for outputs to end on a node that is to prefill again, before they are moved


class StandIn:
    """`tick` on every turn of the coordinator. What lacks for `after_s` is stood in for; what has
    been back for as long is left to those that are. 0 is never."""

    def __init__(self, members: Members, outbox: Outbox, after_s: float) -> None:
        self._members = members
        self._outbox = outbox
        self._after_s = after_s
        self._former: dict[str, Role] = {}  # of nodes that stand in
        self._lacking = False
        self._since = 0.0  # it has been so
        self._next_look = 0.0

    def tick(self, now: float) -> bool:
        """Whether a role was changed."""
        if not self._after_s or now < self._next_look:
            return False
        self._next_look = now + _LOOK_S
        self._former = {
            node_id: role
            for node_id, role in self._former.items()
            # One that is lost comes back as a mixed node; of another role somebody else decided.
            if (node := self._members.nodes.get(node_id)) is None or node.hello.role == "mixed"
        }
        lacking = self._members.missing(self._former)
        if bool(lacking) != self._lacking:
            self._lacking, self._since = bool(lacking), now
        if self._members.absent or now - self._since < self._after_s:
            return False
        return self._stand_in(lacking, now) if lacking else self._leave_it(now)

    def _stand_in(self, lacking: str, now: float) -> bool:
        changed = False
        for node in self._members.serving:
            role = node.hello.role
            if role == "mixed":
                continue
            error = self._members.change_role(node.id, "mixed", migrate=False, now=now)
            if not error:
                self._former.setdefault(node.id, role)
                self._tell(node.id, "mixed", f"{lacking}, for {now - self._since:.0f} s now")
                changed = True
        return changed

    def _leave_it(self, now: float) -> bool:
        changed = False
        for node_id, role in list(self._former.items()):
            error = self._members.change_role(node_id, role, migrate=True, now=now, end_s=_END_S)
            if not error:
                del self._former[node_id]
                self._tell(node_id, role, "the nodes that it stood in for are back")
                changed = True
        return changed

    def _tell(self, node_id: str, role: Role, reason: str) -> None:
        self._outbox.add(Decided(f"{node_id} becomes a {role} node", reason, {}))
