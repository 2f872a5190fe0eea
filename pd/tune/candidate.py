"""One configuration that is tried: nodes by role, and options of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pd.config import Config
from pd.errors import ConfigError
from pd.sim.build import Hardware, cell_spec
from pd.sim.spec import CellSpec
from pd.tune.fleet import Fleet
from pd.types import Role

Family = Literal["mixed", "split", "hybrid"]
FAMILIES: tuple[Family, ...] = ("mixed", "split", "hybrid")
_LETTERS = {"prefill": "P", "decode": "D", "mixed": "M"}


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes alike; `kind` is the name of a `NodeKind`."""

    role: Role
    count: int
    kind: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """At most one group a role. `options` are keys of the configuration and their values."""

    groups: tuple[Group, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, groups: tuple[Group, ...], options: Mapping[str, Any]) -> Candidate:
        return cls(groups, tuple(sorted(options.items())))

    def with_options(self, **options: Any) -> Candidate:
        return replace(self, options=tuple(sorted({**dict(self.options), **options}.items())))

    @property
    def family(self) -> Family:
        roles = {group.role for group in self.groups}
        if roles == {"mixed"}:
            return "mixed"
        return "hybrid" if "mixed" in roles else "split"

    def option(self, key: str) -> Any:
        return dict(self.options).get(key)

    def group(self, role: Role) -> Group | None:
        return next((group for group in self.groups if group.role == role), None)

    def num_gpus(self, fleet: Fleet) -> int:
        return sum(group.count * fleet.kind(group.kind).gpus for group in self.groups)

    def layout(self, fleet: Fleet) -> str:
        """Such as 2P+1D, and of how many GPUs a node is, or of which kind where there are
        several: 2P+1D of 4 GPUs, 2P:h100x8+4D:a100x4."""
        kinds = {fleet.kind(group.kind).name for group in self.groups}
        if len(kinds) == 1:
            gpus = fleet.kind(next(iter(kinds))).gpus
            words = "+".join(f"{group.count}{_LETTERS[group.role]}" for group in self.groups)
            return words if gpus == 1 else f"{words} of {gpus} GPUs"
        several = len({fleet.kind(name).hardware for name in kinds}) > 1

        def word(group: Group) -> str:
            kind = fleet.kind(group.kind)
            where = f"{kind.hardware}x{kind.gpus}" if several else f"x{kind.gpus}"
            return f"{group.count}{_LETTERS[group.role]}:{where}"

        return "+".join(map(word, self.groups))

    def config(self, base: Config, fleet: Fleet) -> Config:
        """`base` with these nodes and options: what `pd serve` takes. ConfigError where an
        option has no such value."""
        counts = dict.fromkeys(_LETTERS, 0)
        counts |= {group.role: group.count for group in self.groups}
        options: dict[str, Any] = {**counts, **dict(self.options)}
        gpus = {fleet.kind(group.kind).gpus for group in self.groups}
        if len(gpus) == 1 and gpus != {1}:
            options["gpus_per_node"] = float(next(iter(gpus)))
        return Config.from_dict(base.to_dict(), **options)

    def spec(self, base: Config, fleet: Fleet) -> CellSpec:
        """The cell to simulate."""
        costs = {group.role: fleet.kind(group.kind).cost for group in self.groups}
        largest = max(fleet.kind(group.kind).gpus for group in self.groups)
        hardware = Hardware(
            next(iter(costs.values())),
            costs,
            per_host=max(1, fleet.gpus_per_host // largest),
            sharing=fleet.sharing,
        )
        return cell_spec(self.config(base, fleet), hardware)

    def to_dict(self, fleet: Fleet) -> dict[str, Any]:
        return {
            "family": self.family,
            "layout": self.layout(fleet),
            "gpus": self.num_gpus(fleet),
            "groups": [
                {"role": group.role, "count": group.count, "cost": group.kind}
                for group in self.groups
            ],
            "options": dict(self.options),
        }


def check_families(names: list[str]) -> tuple[Family, ...]:
    """Of what a user wrote."""
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(f"no family '{name}': there are {', '.join(FAMILIES)}")
    return tuple(each for each in FAMILIES if each in names)
