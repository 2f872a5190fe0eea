"""What balancing is told of each node, made from snapshots and from what was sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pd.policies.balance import NodeLoad
from pd.policies.candidate import Candidate
from pd.types import Role


class LoadWatch:
    """Adds up what happens between two looks."""

    def __init__(self) -> None:
        self._looked_at_s: float | None = None
        self._sent_s: dict[str, float] = {}
        self._prefilled: dict[str, tuple[int, int]] = {}  # epoch and tokens, at the last look

    def sent(self, node_id: str, work_s: float) -> None:
        """A prompt went there that takes so long to compute."""
        self._sent_s[node_id] = self._sent_s.get(node_id, 0.0) + work_s

    def loads(
        self, nodes: Iterable[Candidate], now: float, leaving: Mapping[str, Role]
    ) -> list[NodeLoad]:
        """Of every node since the last look. `leaving` has the former roles of nodes that have
        been given another and are not done with the change."""
        elapsed = 0.0 if self._looked_at_s is None else now - self._looked_at_s
        self._looked_at_s = now
        sent, self._sent_s = self._sent_s, {}
        before, self._prefilled = self._prefilled, {}
        found = []
        for node in nodes:
            snapshot = node.snapshot
            self._prefilled[node.node_id] = (snapshot.epoch, snapshot.prefill_tokens)
            epoch, tokens = before.get(node.node_id, (snapshot.epoch, snapshot.prefill_tokens))
            busy = arrived = 0.0
            if elapsed > 0.0:
                arrived = sent.get(node.node_id, 0.0) / elapsed
                if epoch == snapshot.epoch and snapshot.prefill_rate > 0.0:
                    computed = snapshot.prefill_tokens - tokens
                    busy = min(1.0, computed / snapshot.prefill_rate / elapsed)
            former = leaving.get(node.node_id)
            found.append(
                NodeLoad(
                    node.node_id,
                    former or node.role,
                    arrived=arrived,
                    busy=busy,
                    wait_s=node.wait_s() if node.num_prompts else 0.0,
                    step_s=_step_s(node),
                    full=node.decode_load if (former or node.role) != "prefill" else 0.0,
                    target=node.role if former else None,
                )
            )
        return found


def _step_s(node: Candidate) -> float:
    """The mean step of what decodes there now; 0 if nothing does."""
    snapshot = node.snapshot
    if not snapshot.num_running:
        return 0.0
    mean = None
    if node.pace is not None:
        mean = node.pace.tpot_s(snapshot.num_running, snapshot.running_tokens)
    return snapshot.step_s if mean is None else mean
