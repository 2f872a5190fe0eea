"""How many requests a second a cell can serve within their targets, by its nodes' roles. Pure.

An estimate by rates, in which a node of each role is held to what misses a target first:

    prefill   prompts wait for those before them: M/G/1, whose tail is taken for exponential
    decode    a step may take the TPOT target, and takes longer the more sequences are in it
    mixed     both: steps leave to prompts what outputs on their targets can spare, and prompts
              wait as if computed at that share of the node's speed

Its absolute figures are rough, since nothing is known of bursts; what it is for is to compare one
set of roles with another for the same requests. For the tail of the wait see Kingman, "On queues in
heavy traffic" (1962); for how the best roles follow the targets Zhong et al., "DistServe" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests a second that one node of each role can take, where the others keep up."""

    prefill: float
    decode: float
    mixed: float

    @classmethod
    def of(cls, demand: Demand, speed: Speed) -> Goodput:
        """Of nodes of this speed for these requests."""
        return cls(
            prefill_per_s(demand, speed), decode_per_s(demand, speed), mixed_per_s(demand, speed)
        )

    def __call__(self, roles: Roles) -> float:
        """The most requests a second of which these nodes serve nine in ten in time."""
        pairs = min(roles.prefill * self.prefill, roles.decode * self.decode)
        return pairs + roles.mixed * self.mixed

    def best(self, now: Roles, min_prefill: int = 1, min_decode: int = 1) -> Roles:
        """What as many nodes as now serve most with, of what keeps the minima; of equals what
        takes fewest changes."""
        nodes, both = now.prefill + now.decode + now.mixed, self.prefill + self.decode
        found = [now]
        for mixed in range(nodes + 1):
            pure = nodes - mixed
            share = int(pure * self.decode / both) if both else pure // 2
            for prefill in (share, share + 1):
                roles = Roles(prefill, pure - prefill, mixed)
                if 0 <= prefill <= pure and roles.keeps(min_prefill, min_decode):
                    found.append(roles)
        return max(found, key=lambda roles: (self(roles), -now.distance(roles)))


def prefill_per_s(demand: Demand, speed: Speed) -> float:
    """Requests that one prefill node can take."""
    work_s = max(_LEAST_S, speed.base_s + demand.prompt_tokens * speed.per_prompt_token_s)
    return busy_share(demand.ttft_s, work_s, demand.prompt_spread) / work_s


def decode_per_s(demand: Demand, speed: Speed) -> float:
    """Requests that one decode node can take."""
    spare_s = SHARE * demand.tpot_s - speed.base_s
    if spare_s <= 0.0:
        return 0.0
    seqs = min(most_seqs(demand, speed), spare_s / speed.per_seq_s if speed.per_seq_s else math.inf)
    step_s = max(_LEAST_S, speed.base_s + seqs * speed.per_seq_s)
    return seqs / (demand.outputs * max(1.0, demand.output_tokens) * step_s)


def mixed_per_s(demand: Demand, speed: Speed) -> float:
    """Requests that one mixed node can take."""
    pace_s = SHARE * demand.tpot_s
    work_s = max(_LEAST_S, demand.prompt_tokens * speed.per_prompt_token_s)
    tokens = demand.outputs * max(1.0, demand.output_tokens)
    most = most_seqs(demand, speed)

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
        return _late(per_s * paced_s, demand.ttft_s, paced_s, demand.prompt_spread) <= LATE

    return _largest(holds, 1.0 / (work_s + tokens * speed.per_seq_s))


def most_seqs(demand: Demand, speed: Speed) -> float:
    """How many sequences there may be on a node in the mean, if its KV has room for all that are
    there nine times of ten: they come independently, and their contexts differ."""
    fit = speed.room_tokens / max(1.0, demand.context)
    more = MOST_OF * math.sqrt(1.0 + demand.context_spread)
    return min(speed.max_seqs, ((math.sqrt(more * more + 4.0 * fit) - more) / 2.0) ** 2)


def busy_share(target_s: float, work_s: float, spread: float) -> float:
    """How busy one that computes prompts of `work_s` in the mean may be, if no more than a tenth
    of them are to have waited so long that they miss the target."""
    return _largest(lambda share: _late(share, target_s, work_s, spread) <= LATE, 1.0)


def _late(share: float, target_s: float, work_s: float, spread: float) -> float:
    """The part of prompts that miss the target where such a share of the time is busy."""
    if share >= 1.0:
        return 1.0
    spare_s = max(0.0, target_s - work_s)
    return share * math.exp(-(1.0 - share) * 2.0 * spare_s / ((1.0 + spread) * work_s))


def _largest(holds: Callable[[float], bool], limit: float) -> float:
    """The largest value up to a limit for which something holds that holds for all below."""
    low, high = 0.0, limit
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
