"""Says how many nodes of each role there are to be. Pure.

Looks at them every second; what it sees is `pd.policies.watch`, what follows from that
`pd.policies.scale`. Whoever owns the cell starts and removes the nodes (`pd.autoscaler`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pd.members import Members
from pd.outbox import Decided, Outbox
from pd.policies.balance import BalanceOptions, NodeLoad
from pd.policies.scale import (
    ScaleOptions,
    ScaleState,
    needed,
    nodes_wanted,
    scale,
    share_out,
    works,
)
from pd.policies.watch import LoadWatch
from pd.types import Role

_LOOK_S = 1.0


class Scaler:
    """`sent` for every prompt, `tick` on every turn of the coordinator.

    `wanted` begins with what is there. It follows what others do to the nodes: one that was added
    or drained by hand, or has another role, was wanted so. One that was lost is still wanted: it
    is started anew.
    """

    def __init__(self, members: Members, outbox: Outbox) -> None:
        self.wanted: Mapping[Role, int] = {}  # of the roles whose number follows the load
        self._members = members
        self._outbox = outbox
        self._watch = LoadWatch()
        self._groups: list[tuple[ScaleOptions, ScaleState]] = []
        self._targets = BalanceOptions()
        self._numbers: Counter[Role] = Counter()  # wanted, of all roles
        self._roles: dict[str, Role] = {}  # of the nodes, at the last turn
        self._next_look = 0.0

    def configure(self, options: Sequence[ScaleOptions], targets: BalanceOptions) -> None:
        """Bounds of each group of roles, no role in two of them."""
        self._groups = [(each, ScaleState()) for each in options]
        self._targets = targets
        if not options:
            self.wanted, self._roles = {}, {}
            self._numbers.clear()

    def sent(self, node_id: str, work_s: float) -> None:
        """A prompt that takes so long to compute went to this node."""
        if self._groups:
            self._watch.sent(node_id, work_s)

    def tick(self, now: float) -> None:
        # Those who are absent, or start anew while the cell cannot serve, are not to be replaced.
        if not self._groups or self._members.absent or self._members.missing():
            return
        self._count()
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._look(now)
        scaled = [role for options, _ in self._groups for role in options.roles]
        self.wanted = {role: self._numbers[role] for role in scaled if self._numbers[role]}

    def _count(self) -> None:
        """What has happened to the nodes since the last turn."""
        before = self._roles
        self._roles = now = {node.id: node.hello.role for node in self._members.serving}
        wanted = self._numbers
        if not before:
            wanted.clear()
            wanted.update(now.values())
            return
        here = Counter(before.values())
        for node_id, role in before.items():
            new = now.get(node_id)
            if new == role:
                continue
            if new is not None:
                wanted[role] -= 1
                wanted[new] += 1
                here[new] += 1
            elif node_id in self._members.nodes and here[role] <= wanted[role]:
                wanted[role] -= 1  # it leaves, and not because fewer are wanted
            here[role] -= 1
        for node_id in sorted(now.keys() - before.keys()):
            role = now[node_id]
            if here[role] >= wanted[role]:
                wanted[role] += 1
            here[role] += 1

    def _look(self, now: float) -> None:
        serving = self._members.serving
        leaving = {node.id: node.former for node in serving if node.former}
        loads = self._watch.loads((node.candidate() for node in serving), now, leaving)
        for options, state in self._groups:
            nodes = [load for load in loads if load.will_be in options.roles]
            before = {role: self._numbers[role] for role in options.roles}
            have = sum(before.values())
            number = scale(nodes, have - len(nodes), state, self._targets, options, now)
            if number == have:
                continue
            then = share_out(before, needed(nodes, self._targets, options), number)
            if then != before:
                self._numbers.update({role: then[role] - before[role] for role in then})
                self._say(nodes, before, then, options)

    def _say(
        self,
        nodes: Sequence[NodeLoad],
        before: Mapping[Role, int],
        then: Mapping[Role, int],
        options: ScaleOptions,
    ) -> None:
        have, number = sum(before.values()), sum(then.values())
        if not options.min_nodes <= have <= options.max_nodes:
            reason = f"there are to be {options.min_nodes} to {options.max_nodes}"
        elif number > have:
            reason = (
                f"for {options.up_s:g} s they have had more to do than {options.pressure:g} of "
                "what they can take"
            )
        else:
            reason = (
                f"at no time in {options.down_s:g} s would fewer have had more to do than "
                f"{options.pressure:g} of what they can take"
            )
        what = ", ".join(
            f"{then[role]} {role} node{'s' * (then[role] != 1)} instead of {before[role]}"
            for role in then
            if then[role] != before[role]
        )
        done = {f"{role}_work": each for role, each in works(nodes, self._targets).items()}
        needs = nodes_wanted(nodes, self._targets, options)
        numbers = {"nodes": len(nodes), "wanted": number, "needed": needs}
        self._outbox.add(Decided(what, reason, {**numbers, **done}, "scale"))
