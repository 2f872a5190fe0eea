"""The section of the configuration that says whether and how nodes are started and removed.

A part of `pd.config`, which is what others import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pd.errors import ConfigError
from pd.policies.scale import ScaleOptions
from pd.schema import Section, option
from pd.types import Role

_DEFAULTS = ScaleOptions()


@dataclass(frozen=True)
class ScaleConfig(Section):
    """Nodes that come and go with the load. Those of `cluster` are the fewest there are."""

    name: ClassVar[str] = "scale"

    max_prefill_nodes: int | None = option(
        None, "most prefill nodes; auto is cluster.prefill: their number stays as it is",
        minimum=1, maximum=10_000,
    )  # fmt: skip
    max_decode_nodes: int | None = option(
        None, "most decode nodes; auto is cluster.decode: their number stays as it is",
        minimum=1, maximum=10_000,
    )  # fmt: skip
    max_mixed_nodes: int | None = option(
        None, "most mixed nodes; auto is cluster.mixed: their number stays as it is",
        minimum=1, maximum=10_000,
    )  # fmt: skip
    scale_pressure: float = option(
        _DEFAULTS.pressure, "share of what they can take that nodes are to be at",
        minimum=0.05, maximum=1.0,
    )  # fmt: skip
    scale_up_s: float = option(
        _DEFAULTS.up_s, "seconds that more nodes have to be needed until they are started",
        minimum=0.0,
    )  # fmt: skip
    scale_down_s: float = option(
        _DEFAULTS.down_s, "seconds that fewer nodes have to do until one is removed", minimum=0.0
    )
    ask_for_hosts: bool = option(
        True,
        "ask Ray's autoscaler for hosts where there is no room for a node; the last cell of a Ray "
        "cluster that asks is the one that is heard",
    )

    def bounds(self, counts: Mapping[Role, int]) -> dict[Role, tuple[int, int]]:
        """Fewest and most nodes of each role that there are `counts` of at the start. ConfigError
        where there are to be more than the most, or none to see the load of."""
        found = {}
        for role, fewest in counts.items():
            key = f"max_{role}_nodes"
            most: int | None = getattr(self, key)
            if most is not None and most < fewest:
                raise ConfigError(
                    f"scale.{key} = {most} is less than cluster.{role} = {fewest}, which is the "
                    "fewest there are: raise one or lower the other"
                )
            if most is not None and not fewest:
                raise ConfigError(
                    f"scale.{key} = {most} and cluster.{role} = 0: the load of {role} nodes is "
                    f"seen where there is one, so set cluster.{role} to 1 or more"
                )
            found[role] = fewest, fewest if most is None else most
        return found
