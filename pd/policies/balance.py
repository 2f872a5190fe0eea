"""Which node should change to which role. Pure.

The work of each side, prefill and decode, is measured against what its nodes can take: 1 where
they just meet their targets. Where one side is over that, of all single changes the one is chosen
after which the worse off of both would be best off, if that is clearly better than now. Work that
moves is work that stays the same, so a change back would have to be clearly better, too: two
states that are about equally good are never swapped for one another. Besides, what is measured is
smoothed, has to last, and after a change there is a pause; changes under way count as done.

No node becomes a mixed one here, since what that is worth follows from the targets: see `reshape`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pd.types import Role

Side = Literal["prefill", "decode"]

_SIDES: tuple[Side, Side] = ("prefill", "decode")
_ROLES: tuple[Role, Role, Role] = ("prefill", "decode", "mixed")
# A side may be so far behind that it does not matter how far: it would outweigh everything.
_MOST = 2.0


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """One node, over the time since the last look.

    `arrived` is the work of the prompts that were sent here, seconds of computing a second, and
    `busy` the share of the time that it computed prompts; `wait_s` is what one that came now
    would wait. `step_s` is its mean step while it decoded, 0 if it did not; `full` the share
    of its batch or blocks in use, whichever is more, hand-offs on their way included. `target` is
    the role that it is changing to, None if it is not.
    """

    node_id: str
    role: Role
    arrived: float = 0.0
    busy: float = 0.0
    wait_s: float = 0.0
    step_s: float = 0.0
    full: float = 0.0
    target: Role | None = None

    @property
    def will_be(self) -> Role:
        return self.target or self.role


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """Times in seconds. A prompt may wait `wait_share` of the TTFT target; the rest is for its
    own computing. A change is made where a side is pressed by `high` or more, if the worse off
    would then be at `gain` of that at most; the pressure has to last for `patience_s`. Outputs of a
    node that becomes a prefill node have `end_s` to end there, and go on elsewhere then."""

    ttft_s: float = 1.0
    tpot_s: float = 0.1
    wait_share: float = 0.5
    high: float = 0.9
    gain: float = 0.85
    window_s: float = 5.0
    patience_s: float = 2.0
    cooldown_s: float = 10.0
    end_s: float = 5.0
    min_prefill: int = 1  # nodes that can prefill, mixed ones included
    min_decode: int = 1
    max_changing: int = 1
    mixed: bool = False  # whether nodes may have any role: then `reshape` decides


class Pressures(NamedTuple):
    """Work of each side over what its nodes can take."""

    prefill: float
    decode: float

    @property
    def worst(self) -> float:
        return max(self)


_AT_EASE = Pressures(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Change:
    """A node to change, and the numbers that led to it: pressures now, and as they would be."""

    node_id: str
    role: Role
    now: Pressures
    then: Pressures

    @property
    def reason(self) -> str:
        before, after = self.now, self.then
        return (
            f"prefill is at {before.prefill:.2f} of what it can take and decode at "
            f"{before.decode:.2f}; with one more {self.role} node {after.prefill:.2f} and "
            f"{after.decode:.2f}"
        )

    @property
    def numbers(self) -> Mapping[str, float]:
        before, after = self.now, self.then
        return {
            "prefill": before.prefill, "decode": before.decode,
            "prefill_then": after.prefill, "decode_then": after.decode,
        }  # fmt: skip


@dataclass(slots=True)
class BalanceState:
    """What is remembered between two looks; the caller keeps it."""

    pressures: Pressures = _AT_EASE
    looked_at_s: float | None = None
    pressed: Side | None = None  # and since when
    pressed_since_s: float = 0.0
    changed_at_s: float = float("-inf")


def balance(
    nodes: Sequence[NodeLoad], state: BalanceState, options: BalanceOptions, now: float
) -> Change | None:
    """The next change, or None. Call it every second or so; `state` is updated."""
    observe(nodes, state, options, now)
    if state.pressed is None or now - state.pressed_since_s < options.patience_s:
        return None
    if now - state.changed_at_s < options.cooldown_s:
        return None
    if sum(node.target is not None for node in nodes) >= options.max_changing:
        return None
    change = _best_change(nodes, state.pressures, options)
    if change is not None:
        state.changed_at_s, state.pressed = now, None
    return change


def work(node: NodeLoad, side: Side, options: BalanceOptions) -> float:
    """What a node is to do for one side, in nodes that do nothing else.

    Long waits say that there is too much, and not how much: a queue grows without end however
    little too much it is. Whoever took them for work would move nodes there and back again.
    """
    share = capacity(node.role, side)
    if side == "prefill":
        waits = node.wait_s / (options.wait_share * options.ttft_s)
        return max(node.arrived, node.busy, share * min(1.0, waits))
    return share * max(node.full, node.step_s / options.tpot_s)


def capacity(role: Role, side: Side) -> float:
    """What a node of this role is worth to one side: a mixed one half to each."""
    return 0.5 if role == "mixed" else float(role == side)


def pressures(nodes: Sequence[NodeLoad], options: BalanceOptions) -> Pressures:
    """As of this moment, on the nodes that there will be when all changes are done. What still
    runs in a role that its node is leaving is carried by the others soon."""

    def of(side: Side) -> float:
        done = sum(work(node, side, options) for node in nodes if capacity(node.role, side))
        able = sum(capacity(node.will_be, side) for node in nodes)
        return min(_MOST, done / able) if able else _MOST * (done > 0.0)

    return Pressures(of("prefill"), of("decode"))


def observe(
    nodes: Sequence[NodeLoad], state: BalanceState, options: BalanceOptions, now: float
) -> None:
    """Take the pressures of this moment into their means, and note which side is pressed."""
    weight = 0.0  # at first: one look is no load
    if state.looked_at_s is not None:
        weight = min(1.0, (now - state.looked_at_s) / options.window_s)
    state.looked_at_s = now
    old, new = state.pressures, pressures(nodes, options)
    state.pressures = Pressures(
        old.prefill + weight * (new.prefill - old.prefill),
        old.decode + weight * (new.decode - old.decode),
    )
    worst = state.pressures.worst
    pressed: Side | None = None
    if worst >= options.high:
        pressed = "prefill" if worst == state.pressures.prefill else "decode"
    if pressed != state.pressed:
        state.pressed, state.pressed_since_s = pressed, now


def _best_change(
    nodes: Sequence[NodeLoad], before: Pressures, options: BalanceOptions
) -> Change | None:
    able = [sum(capacity(node.will_be, side) for node in nodes) for side in _SIDES]
    best: Change | None = None
    for node, role in _changes(nodes, options):
        moved = [capacity(role, side) - capacity(node.role, side) for side in _SIDES]
        then = Pressures(*(p * a / (a + m) for p, a, m in zip(before, able, moved, strict=True)))
        if best is None or then.worst < best.then.worst:
            best = Change(node.node_id, role, before, then)
    return best if best is not None and best.then.worst <= options.gain * before.worst else None


def _changes(nodes: Sequence[NodeLoad], options: BalanceOptions) -> Iterator[tuple[NodeLoad, Role]]:
    """What may change to what; of the nodes of a role the one with least to do."""
    minima = {"prefill": options.min_prefill, "decode": options.min_decode}
    for old in _ROLES:
        free = [node for node in nodes if node.role == old and node.target is None]
        if not free:
            continue
        idlest = min(free, key=lambda node: (node.full + node.busy, node.node_id))
        for new in _ROLES:
            if new in (old, "mixed"):
                continue
            roles = [new if node is idlest else node.will_be for node in nodes]
            if all(
                sum(capacity(role, side) > 0 for role in roles) >= max(1, minima[side])
                for side in _SIDES
            ):
                yield idlest, new
