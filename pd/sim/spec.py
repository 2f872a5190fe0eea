"""What a simulated cell is made of: nodes, pools, links, and what goes wrong when. Plain data.

Everything that the live system is configured with is a `Config` here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pd.config import Config
from pd.cost.model import CostModel, Link
from pd.cost.sharing import Sharing
from pd.errors import ConfigError
from pd.types import Role

FailureKind = Literal["kill", "freeze", "slow"]

NEAR = ("nccl", "shm", "tcp")
FAR = ("rdma", "tcp", "nccl")


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes alike. `num_blocks` is a node's, a block of `block_bytes` has the configuration's
    block size; the limits of a step that are None are the configuration's, too.

    The nodes of a cell are spread over hosts in the order of its groups, `per_host` to each.
    """

    role: Role
    count: int
    cost: CostModel
    num_blocks: int
    block_bytes: int
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    per_host: int = 8

    def __post_init__(self) -> None:
        if self.role not in ("prefill", "decode", "mixed"):
            raise ConfigError(f"a group of nodes is prefill, decode or mixed, not {self.role!r}")
        for name in ("num_blocks", "block_bytes", "per_host"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a {self.role} node's {name} must be at least 1")
        if self.count < 0:
            raise ConfigError(f"there cannot be {self.count} {self.role} nodes")


@dataclass(frozen=True, slots=True)
class PoolGroup:
    """Pool nodes, one a host: pages of memory, slots on a disk that does one thing at a time."""

    count: int
    num_pages: int
    num_slots: int = 0
    disk: Link = Link(100e-6, 3e9)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class Failure:
    """At `at_s` a node is killed, stops for `for_s` (as by SIGSTOP), or takes `factor` times as
    long for `for_s`. One that was killed is back `for_s` later, its weights loaded."""

    at_s: float
    node: str
    kind: FailureKind
    for_s: float = 30.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.for_s < 0 or self.factor <= 0:
            raise ConfigError(
                f"failure of {self.node}: times must be 0 or more and the factor positive, not "
                f"at {self.at_s:g} s, for {self.for_s:g} s, times {self.factor:g}"
            )


@dataclass(frozen=True)
class CellSpec:
    """One cell. Times in seconds.

    `latency_s` is that of every message. Blocks go by the path `near` between nodes of one host,
    else by `far`, which are looked for in `links` and then in the sender's cost model; without a
    name it is the first of `NEAR` or `FAR` that is there. A supervisor notices the end of a
    process after `notice_s`; one that hangs and is ended is back after `restart_s`. `jitter` is
    the standard deviation of a step's duration, as a share of it. `sharing` is what nodes of one
    host cost each other, None for nothing.
    """

    groups: tuple[NodeGroup, ...]
    config: Config = field(default_factory=Config)
    pools: PoolGroup | None = None
    links: Mapping[str, Link] = field(default_factory=dict)
    near: str = ""
    far: str = ""
    latency_s: float = 0.0002
    notice_s: float = 0.5
    restart_s: float = 30.0
    jitter: float = 0.0
    failures: tuple[Failure, ...] = ()
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        roles = {group.role for group in self.groups if group.count}
        if not ("mixed" in roles or {"prefill", "decode"} <= roles):
            raise ConfigError(
                "a cell needs mixed nodes, or both prefill and decode nodes; this one has "
                f"{', '.join(sorted(roles)) or 'none'}"
            )
        for name in ("latency_s", "notice_s", "restart_s", "jitter"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name):g}")
        if len(self.node_ids()) > 1:
            for group in self.groups:
                self.link(group.cost, near=True)
                self.link(group.cost, near=False)
        names = set(self.node_ids())
        for failure in self.failures:
            if failure.node not in names:
                raise ConfigError(
                    f"a failure of {failure.node}, which this cell does not have: it has "
                    f"{', '.join(sorted(names)[:8])}{' ...' if len(names) > 8 else ''}"
                )

    def link(self, cost: CostModel, *, near: bool) -> Link:
        """How blocks leave a node of this cost model. ConfigError where there is no such path."""
        named = self.near if near else self.far
        wanted = (named,) if named else NEAR if near else FAR
        links = {**cost.links, **self.links}
        for path in wanted:
            if path in links:
                return links[path]
        raise ConfigError(
            f"no path '{' or '.join(wanted)}' for blocks {'on one host' if near else 'to others'}: "
            f"the cost model has {', '.join(sorted(links)) or 'none'}; give the cell a link"
        )

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by role."""
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.role] = counts.get(group.role, 0) + group.count
        return counts

    @property
    def can_hang(self) -> bool:
        """Whether a node may fall silent: only then do signs of life tell anything."""
        return any(failure.kind == "freeze" for failure in self.failures)

    def node_ids(self) -> list[str]:
        """Ids in the order of the groups, pools last, as the live system names them."""
        ids: list[str] = []
        numbers: dict[str, int] = {}
        for group in self.groups:
            for _ in range(group.count):
                number = numbers.get(group.role, 0)
                numbers[group.role] = number + 1
                ids.append(f"{group.role}-{number}")
        return ids + [f"pool-{i}" for i in range(self.pools.count if self.pools else 0)]
