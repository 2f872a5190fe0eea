"""A cell as the balancer sees it, whose work can be set: nodes that change roles in some time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pd.policies.balance import BalanceOptions, BalanceState, Change, NodeLoad, balance, capacity
from pd.types import Role


@dataclass
class ModelledCell:
    """Work is in nodes that do nothing else. What is over what the prefill nodes can take waits
    in a queue; decode steps take longer with what there is to decode."""

    roles: dict[str, Role]
    prefill: float
    decode: float
    noise: float = 0.0
    change_s: float = 5.0
    base: float = 0.0  # of a decode step, whatever is in it, as a share of the target
    seed: int = 0
    options: BalanceOptions = field(default_factory=BalanceOptions)
    state: BalanceState = field(default_factory=BalanceState)
    changes: list[tuple[float, Change]] = field(default_factory=list)
    now: float = 0.0
    queued_s: float = 0.0  # work that waits, in seconds of one node

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.changing: dict[str, tuple[Role, float]] = {}

    def able(self, side: Role) -> float:
        return sum(capacity(role, side) for role in self.roles.values())  # type: ignore[arg-type]

    def loads(self) -> list[NodeLoad]:
        prefill = self.prefill * self.rng.uniform(1 - self.noise, 1 + self.noise)
        decode = self.decode * self.rng.uniform(1 - self.noise, 1 + self.noise)
        able_p, able_d = max(0.5, self.able("prefill")), max(0.5, self.able("decode"))
        self.queued_s = max(0.0, self.queued_s + (prefill - able_p) * 1.0)
        # A cell that rejects what would wait too long has no endless queue.
        self.queued_s = min(self.queued_s, able_p * self.options.ttft_s)
        found = []
        for node_id, role in self.roles.items():
            share_p, share_d = capacity(role, "prefill"), capacity(role, "decode")
            found.append(
                NodeLoad(
                    node_id, role,
                    arrived=share_p * prefill / able_p,
                    busy=share_p * min(1.0, prefill / able_p),
                    wait_s=self.queued_s / able_p if share_p else 0.0,
                    step_s=self.step_s(decode / able_d) if share_d else 0.0,
                    full=min(1.0, 0.5 * decode / able_d) if share_d else 0.0,
                    target=self.changing.get(node_id, (None, 0.0))[0],
                )
            )  # fmt: skip
        return found

    def step_s(self, load: float) -> float:
        """At the target where the nodes have just what they can take."""
        return self.options.tpot_s * (self.base + (1.0 - self.base) * load)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            for node_id, (role, at) in list(self.changing.items()):
                if self.now >= at:
                    self.roles[node_id] = role
                    del self.changing[node_id]
            change = balance(self.loads(), self.state, self.options, self.now)
            if change is not None:
                self.changes.append((self.now, change))
                self.changing[change.node_id] = (change.role, self.now + self.change_s)

    def count(self, role: Role) -> int:
        return sum(each == role for each in self.roles.values())


def cell(
    num_prefill: int,
    num_decode: int,
    prefill: float,
    decode: float,
    num_mixed: int = 0,
    **more: object,
) -> ModelledCell:
    roles: dict[str, Role] = {f"p{i}": "prefill" for i in range(num_prefill)}
    roles |= {f"d{i}": "decode" for i in range(num_decode)}
    roles |= {f"m{i}": "mixed" for i in range(num_mixed)}
    return ModelledCell(roles, prefill, decode, **more)  # type: ignore[arg-type]
