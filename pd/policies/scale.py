"""How many nodes a cell should have. Pure.

As many as its work needs at the pressure wanted, within bounds. More are asked for as soon as that
has been wanted for a while, fewer only when no moment of a long while would have needed them: a
node takes long to start, and one too many costs less than targets missed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pd.policies.balance import BalanceOptions, NodeLoad, work


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """`pressure` is what nodes are to be at, 1 being what they can just take. Times in seconds:
    what is wanted for `up_s` is asked for, and given up after `down_s` of less. `max_step` nodes
    at most are asked for at once."""

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


def nodes_wanted(
    nodes: Sequence[NodeLoad], balancing: BalanceOptions, options: ScaleOptions
) -> int:
    """For the work of this moment: a whole number of nodes for each side, or mixed ones for both
    where that takes fewer."""
    prefill = sum(work(node, "prefill", balancing) for node in nodes if node.role != "decode")
    decode = sum(work(node, "decode", balancing) for node in nodes if node.role != "prefill")
    needed = math.ceil((prefill + decode) / options.pressure - 1e-9)
    return min(options.max_nodes, max(options.min_nodes, needed))


def scale(
    nodes: Sequence[NodeLoad],
    num_starting: int,
    state: ScaleState,
    balancing: BalanceOptions,
    options: ScaleOptions,
    now: float,
) -> int:
    """How many nodes to have from now on; `num_starting` were asked for and are not here yet.

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
