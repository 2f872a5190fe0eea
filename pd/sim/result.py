"""What a simulation shows: outcomes, and what the nodes did meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pd.sim.node import SimNode
from pd.types import SLO, Role
from pd.workload.outcome import Outcome, Spread, Summary, summarise

if TYPE_CHECKING:
    from pd.sim.cell import SimCell

_SPREADS = ("ttft_s", "tpot_s")


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One process of a node. `busy` is the share of the run in which it computed."""

    id: str
    role: Role
    busy: float
    steps: int
    prefill_tokens: int
    decode_tokens: int
    cache_hit_tokens: int
    fetched_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class Hits:
    """Prompt tokens that no node computed, as shares of all that went through the nodes.

    `fetched` is the part that came from elsewhere. `found_*` is where prompts' blocks lay when
    they were sent to a node: there, on another one, in a pool's memory, on a pool's disk.
    """

    rate: float
    fetched: float
    found_local: float
    found_remote: float
    found_dram: float
    found_disk: float


@dataclass(frozen=True, slots=True)
class SimResult:
    """Outcomes in order of their ends; times in seconds of virtual time."""

    outcomes: tuple[Outcome, ...]
    duration_s: float
    nodes: tuple[NodeReport, ...]
    hits: Hits
    transferred_bytes: int
    interruptions: int
    num_events: int

    def summary(self, slo: SLO | None = None) -> Summary:
        return summarise(self.outcomes, slo)

    def busy(self) -> dict[str, float]:
        """The mean share of time in which nodes computed, by role."""
        shares: dict[str, list[float]] = {}
        for node in self.nodes:
            shares.setdefault(node.role, []).append(node.busy)
        return {role: sum(each) / len(each) for role, each in sorted(shares.items())}

    def to_dict(self, slo: SLO | None = None) -> dict[str, Any]:
        """Plain data for JSON, where a figure that there is not is None."""
        summary = self.summary(slo)
        return {
            "requests": {
                "all": summary.num_requests,
                "ok": summary.num_ok,
                "rejected": summary.num_rejected,
                "errors": summary.num_errors,
                "met_slo": summary.num_met,
            },
            "slo": None if slo is None else asdict(slo),
            "duration_s": summary.duration_s,
            "goodput": summary.goodput,
            "attainment": summary.attainment,
            "throughput": summary.throughput,
            "output_tokens_per_s": summary.tokens_per_s,
            **{name: _spread(getattr(summary, name)) for name in _SPREADS},
            "hits": asdict(self.hits),
            "busy": self.busy(),
            "transferred_bytes": self.transferred_bytes,
            "interruptions": self.interruptions,
            "preemptions": sum(node.preemptions for node in self.nodes),
            "events": self.num_events,
            "nodes": [asdict(node) for node in self.nodes],
        }


def report(cell: SimCell, outcomes: Sequence[Outcome]) -> SimResult:
    """The result of a cell as it stands now."""
    now = cell.now
    members = [*cell.members.values(), *cell.lost]
    nodes = [_node(member, now) for member in members if isinstance(member, SimNode)]
    return SimResult(
        tuple(outcomes),
        now,
        tuple(nodes),
        _hits(cell, nodes),
        cell.links.num_bytes,
        cell.gateway.interruptions,
        cell.queue.num_events,
    )


def _node(member: SimNode, now: float) -> NodeReport:
    snapshot = member.core.snapshot(now)
    return NodeReport(
        id=member.id,
        role=snapshot.role,
        busy=member.busy_s / now if now > 0 else 0.0,
        steps=snapshot.steps,
        prefill_tokens=snapshot.prefill_tokens,
        decode_tokens=snapshot.decode_tokens,
        cache_hit_tokens=snapshot.cache_hit_tokens,
        fetched_tokens=snapshot.fetched_tokens,
        preemptions=snapshot.preemptions,
    )


def _hits(cell: SimCell, nodes: Sequence[NodeReport]) -> Hits:
    found = Counter(cell.found)
    for node in cell.coordinator.members.nodes.values():
        found.update(asdict(node.found))
    hit = sum(node.cache_hit_tokens for node in nodes)
    fetched = sum(node.fetched_tokens for node in nodes)
    tokens = max(1, hit + sum(node.prefill_tokens for node in nodes))
    routed = max(1, found["routed_tokens"])
    places = ("local", "remote", "dram", "disk")
    return Hits(
        hit / tokens, fetched / tokens, *(found[f"found_{each}_tokens"] / routed for each in places)
    )


def _spread(spread: Spread) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(spread).items()}
