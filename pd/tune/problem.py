"""What is asked of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pd.config import Config
from pd.errors import ConfigError
from pd.tune.candidate import FAMILIES, Family
from pd.tune.fleet import Fleet
from pd.types import SLO
from pd.workload.arrival import Workload

_LEAST_REQUESTS = 50


@dataclass(frozen=True)
class Problem:
    """Find the configuration with the highest rate of `workload` on `fleet` at which `goal` of
    all requests meet `slo`. Options in `fixed` are as `base` has them in every candidate."""

    fleet: Fleet
    workload: Workload
    slo: SLO
    base: Config = field(default_factory=Config)
    goal: float = 0.9
    families: tuple[Family, ...] = FAMILIES
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.slo == SLO():
            raise ConfigError("a search needs targets: set --slo-ttft-ms, --slo-tpot-ms or both")
        if not 0 < self.goal <= 1:
            raise ConfigError(f"the goal is a share of requests, above 0 and at most 1, not "
                              f"{self.goal:g}")  # fmt: skip
        if len(self.workload) < _LEAST_REQUESTS:
            raise ConfigError(
                f"workload {self.workload.name} has {len(self.workload)} requests; a search needs "
                f"at least {_LEAST_REQUESTS}"
            )
        if not 0 < self.workload.rate < float("inf"):
            raise ConfigError(
                f"workload {self.workload.name} has all its requests at one time: there is no "
                "rate to change"
            )

    @classmethod
    def of(cls, *, base: Config, slo: SLO, **more: Any) -> Problem:
        """With the targets also in the configuration, for the policies that heed them."""
        targets = base.slo
        if slo.ttft_s is not None:
            targets = replace(targets, ttft_ms=slo.ttft_s * 1e3)
        if slo.tpot_s is not None:
            targets = replace(targets, tpot_ms=slo.tpot_s * 1e3)
        return cls(base=replace(base, slo=targets), slo=slo, **more)
