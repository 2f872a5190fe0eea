"""Which roles the nodes of a cell should have, where they may have any. Pure.

`balance` weighs the work of one phase against that of the other; what a mixed node is worth to
either it cannot tell. That depends on the targets: where prompts may wait and tokens may not, two
nodes serve more as a prefill and a decode node, and where it is the other way round as two mixed
ones. So here whole sets of roles are compared, by the requests that each is estimated to serve in
time. Where the cell is pressed, and has been for a while, the best is gone for, if it is clearly
better; the changes it takes come one after the other, while it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pd.policies.balance import BalanceOptions, BalanceState, NodeLoad, observe
from pd.policies.goodput import Demand, Goodput, Roles, Speed
from pd.types import Role

# Prefill nodes are made first: of the idlest, which have the fewest outputs to end or to move.
_ROLES: tuple[Role, Role, Role] = ("prefill", "decode", "mixed")
# Of what the roles are estimated to serve: below it nodes that look pressed have a long prompt to
# compute, or many outputs by chance, and other roles would not change that.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A node to change, and why; `goal` is what the roles shall be when all changes are done."""

    node_id: str
    role: Role
    goal: Roles
    reason: str
    numbers: Mapping[str, float]


@dataclass(slots=True)
class ReshapeState:
    """What is remembered between two looks; the caller keeps it."""

    observed: BalanceState = field(default_factory=BalanceState)
    pressed_since_s: float | None = None
    changed_at_s: float = float("-inf")
    goal: Roles | None = None
    why: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def reshape(
    nodes: Sequence[NodeLoad],
    state: ReshapeState,
    options: BalanceOptions,
    demand: Demand,
    speed: Speed,
    now: float,
) -> Reshaped | None:
    """The next change, or None. Call it every second or so; `state` is updated."""
    options = replace(options, ttft_s=demand.ttft_s, tpot_s=demand.tpot_s)
    observe(nodes, state.observed, options, now)
    roles = _roles(nodes)
    goodput = Goodput(demand, speed)
    serves = goodput(roles)
    seen = state.observed.pressed is not None and demand.per_s >= _LEAST_SHARE * serves
    pressed = seen or demand.per_s >= options.high * serves
    if not pressed:
        state.pressed_since_s = None
    elif state.pressed_since_s is None:
        state.pressed_since_s = now
    if sum(node.target is not None for node in nodes) >= options.max_changing:
        return None
    if state.goal not in (None, roles) and serves <= options.gain * goodput(state.goal):
        return _step(nodes, state, options, now)
    state.goal = None
    since = state.pressed_since_s
    if since is None or now - since < options.patience_s:
        return None
    if now - state.changed_at_s < options.cooldown_s:
        return None
    best = goodput.best(roles, options.min_prefill, options.min_decode)
    if best == roles or serves > options.gain * goodput(best):
        return None
    state.goal = best
    state.why = (
        f"{demand.per_s:.3g} requests a second come, of which {roles} can serve {serves:.3g} in "
        f"time and {best} {goodput(best):.3g}"
    )
    state.numbers = {"asked_per_s": demand.per_s, "serves": serves, "serves_then": goodput(best)}
    return _step(nodes, state, options, now)


def _step(
    nodes: Sequence[NodeLoad], state: ReshapeState, options: BalanceOptions, now: float
) -> Reshaped | None:
    """One more change on the way to the goal; none if there is no way any more."""
    goal, roles = state.goal, _roles(nodes)
    assert goal is not None
    for old, new in _moves(roles, options):
        if goal.count(old) < roles.count(old) and goal.count(new) > roles.count(new):
            free = [node for node in nodes if node.role == old and node.target is None]
            if free:
                idlest = min(free, key=lambda node: (node.full + node.busy, node.node_id))
                state.changed_at_s, state.pressed_since_s = now, None
                return Reshaped(idlest.node_id, new, goal, state.why, state.numbers)
    state.goal = None
    return None


def _moves(roles: Roles, options: BalanceOptions) -> Iterator[tuple[Role, Role]]:
    """From which role to which a node may change."""
    for old in _ROLES:
        for new in _ROLES:
            if old == new or not roles.count(old):
                continue
            if roles.changed(old, new).keeps(options.min_prefill, options.min_decode):
                yield old, new


def _roles(nodes: Sequence[NodeLoad]) -> Roles:
    counts = {role: sum(node.will_be == role for node in nodes) for role in _ROLES}
    return Roles(**counts)
