"""How many nodes a cell should have, and which of them goes first. Pure.

As many as its work needs at the pressure wanted, within bounds. More are asked for as soon as that
has been wanted for a while, fewer only when no moment of a long while would have needed them: a
node takes long to start, and one too many costs less than targets missed.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pd.policies.balance import BalanceOptions, NodeLoad, work
from pd.types import Role


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """Of all nodes of `roles` together.

    `pressure` is what nodes are to be at, 1 being what they can just take. Times in seconds:
    what is wanted for `up_s` is asked for, and given up after `down_s` of less. `max_step` nodes
    at most are asked for at once."""

    roles: tuple[Role, ...] = ("prefill", "decode", "mixed")
    min_nodes: int = 1
    max_nodes: int = 1
    pressure: float = 0.75
    up_s: float = 15.0
    down_s: float = 300.0
    max_step: int = 4


@dataclass(slots=True)
class ScaleState:
    """What is remembered between two looks; the caller keeps it."""

    # (when, nodes wanted): a falling and a rising run, for the most and the least of a window.
    most: deque[tuple[float, int]] = field(default_factory=deque)
    least: deque[tuple[float, int]] = field(default_factory=deque)
    begun_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Leaver:
    """A node that could go. `host` is empty where nobody knows it, as of a node that is being
    started anew; `num_requests` is what runs and waits there."""

    node_id: str
    host: str
    num_requests: int = 0


def works(nodes: Iterable[NodeLoad], balancing: BalanceOptions) -> dict[Role, float]:
    """What the nodes of each role have to do, in nodes that do nothing else."""
    found: dict[Role, float] = {}
    for node in nodes:
        done = found.setdefault(node.role, 0.0)
        if node.role != "decode":
            done += work(node, "prefill", balancing)
        if node.role != "prefill":
            done += work(node, "decode", balancing)
        found[node.role] = done
    return found


def needed(
    nodes: Iterable[NodeLoad], balancing: BalanceOptions, options: ScaleOptions
) -> dict[Role, int]:
    """How many of each role the work of this moment takes, whatever the bounds: one at least, as
    no role that there is gives up its last node."""
    return {
        role: max(1, math.ceil(done / options.pressure - 1e-9))
        for role, done in works(nodes, balancing).items()
    }


def nodes_wanted(
    nodes: Iterable[NodeLoad], balancing: BalanceOptions, options: ScaleOptions
) -> int:
    """The same, of all roles and within the bounds."""
    total = sum(needed(nodes, balancing, options).values())
    return min(options.max_nodes, max(options.min_nodes, total))


def scale(
    nodes: Sequence[NodeLoad],
    num_starting: int,
    state: ScaleState,
    balancing: BalanceOptions,
    options: ScaleOptions,
    now: float,
) -> int:
    """How many nodes to have from now on; `num_starting` were asked for and are not here yet, or,
    below 0, are still here and to go.

    Call it every second or so; `state` is updated.
    """
    have = len(nodes) + num_starting
    bounded = min(options.max_nodes, max(options.min_nodes, have))
    if state.begun_at_s is None:
        state.begun_at_s = now
    wanted = nodes_wanted(nodes, balancing, options)
    while state.most and state.most[-1][1] <= wanted:
        state.most.pop()
    while state.least and state.least[-1][1] >= wanted:
        state.least.pop()
    state.most.append((now, wanted))
    state.least.append((now, wanted))
    while state.most[0][0] < now - options.down_s:
        state.most.popleft()
    while state.least[0][0] < now - options.up_s:
        state.least.popleft()
    if bounded != have:
        return bounded
    watched = now - state.begun_at_s
    if watched >= options.up_s and state.least[0][1] > have:
        return min(state.least[0][1], have + options.max_step)
    if watched >= options.down_s and state.most[0][1] < have:
        return max(state.most[0][1], have - options.max_step)
    return have


def share_out(before: Mapping[Role, int], needs: Mapping[Role, int], total: int) -> dict[Role, int]:
    """`total` nodes by role, instead of those `before`: more where most are lacking, fewer where
    most are idle. No role comes into being, and none loses its last node."""
    then = dict(before)

    def lacking(role: Role) -> tuple[int, int]:
        return needs.get(role, 0) - then[role], -then[role]

    while sum(then.values()) < total and any(then.values()):
        then[max((role for role in then if then[role]), key=lacking)] += 1
    while sum(then.values()) > total:
        several = [role for role in then if then[role] > 1]
        if not several:
            break
        then[min(several, key=lacking)] -= 1
    return then


def first_to_go(leavers: Sequence[Leaver], hosts: Iterable[str], keep: str) -> str:
    """The id of the node after which a host is empty soonest: one on a host with the fewest of the
    cell's nodes, of which `hosts` has one entry each; rather not on `keep`, which stays anyway. Of
    equal ones the one with the least to do, then the last that came."""
    sizes = Counter(hosts)

    def key(leaver: Leaver) -> tuple[bool, int, int, int, str]:
        # Greatest goes: ids are compared by their numbers, which have no leading zeros.
        return (
            leaver.host != keep,
            -sizes[leaver.host] if leaver.host else 0,
            -leaver.num_requests,
            len(leaver.node_id),
            leaver.node_id,
        )

    return max(leavers, key=key).node_id
