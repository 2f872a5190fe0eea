"""Which nodes are too slow to be given work, by their step times: a circuit breaker each. Pure.

What is expected of a step is what it would take on the other nodes of the same role and device, by
what they showed; a node without such peers is compared with itself. Only steps that are longer than
usual among them are looked into, and only of nodes whose work another could do.
"""

from __future__ import annotations

from collections import Counter

from pd.member import Node
from pd.members import Members
from pd.outbox import Decided, Outbox
from pd.policies.breaker import Breaker, BreakerOptions, Circuit, expected_s
from pd.types import NodeSnapshot, Role

_MAX_PEERS = 8  # that a node is compared with
_UNUSUAL = 1.5  # times the usual step
_SMOOTHING = 0.05

_Kind = tuple[Role, str, int]  # of nodes that are alike: role, device, KV layout


class Health:
    """`observe` before a snapshot is taken in, `tick` on every turn of the coordinator."""

    def __init__(self, options: BreakerOptions, members: Members, outbox: Outbox) -> None:
        self._options = options
        self._members = members
        self._outbox = outbox
        self._breakers: dict[tuple[str, int], Breaker] = {}  # by id and epoch
        self._alike: dict[_Kind, list[Node]] = {}
        self._usual_s: dict[_Kind, float] = {}
        self._num_nodes: Counter[Role] = Counter()

    def observe(self, sender: str, snapshot: NodeSnapshot, now: float) -> None:
        node, step_s = self._members.nodes.get(sender), snapshot.step_s
        if node is None or snapshot.steps == node.snapshot.steps or step_s <= 0.0:
            return
        kind = _kind(node)
        usual_s = self._usual_s.setdefault(kind, step_s)
        self._usual_s[kind] = usual_s + _SMOOTHING * (step_s - usual_s)
        breaker = self._breakers.get((node.id, node.epoch))
        if breaker is None and (step_s < _UNUSUAL * usual_s or not self._others_for(node)):
            return
        load = (
            snapshot.step_seqs, snapshot.step_context,
            snapshot.step_prompt_tokens, snapshot.step_prompt_context,
        )  # fmt: skip
        others = (other for other in self._alike.get(kind, ()) if other is not node)
        peers = [each for other in others if (each := other.pace.step_s(*load)) is not None]
        expected = expected_s(node.pace.step_s(*load), peers)
        if expected is None:
            return
        if breaker is None:
            breaker = self._breakers[node.id, node.epoch] = Breaker(self._options)
        if breaker.observe(step_s, expected, now):
            self._say(node, breaker, step_s, expected)

    def tick(self, now: float) -> None:
        nodes = {(node.id, node.epoch): node for node in self._members.serving}
        for key in self._breakers.keys() - nodes.keys():
            del self._breakers[key]
        for key, breaker in list(self._breakers.items()):
            if breaker.tick(now):
                self._say(nodes[key], breaker)
            if breaker.at_rest:
                del self._breakers[key]
        self._num_nodes = Counter(node.hello.role for node in nodes.values())
        self._alike.clear()
        slow = self.slow()
        for node in nodes.values():
            if node.id not in slow:
                alike = self._alike.setdefault(_kind(node), [])
                if len(alike) <= _MAX_PEERS:
                    alike.append(node)

    def slow(self) -> set[str]:
        """The nodes that should not be given work, if there is a choice."""
        nodes = self._members.nodes
        return {
            node_id
            for (node_id, epoch), breaker in self._breakers.items()
            if not breaker.admits and node_id in nodes and nodes[node_id].epoch == epoch
        }

    def sent(self, *nodes: Node) -> None:
        for node in nodes:
            breaker = self._breakers.get((node.id, node.epoch))
            if breaker is not None:
                breaker.sent()

    def _others_for(self, node: Node) -> int:
        """How many other nodes could do what this one does."""
        role, count = node.hello.role, self._num_nodes
        return (count.total() if role == "mixed" else count[role] + count["mixed"]) - 1

    def _say(
        self, node: Node, breaker: Breaker, step_s: float = 0.0, expected: float = 0.0
    ) -> None:
        node.circuit = breaker.circuit
        what, reason = {
            Circuit.OPEN: (f"{node.id} gets no new work", "its steps are far slower than expected"),
            Circuit.HALF_OPEN: (f"{node.id} is tried again", "it was left alone for a while"),
            Circuit.CLOSED: (f"{node.id} gets work again", "its steps are as fast as expected"),
        }[breaker.circuit]
        numbers = {"step_s": step_s, "expected_s": expected} if step_s else {}
        self._outbox.add(Decided(what, reason, numbers, "breaker"))


def _kind(node: Node) -> _Kind:
    hello = node.hello
    return hello.role, hello.device, hello.layout
