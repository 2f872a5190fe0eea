"""Gives the nodes of a cell the roles that its load needs, one change at a time. Pure.

Looks at them every second; what it sees is `pd.policies.watch`, what follows from that
`pd.policies.balance`.
"""

from __future__ import annotations

from pd.members import Members
from pd.outbox import Decided, Outbox
from pd.policies.balance import BalanceOptions, BalanceState, Change, balance
from pd.policies.watch import LoadWatch

_LOOK_S = 1.0


class Balancer:
    """`sent` for every prompt, `tick` on every turn of the coordinator."""

    def __init__(self, options: BalanceOptions, members: Members, outbox: Outbox) -> None:
        self.options = options
        self.state = BalanceState()
        self._watch = LoadWatch()
        self._members = members
        self._outbox = outbox
        self._next_look = 0.0

    def sent(self, node_id: str, work_s: float) -> None:
        """A prompt that takes so long to compute went to this node."""
        self._watch.sent(node_id, work_s)

    def tick(self, now: float) -> Change | None:
        """The change that was made, if there was one."""
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_S
        serving = self._members.serving
        leaving = {node.id: node.former for node in serving if node.former}
        loads = self._watch.loads((node.candidate() for node in serving), now, leaving)
        change = balance(loads, self.state, self.options, now)
        if change is None:
            return None
        error = self._members.change_role(change.node_id, change.role, migrate=True, now=now)
        what = f"{change.node_id} becomes a {change.role} node"
        self._outbox.add(
            Decided(
                f"not done: {what}" if error else what,
                f"{change.reason}; {error}" if error else change.reason,
                {
                    "prefill": change.now.prefill, "decode": change.now.decode,
                    "prefill_then": change.then.prefill, "decode_then": change.then.decode,
                },
            )
        )  # fmt: skip
        return None if error else change
