"""How many requests a second a cell can serve within their targets, by its nodes' roles. Pure.

An estimate by rates, in which a node of each role is held to what misses a target first:

    prefill   prompts wait for those before them, on the node where they wait least: M/G/c, whose
              tail is taken for exponential
    decode    a step may take the TPOT target nine times of ten, and takes longer the more
              sequences are in it
    mixed     both: steps leave to prompts what outputs on their targets can spare, and prompts
              wait as if computed at that share of the node's speed

Its absolute figures are rough, since nothing is known of bursts; what it is for is to compare one
set of roles with another for the same requests. More nodes of a role take more each, since the
work of a long prompt is in the way of fewer others. For the tail of the wait see Kingman, "On
queues in heavy traffic" (1962), and for who has to wait at all Sakasegawa, "An approximation
formula" (1977); for how the best roles follow the targets Zhong et al., "DistServe" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

from pd.policies.chunk import SHARE
from pd.policies.pace import MOST_OF
from pd.types import Role

LATE = 0.1  # share of requests that may miss a target
_HALVINGS = 60
_LEAST_S = 1e-6  # that anything takes, whatever was learnt


@dataclass(frozen=True, slots=True)
class Demand:
    """What requests are like lately, in the mean: how many come in a second, the tokens of their
    prompts that have to be computed, how many outputs each asks for and of how many tokens, an
    output's context, and the targets in seconds. A spread is a variance over the square of its
    mean."""

    per_s: float
    prompt_tokens: float
    prompt_spread: float
    outputs: float
    output_tokens: float
    context: float
    context_spread: float
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Of an average node: a step takes `base_s`, and more for every sequence that decodes in it
    and every prompt token; it runs up to `max_seqs` sequences, if their KV fits."""

    base_s: float
    per_seq_s: float
    per_prompt_token_s: float
    max_seqs: float
    room_tokens: float  # of KV


@dataclass(frozen=True, slots=True)
class Roles:
    """How many nodes there are of each."""

    prefill: int = 0
    decode: int = 0
    mixed: int = 0

    def changed(self, old: Role, new: Role) -> Roles:
        """One node less in the one role, one more in the other."""
        return replace(self, **{old: self.count(old) - 1, new: self.count(new) + 1})

    def count(self, role: Role) -> int:
        """Nodes of this one; 0 of a pool, which serves nobody."""
        return {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed}.get(role, 0)

    def keeps(self, min_prefill: int, min_decode: int) -> bool:
        """Whether so many can do either work, mixed ones included."""
        return self.prefill + self.mixed >= min_prefill and self.decode + self.mixed >= min_decode

    def __str__(self) -> str:
        counts = (("prefill", self.prefill), ("decode", self.decode), ("mixed", self.mixed))
        return " + ".join(f"{count} {role}" for role, count in counts if count)

    def distance(self, other: Roles) -> int:
        """How many nodes have to change for these to become the others."""
        mine, theirs = (self.prefill, self.decode, self.mixed), (
            other.prefill, other.decode, other.mixed
        )  # fmt: skip
        return sum(max(0, b - a) for a, b in zip(mine, theirs, strict=True))


class Goodput:
    """Requests a second that sets of nodes serve in time: nodes of this speed, these requests."""

    def __init__(self, demand: Demand, speed: Speed) -> None:
        self.prefill = cache(partial(prefill_per_s, demand, speed))
        self.decode = cache(partial(decode_per_s, demand, speed))
        self.mixed = cache(partial(mixed_per_s, demand, speed))

    def __call__(self, roles: Roles) -> float:
        """The most requests a second of which these nodes serve nine in ten in time."""
        pairs = min(self.prefill(roles.prefill), self.decode(roles.decode))
        return pairs + self.mixed(roles.mixed)

    def best(self, now: Roles, min_prefill: int = 1, min_decode: int = 1) -> Roles:
        """What as many nodes as now serve most with, of what keeps the minima; of equals what
        takes fewest changes."""
        nodes, found, share = now.prefill + now.decode + now.mixed, [now], 0
        for pure in range(nodes + 1):
            # The most prefill nodes that the others can decode for: never fewer than of one less.
            while share < pure and self.prefill(share + 1) <= self.decode(pure - share - 1):
                share += 1
            for prefill in (share, share + 1):
                roles = Roles(prefill, pure - prefill, nodes - pure)
                if prefill <= pure and roles.keeps(min_prefill, min_decode):
                    found.append(roles)
        return max(found, key=lambda roles: (self(roles), -now.distance(roles)))


def prefill_per_s(demand: Demand, speed: Speed, nodes: int) -> float:
    """Requests that so many prefill nodes can take together."""
    if not nodes:
        return 0.0
    work_s = max(_LEAST_S, speed.base_s + demand.prompt_tokens * speed.per_prompt_token_s)
    return nodes * busy_share(demand.ttft_s, work_s, demand.prompt_spread, nodes) / work_s


def decode_per_s(demand: Demand, speed: Speed, nodes: int) -> float:
    """Requests that so many decode nodes can take together."""
    if not nodes:
        return 0.0
    spare_s = SHARE * demand.tpot_s - speed.base_s
    if spare_s <= 0.0:
        return 0.0
    seqs = most_seqs(demand, speed, nodes)
    if speed.per_seq_s:
        seqs = min(seqs, _mean_below(spare_s / speed.per_seq_s, 0.0, nodes))
    step_s = max(_LEAST_S, speed.base_s + seqs * speed.per_seq_s)
    return nodes * seqs / (demand.outputs * max(1.0, demand.output_tokens) * step_s)


def mixed_per_s(demand: Demand, speed: Speed, nodes: int) -> float:
    """Requests that so many mixed nodes can take together."""
    if not nodes:
        return 0.0
    pace_s = SHARE * demand.tpot_s
    work_s = max(_LEAST_S, demand.prompt_tokens * speed.per_prompt_token_s)
    tokens = demand.outputs * max(1.0, demand.output_tokens)
    most = most_seqs(demand, speed, nodes)

    def holds(per_s: float) -> bool:
        # A token takes a step and the prompts in between, which is t = step + t * per_s * work,
        # of as many sequences as have come while one is written.
        left = 1.0 - per_s * (work_s + tokens * speed.per_seq_s)
        if left <= 0.0:
            return False
        token_s = speed.base_s / left
        seqs = per_s * tokens * token_s
        share = 1.0 - (speed.base_s + seqs * speed.per_seq_s) / pace_s
        if token_s > pace_s or seqs > most or share <= 0.0:
            return False
        paced_s = work_s / share
        late = _late(per_s * paced_s, demand.ttft_s, paced_s, demand.prompt_spread, nodes)
        return late <= LATE

    return nodes * _largest(holds, 1.0 / (work_s + tokens * speed.per_seq_s))


def most_seqs(demand: Demand, speed: Speed, nodes: int) -> float:
    """How many sequences there may be on each of these nodes in the mean, if their KV has room for
    all that are there nine times of ten."""
    fit = speed.room_tokens / max(1.0, demand.context)
    return min(speed.max_seqs, _mean_below(fit, demand.context_spread, nodes))


def _mean_below(limit: float, spread: float, nodes: int) -> float:
    """The mean on each node of what is there of independent things of such a spread, which go where
    there are fewest, if it is to be below the limit nine times of ten."""
    more = MOST_OF * math.sqrt(1.0 + spread)
    return ((math.sqrt(more * more + 4.0 * limit * nodes) - more) / 2.0) ** 2 / nodes


def busy_share(target_s: float, work_s: float, spread: float, nodes: int) -> float:
    """How busy so many may be that compute prompts of `work_s` in the mean, if no more than a
    tenth of them are to have waited so long that they miss the target."""
    return _largest(lambda share: _late(share, target_s, work_s, spread, nodes) <= LATE, 1.0)


def _late(share: float, target_s: float, work_s: float, spread: float, nodes: int) -> float:
    """The part of prompts that miss the target where such a share of the nodes' time is busy:
    those that have to wait at all, and do for longer than they may."""
    if share >= 1.0:
        return 1.0
    waits: float = share ** (math.sqrt(2.0 * (nodes + 1)) - 1.0)
    spare_s = max(0.0, target_s - work_s)
    return waits * math.exp(-nodes * (1.0 - share) * 2.0 * spare_s / ((1.0 + spread) * work_s))


def _largest(holds: Callable[[float], bool], limit: float) -> float:
    """The largest value up to a limit for which something holds that holds for all below."""
    low, high = 0.0, limit
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
