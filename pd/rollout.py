"""What has to happen for a running cell to become what another configuration says. Pure.

Roles change first, for that costs no process, unless the cell could not serve before others have
come; then nodes are added, then removed, so that it never has fewer than the lesser of both
configurations. Processes that read an option which changed are replaced, one after the other. What
all of a cell has to agree on, such as the model, takes a second cell that is given the address of
the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pd.config import OPTIONS, Config
from pd.messages import COORDINATOR
from pd.types import Role

# Who reads an option: it is the cell's supervisor, the processes of one kind, or all together.
Reader = Literal["supervisor", "node", "pool", "gateway", "cell"]
Phase = Literal["prefill", "decode", "mixed"]
Kind = Literal["prefill", "decode", "mixed", "gateway"]  # what is there by number

ROLES: tuple[Phase, Phase, Phase] = ("prefill", "decode", "mixed")
# In this order processes are replaced.
_KINDS = {kind: place for place, kind in enumerate(("pool", *ROLES, "gateway"))}

# What is named neither here nor there is everybody's.
_BY_SECTION: Mapping[str, Reader] = {
    "scheduler": "node", "pool": "pool", "gateway": "gateway", "scale": "supervisor",
}  # fmt: skip
_BY_KEY: Mapping[str, Reader] = {
    "prefill": "supervisor",
    "decode": "supervisor",
    "mixed": "supervisor",
    "gateways": "supervisor",
    "drain_s": "supervisor",
    "retire_s": "supervisor",
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
    "chunk_sizes": "cell",  # routing counts on it
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
        return "add a gateway" if self.kind == "gateway" else f"add a {self.kind} node"


@dataclass(frozen=True, slots=True)
class Remove:
    member_id: str

    def __str__(self) -> str:
        return f"drain and remove {self.member_id}"


@dataclass(frozen=True, slots=True)
class Replace:
    member_id: str

    def __str__(self) -> str:
        return f"replace {self.member_id}"


@dataclass(frozen=True, slots=True)
class Swap:
    def __str__(self) -> str:
        return "start a second cell, give it the address, let this one end what it has"


Step = ChangeRole | Add | Remove | Replace | Swap


@dataclass(frozen=True, slots=True)
class Running:
    """A process of the cell: a node by its role, a pool or a gateway, as it was started."""

    kind: str
    config: Config


@dataclass(frozen=True, slots=True)
class Difference:
    """One option that changes."""

    key: str
    reader: Reader
    text: str


def reader_of(key: str) -> Reader:
    return _BY_KEY.get(key) or _BY_SECTION.get(OPTIONS[key].section, "cell")


def differences(old: Config, new: Config) -> list[Difference]:
    """The options that differ, as `section.key: old -> new`; keys and secrets are not shown."""
    found = []
    before, after = old.to_dict(), new.to_dict()
    for key, option in OPTIONS.items():
        was, is_ = before[option.section][key], after[option.section][key]
        if was != is_:
            shown = "changed" if key in _SECRET else f"{_shown(was)} -> {_shown(is_)}"
            # A cell has pools from its start, or has none.
            appears = key == "pool_dram_gib" and 0 in (was, is_)
            reader = "cell" if appears else reader_of(key)
            found.append(Difference(key, reader, f"{option.path}: {shown}"))
    return found


def plan(
    old: Config, new: Config, running: Mapping[str, Running], *, roll: bool = False
) -> list[Step]:
    """The steps from a cell of these processes to what `new` says, in order. With `roll` every
    process is replaced that stays."""
    if any(each.reader == "cell" for each in differences(old, new)):
        return [Swap()]
    steps = resize(new, {id_: each.kind for id_, each in running.items()})
    gone = {step.member_id for step in steps if isinstance(step, Remove)}
    staying = (id_ for id_ in running if id_ not in gone)
    for member_id in sorted(staying, key=lambda id_: (_KINDS[running[id_].kind], id_)):
        each = running[member_id]
        reader = each.kind if each.kind in ("pool", "gateway") else "node"
        changed = differences(each.config, new)
        if roll or any(difference.reader == reader for difference in changed):
            steps.append(Replace(member_id))
    return [*steps, Replace(COORDINATOR)] if roll else steps


def resize(new: Config, members: Mapping[str, str]) -> list[Step]:
    """Steps to the number of nodes of each role, and of gateways, that `new` wants. Where numbers
    follow the load, those that are within their bounds stay."""
    having = {
        kind: sorted((id_ for id_, has in members.items() if has == kind), key=_in_order)
        for kind in (*ROLES, "gateway")
    }
    bounds = new.scale.bounds(new.cluster.counts)
    wanted: dict[Phase, int] = {
        role: min(max(len(having[role]), bounds[role][0]), bounds[role][1]) for role in ROLES
    }
    surplus = [id_ for role in ROLES for id_ in having[role][wanted[role] :]]
    missing = [role for role in ROLES for _ in range(wanted[role] - len(having[role]))]
    gateways = new.cluster.gateways - len(having["gateway"])
    steps: list[Step] = []
    later: list[Step] = []  # changes that the cell cannot do without nodes that are yet to come
    roles = {id_: role for role in ROLES for id_ in having[role]}
    for node_id, role in zip(surplus, missing, strict=False):
        possible = serves({**roles, node_id: role}.values())
        (steps if possible else later).append(ChangeRole(node_id, role))
        if possible:
            roles[node_id] = role
    steps += [Add(role) for role in missing[len(surplus) :]]
    steps += later
    steps += [Add("gateway")] * gateways
    steps += [Remove(id_) for id_ in reversed(surplus[len(missing) :])]
    steps += [Remove(id_) for id_ in having["gateway"][new.cluster.gateways :]]
    return steps


def serves(roles: Collection[str]) -> bool:
    """Whether nodes of these roles can do both halves of a request."""
    return "mixed" in roles or ("prefill" in roles and "decode" in roles)


def describe(steps: Sequence[Step]) -> list[str]:
    return [f"{number}. {step}" for number, step in enumerate(steps, 1)]


def _in_order(node_id: str) -> tuple[int, str]:
    return len(node_id), node_id


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)
