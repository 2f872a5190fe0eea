"""What became of a workload's requests, and what that amounts to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pd.types import SLO
from pd.workload.arrival import Arrival

Status = Literal["ok", "rejected", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request's end. Times are the workload's: seconds since its start.

    `sent_s` is when it really went out, later than `arrival.time_s` where the sender was
    behind; `ttft_s` counts from there. `tpot_s` = (last - first) / (tokens - 1), None below
    two tokens. `itl_s` has the gaps between tokens where they were taken. `detail` says what
    went wrong.
    """

    arrival: Arrival
    ttft_s: float | None
    tpot_s: float | None
    num_output: int
    status: Status
    end_s: float
    sent_s: float | None = None
    itl_s: tuple[float, ...] = ()
    detail: str = ""

    @property
    def late_s(self) -> float:
        """How long after its time it was sent."""
        return 0.0 if self.sent_s is None else max(0.0, self.sent_s - self.arrival.time_s)

    def meets(self, slo: SLO | None) -> bool:
        """Finished within every target, its own or else `slo`. A request of one token has no
        TPOT to miss; one that was rejected or failed is a miss whatever the targets."""
        if self.status != "ok":
            return False
        targets = self.arrival.slo or slo or SLO()
        if targets.ttft_s is not None and (self.ttft_s is None or self.ttft_s > targets.ttft_s):
            return False
        return targets.tpot_s is None or self.tpot_s is None or self.tpot_s <= targets.tpot_s


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in four numbers, NaN where nothing was measured; seconds here."""

    mean: float = math.nan
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        if not ordered:
            return cls()
        shares = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(math.fsum(ordered) / len(ordered), *shares)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. `goodput` is requests that met both targets per second of the run, and
    `attainment` their share of all requests, the rejected and the failed among them."""

    num_requests: int
    num_ok: int
    num_rejected: int
    num_errors: int
    num_met: int
    duration_s: float
    output_tokens: int
    slo: SLO | None = None
    ttft_s: Spread = field(default_factory=Spread)
    tpot_s: Spread = field(default_factory=Spread)
    itl_s: Spread = field(default_factory=Spread)
    late_s: Spread = field(default_factory=Spread)

    @property
    def goodput(self) -> float:
        return self._per_second(self.num_met)

    @property
    def attainment(self) -> float:
        """1 of no requests at all: none was missed."""
        return self.num_met / self.num_requests if self.num_requests else 1.0

    @property
    def throughput(self) -> float:
        """Finished requests per second."""
        return self._per_second(self.num_ok)

    @property
    def tokens_per_s(self) -> float:
        return self._per_second(self.output_tokens)

    def _per_second(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def summarise(outcomes: Sequence[Outcome], slo: SLO | None = None) -> Summary:
    """The run from its first arrival to its last end. `slo` holds for requests without targets
    of their own. Latencies are those of finished requests."""
    ok = [each for each in outcomes if each.status == "ok"]
    start = min((each.arrival.time_s for each in outcomes), default=0.0)
    end = max((each.end_s for each in outcomes), default=0.0)
    return Summary(
        num_requests=len(outcomes),
        num_ok=len(ok),
        num_rejected=sum(each.status == "rejected" for each in outcomes),
        num_errors=sum(each.status == "error" for each in outcomes),
        num_met=sum(each.meets(slo) for each in outcomes),
        duration_s=max(0.0, end - start),
        output_tokens=sum(each.num_output for each in outcomes),
        slo=slo,
        ttft_s=Spread.of(each.ttft_s for each in ok if each.ttft_s is not None),
        tpot_s=Spread.of(each.tpot_s for each in ok if each.tpot_s is not None),
        itl_s=Spread.of(gap for each in ok for gap in each.itl_s),
        late_s=Spread.of(each.late_s for each in outcomes),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank), of sorted values; NaN of none."""
    if not ordered:
        return math.nan
    return ordered[max(0, min(len(ordered), math.ceil(share * len(ordered) - 1e-9)) - 1)]
