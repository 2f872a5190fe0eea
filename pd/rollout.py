"""What has to happen for a running cell to become what another configuration says. Pure.

Roles change first, for that costs no process; then nodes are added, then removed, so that the cell
never has fewer than the lesser of both configurations. An option that a process reads when it
starts has its processes replaced, one after the other. What all of a cell has to agree on cannot
change under running requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pd.config import OPTIONS, Config
from pd.errors import ConfigError
from pd.types import Role

# Who reads an option: it is the cell's supervisor, the processes of one kind, or all together.
Reader = Literal["supervisor", "node", "pool", "gateway", "cell"]
Kind = Literal["prefill", "decode", "mixed", "pool", "gateway"]

ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")

_BY_SECTION: Mapping[str, Reader] = {
    "model": "cell",
    "cache": "cell",
    "scheduler": "node",
    "cluster": "cell",
    "pool": "pool",
    "transfer": "cell",
    "gateway": "gateway",
    "slo": "cell",
    "balance": "cell",
    "observe": "cell",
}
_BY_KEY: Mapping[str, Reader] = {
    "prefill": "supervisor",
    "decode": "supervisor",
    "mixed": "supervisor",
    "address": "supervisor",
    "start_timeout_s": "supervisor",
    "node_drain_s": "supervisor",
    "kv_cache_gib": "node",
    "gpu_memory_utilization": "node",
    "pin_cpus": "node",
    "cpus_per_node": "node",
    "gpus_per_node": "node",
    "threads_per_node": "node",
    "lease_s": "node",
    "fetch": "node",
    "trace_endpoint": "gateway",
    "trace_file": "gateway",
    "trace_sample": "gateway",
    "host": "cell",
    "port": "cell",
}
_SECRET = frozenset({"api_key", "api_keys", "key_secret"})


@dataclass(frozen=True, slots=True)
class ChangeRole:
    node_id: str
    role: Role

    def __str__(self) -> str:
        return f"{self.node_id} becomes a {self.role} node"


@dataclass(frozen=True, slots=True)
class Add:
    kind: Kind

    def __str__(self) -> str:
        return f"add a {self.kind} node" if self.kind in ROLES else f"add a {self.kind}"


@dataclass(frozen=True, slots=True)
class Remove:
    member_id: str

    def __str__(self) -> str:
        return f"drain and remove {self.member_id}"


Step = ChangeRole | Add | Remove


@dataclass(frozen=True, slots=True)
class Difference:
    """One option that changes."""

    key: str
    reader: Reader
    text: str


def reader_of(key: str) -> Reader:
    return _BY_KEY.get(key) or _BY_SECTION[OPTIONS[key].section]


def differences(old: Config, new: Config) -> list[Difference]:
    """The options that differ, as `section.key: old -> new`; keys and secrets are not shown."""
    found = []
    before, after = old.to_dict(), new.to_dict()
    for key, option in OPTIONS.items():
        was, is_ = before[option.section][key], after[option.section][key]
        if was != is_:
            shown = "changed" if key in _SECRET else f"{_shown(was)} -> {_shown(is_)}"
            found.append(Difference(key, reader_of(key), f"{option.path}: {shown}"))
    return found


def plan(old: Config, new: Config, nodes: Mapping[str, Role]) -> list[Step]:
    """The steps from a cell of these nodes (pools left out) to what `new` says, in order.

    ConfigError if `new` cannot be reached without ending the cell.
    """
    fixed = [each for each in differences(old, new) if each.reader != "supervisor"]
    if fixed:
        raise ConfigError(
            "these options cannot change while the cell runs: "
            + "; ".join(each.text for each in fixed)
            + "; run 'pd teardown' first"
        )
    return resize(new, nodes)


def resize(new: Config, nodes: Mapping[str, Role]) -> list[Step]:
    """Steps to the number of nodes of each role that `new` wants."""
    having: dict[Role, list[str]] = {
        role: sorted((id_ for id_, has in nodes.items() if has == role), key=_in_order)
        for role in ROLES
    }
    wanted: dict[Role, int] = {role: getattr(new.cluster, role) for role in ROLES}
    surplus = [id_ for role in ROLES for id_ in having[role][wanted[role] :]]
    missing = [role for role in ROLES for _ in range(wanted[role] - len(having[role]))]
    steps: list[Step] = [ChangeRole(*pair) for pair in zip(surplus, missing, strict=False)]
    steps += [Add(role) for role in missing[len(surplus) :]]
    steps += [Remove(id_) for id_ in reversed(surplus[len(missing) :])]
    return steps


def describe(steps: Sequence[Step]) -> list[str]:
    return [f"{number}. {step}" for number, step in enumerate(steps, 1)]


def _in_order(node_id: str) -> tuple[int, str]:
    return len(node_id), node_id


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)
