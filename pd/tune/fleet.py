"""The hardware there is to choose from: kinds of nodes, and how many GPUs of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pd.cost import library
from pd.cost.model import CostModel
from pd.cost.sharing import Sharing
from pd.errors import ConfigError
from pd.sim.build import KV_TOKENS_KEY


@dataclass(frozen=True)
class NodeKind:
    """One way to run the model: a node's cost model, and the GPUs that such a node takes."""

    name: str
    cost: CostModel
    gpus: int = 1
    hardware: str = ""

    @classmethod
    def of(cls, name: str, cost: CostModel) -> NodeKind:
        """By what the cost model says about itself; a node of no GPUs counts as one."""
        gpus = cost.about.get("gpus", 1)
        return cls(
            name, cost, gpus if isinstance(gpus, int) and gpus > 0 else 1,
            str(cost.about.get("hardware") or name),
        )  # fmt: skip

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of KV that there is room for, where the cost model says so."""
        tokens = self.cost.about.get(KV_TOKENS_KEY)
        return tokens if isinstance(tokens, int) else None


@dataclass(frozen=True)
class Fleet:
    """`gpus` is the budget by hardware; nodes are put on hosts of `gpus_per_host`. `sharing` is
    what those of one host cost each other, None for nothing."""

    kinds: tuple[NodeKind, ...]
    gpus: Mapping[str, int] = field(default_factory=dict)
    gpus_per_host: int = 8
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigError("there is no hardware to choose from: name a cost model")
        for hardware, count in self.gpus.items():
            fitting = [each for each in self.kinds if each.hardware == hardware]
            if not fitting:
                known = ", ".join(sorted({each.hardware for each in self.kinds}))
                raise ConfigError(f"no cost model is of '{hardware}'; those given are of {known}")
            least = min(each.gpus for each in fitting)
            if count < least:
                raise ConfigError(
                    f"{count} GPUs of {hardware} are fewer than one node takes, which is {least}"
                )

    @property
    def num_gpus(self) -> int:
        return sum(self.gpus.values())

    def kind(self, name: str) -> NodeKind:
        return next(each for each in self.kinds if each.name == name)


def find_kinds(names: Iterable[str]) -> list[NodeKind]:
    """Of files, of shipped models, and of patterns such as llama-3.1-70b-h100-*."""
    kinds: dict[str, NodeKind] = {}
    for name in names:
        found = [name]
        if any(mark in name for mark in "*?["):
            found = [each for each in library.names() if fnmatch(each, name)]
            if not found:
                known = ", ".join(library.names())
                raise ConfigError(f"no shipped cost model is like '{name}'; there are {known}")
        for each in found:
            short = Path(each).stem if each.endswith(".json") else each
            kinds[short] = NodeKind.of(short, library.find(each))
    return list(kinds.values())


def parse_gpus(text: str, kinds: Iterable[NodeKind]) -> dict[str, int]:
    """16, where all kinds of nodes are of one hardware, or h100=8,a100=8."""
    hardware = sorted({each.hardware for each in kinds})
    try:
        if "=" not in text:
            count = int(text)
            if len(hardware) > 1:
                raise ConfigError(
                    f"--gpus {text}: say how many of each, such as "
                    + ",".join(f"{each}={count}" for each in hardware)
                )
            budget = {hardware[0]: count}
        else:
            pairs = [part.split("=") for part in text.split(",")]
            budget = {name.strip(): int(count) for name, count in pairs}
    except ValueError:
        raise ConfigError(
            f"--gpus {text}: write a number, or a number for each kind such as h100=8,a100=8"
        ) from None
    if any(count < 1 for count in budget.values()):
        raise ConfigError(f"--gpus {text}: there must be at least one of each kind that is named")
    return budget
