"""Nodes that have another role than they came with: who is told so, and when. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pd.member import Node
from pd.messages import SetRole
from pd.outbox import Outbox
from pd.types import Role

CONFIRM_S = 1.0  # after which an order that was not confirmed is given again


class RoleOrders:
    """What each of them was told last. A process that takes its place is told, too."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._given: dict[str, SetRole] = {}
        self._asked: dict[str, float] = {}  # nodes that have not confirmed theirs, when asked
        self._to_move: dict[str, float] = {}  # those whose outputs have until then to end

    def role(self, node_id: str) -> Role | None:
        """The role it was given, if it was given one."""
        order = self._given.get(node_id)
        return None if order is None else order.role

    def has(self, node_id: str, role: Role) -> None:
        """It came with this one from a coordinator before."""
        self._given[node_id] = SetRole(role)

    def forget(self, node_id: str) -> None:
        """Whatever has its name one day is another node."""
        self._given.pop(node_id, None)

    def give(self, node_id: str, role: Role, migrate: bool, end_s: float, now: float) -> None:
        """With `migrate` what the role would not be sent goes on elsewhere, but that outputs have
        `end_s` to end where none shall run any more."""
        self._to_move.pop(node_id, None)
        if migrate and role == "prefill" and end_s > 0.0:
            self._to_move[node_id] = now + end_s
        self._given[node_id] = SetRole(role, migrate and node_id not in self._to_move)
        self.tell(node_id, now)

    def tell(self, node_id: str, now: float) -> None:
        if node_id in self._given:
            self._asked[node_id] = now
            self._outbox.send(node_id, self._given[node_id])

    def confirmed(self, node_id: str) -> None:
        self._asked.pop(node_id, None)

    def tick(self, nodes: Mapping[str, Node], now: float) -> None:
        for node_id, asked in list(self._asked.items()):
            if node_id not in nodes:
                del self._asked[node_id]
            elif now - asked >= CONFIRM_S:
                self.tell(node_id, now)
        for node_id, until in list(self._to_move.items()):
            node = nodes.get(node_id)
            if node is None or node.settled:
                del self._to_move[node_id]
            elif now >= until:
                self.give(node_id, node.hello.role, True, 0.0, now)
