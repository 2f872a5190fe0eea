"""What `/metrics` shows: plain counters updated on the token path, turned into text on a scrape.

Prometheus' own histogram objects lock and label on every observation; these only add.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)  # fmt: skip
from prometheus_client.registry import Collector

from pd.gateway import node_metrics
from pd.gateway.describe import outcome_of
from pd.gateway.stream import RunningRequest
from pd.messages import CellStatus, Started
from pd.timeline import Stage

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
_TOKENS = tuple(float(2**power) for power in range(21))
_REFUSED = ("429", "503")
_MAX_RECENT = 4096
_BYTES = tuple(float(4**power) for power in range(5, 18))  # 1 KiB to 16 GiB


class Histogram:
    """Counts by upper bound, as Prometheus wants them once accumulated."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, help_text: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, help_text, labels=())
        family.add_metric((), self._buckets(), self._sum)
        return family

    def _buckets(self) -> list[tuple[str, float]]:
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
        return buckets

    @staticmethod
    def family_by(
        name: str, help_text: str, label: str, histograms: Mapping[str, Histogram]
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, help_text, labels=(label,))
        for key, each in histograms.items():
            family.add_metric((key,), each._buckets(), each._sum)
        return family


class Recent:
    """The last values of something, with their times."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=_MAX_RECENT)

    def add(self, now: float, value: float) -> None:
        self._kept.append((now, value))

    def since(self, start_s: float) -> list[float]:
        return [value for at, value in self._kept if at >= start_s]


class GatewayMetrics(Collector):
    """The numbers of one gateway, and of the nodes as the coordinator reports them."""

    def __init__(self) -> None:
        self.ttft = Histogram(_SECONDS)
        self.itl = Histogram(_SECONDS)
        self.tpot = Histogram(_SECONDS)
        self.e2e = Histogram(_SECONDS)
        self.prompt_tokens = Histogram(_TOKENS)
        self.output_tokens = Histogram(_TOKENS)
        self.handoff_wait = Histogram(_SECONDS)
        self.handoff_bytes = Histogram(_BYTES)
        self.stages = {stage: Histogram(_SECONDS) for stage in get_args(Stage)}
        self.recent_ttft = Recent()
        self.recent_tpot = Recent()
        self.moved_bytes = 0
        self.early_bytes = 0
        self.interruptions = 0
        self.generated = 0
        self.outcomes: Counter[str] = Counter()
        self.responses: Counter[str] = Counter()  # HTTP responses by status
        # By tenant class:
        self.slo_attained: Counter[str] = Counter()
        self.slo_missed: Counter[str] = Counter()
        self.goodput_tokens: Counter[str] = Counter()
        self.targets_missed: Counter[str] = Counter()  # by "ttft", "tpot" or "end"
        self._running: Callable[[], tuple[RunningRequest, ...]] = tuple
        self._status: Callable[[], CellStatus] = lambda: CellStatus(False, "", ())
        self._silence_s: Callable[[], float] = float
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def watch(
        self,
        running: Callable[[], tuple[RunningRequest, ...]],
        status: Callable[[], CellStatus],
        silence_s: Callable[[], float],
    ) -> None:
        """Where the gauges are read from at a scrape."""
        self._running = running
        self._status = status
        self._silence_s = silence_s

    def first_token(self, ttft_s: float, now: float) -> None:
        """The first token of a sequence is here."""
        self.ttft.observe(ttft_s)
        self.recent_ttft.add(now, ttft_s)

    def ended(self, running: RunningRequest) -> None:
        """A request is over, one way or another."""
        record, outcome = running.record, outcome_of(running)
        self.outcomes[outcome] += 1
        self.generated += record.num_output
        if outcome == "finished":
            self.e2e.observe(running.timeline.end_s - running.timeline.arrival_s)
            self.prompt_tokens.observe(len(record.request.prompt))
            self.output_tokens.observe(record.num_output)
            for stage, stage_s in running.timeline.stages.items():
                self.stages[stage].observe(stage_s)
            for clock in running.timeline.clocks:
                if (tpot := clock.tpot_s) is not None:
                    self.tpot.observe(tpot)
                    self.recent_tpot.add(running.timeline.end_s, tpot)
        # Whoever cancels gives up the targets too: that is neither a hit nor a miss.
        if outcome != "cancelled" and (attained := running.attained()) is not None:
            tenant_class = record.request.tenant_class
            self.slo_attained[tenant_class] += attained
            self.slo_missed[tenant_class] += not attained
            if attained:
                self.goodput_tokens[tenant_class] += record.num_output
            self.targets_missed.update(running.missed())

    def started(self, message: Started) -> None:
        """The sequences of a work begin to decode."""
        self.moved_bytes += message.moved_bytes
        if message.moved_bytes:
            self.handoff_wait.observe(message.wait_s)
            self.handoff_bytes.observe(message.moved_bytes)
            self.early_bytes += message.early_bytes

    def totals(self) -> dict[str, float]:
        """What has been counted so far, for who looks at it over time."""
        return {
            "finished": self.outcomes["finished"],
            "failed": self.outcomes["failed"],
            "rejected": sum(self.responses[status] for status in _REFUSED),
            "attained": sum(self.slo_attained.values()),
            "missed": sum(self.slo_missed.values()),
            "interrupted": self.interruptions,
            "tokens": self._num_generated(self._running()),
        }

    def in_flight(self) -> tuple[int, int]:
        """Requests with a first token, and without."""
        running = self._running()
        started = sum(each.started for each in running)
        return started, len(running) - started

    def _num_generated(self, running: Iterable[RunningRequest]) -> int:
        return self.generated + sum(each.record.num_output for each in running)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield self.ttft.family("pd_ttft_seconds", "Arrival to first token, a sequence")
        yield self.itl.family("pd_itl_seconds", "Gap between two tokens of a sequence")
        yield self.tpot.family("pd_tpot_seconds", "(last - first) / (tokens - 1), a sequence")
        yield self.e2e.family("pd_e2e_seconds", "Arrival to end of finished requests")
        yield self.prompt_tokens.family("pd_request_prompt_tokens", "Of finished requests")
        yield self.output_tokens.family("pd_request_output_tokens", "Of finished requests")
        yield self.handoff_wait.family(
            "pd_handoff_wait_seconds", "First token to decode start: what hides no transfer"
        )
        yield self.handoff_bytes.family("pd_handoff_bytes", "KV of a hand-off")
        yield Histogram.family_by(
            "pd_stage_seconds",
            "Stages of finished requests: queue + fetch + compute are the TTFT, transfer + "
            "first_step the gap to the second token",
            "stage",
            self.stages,
        )
        yield CounterMetricFamily(
            "pd_kv_moved_bytes", "KV moved from prefill to decode nodes", value=self.moved_bytes
        )
        yield CounterMetricFamily(
            "pd_kv_early_bytes", "Of these, before the prompt was computed", value=self.early_bytes
        )
        yield CounterMetricFamily(
            "pd_generation_tokens", "Tokens delivered to clients",
            value=self._num_generated(self._running()),
        )  # fmt: skip
        started, waiting = self.in_flight()
        yield GaugeMetricFamily("pd_requests_running", "With a token already", value=started)
        yield GaugeMetricFamily("pd_requests_waiting", "Without a token yet", value=waiting)
        yield _by("pd_requests", "Requests that ended", "outcome", self.outcomes)
        yield _by("pd_http_responses", "HTTP responses", "status", self.responses)
        refused = {code: count for code, count in self.responses.items() if code in _REFUSED}
        yield _by("pd_rejections", "Requests refused for now", "status", refused)
        yield CounterMetricFamily(
            "pd_interruptions", "Work that was resumed elsewhere", value=self.interruptions
        )
        yield _by(
            "pd_slo_attained", "Requests that met all their targets: its rate is the goodput",
            "tenant_class", self.slo_attained,
        )  # fmt: skip
        yield _by(
            "pd_slo_missed", "Requests that missed a target, rejected ones too",
            "tenant_class", self.slo_missed,
        )  # fmt: skip
        yield _by(
            "pd_slo_target_missed", "Which target was missed; end: it was not answered whole",
            "target", self.targets_missed,
        )  # fmt: skip
        yield _by(
            "pd_goodput_tokens", "Output of requests that met all their targets",
            "tenant_class", self.goodput_tokens,
        )  # fmt: skip
        yield from self._cell()

    def _cell(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("pd_cell_ready", "1 if requests are served", value=status.ready)
        yield GaugeMetricFamily(
            "pd_cell_requests", "In flight, of all gateways", value=status.num_requests
        )
        yield GaugeMetricFamily(
            "pd_coordinator_silent_seconds", "Since the coordinator was heard of",
            value=self._silence_s(),
        )  # fmt: skip
        wanted = GaugeMetricFamily(
            "pd_cell_nodes_wanted", "Nodes that the load needs, where they come and go with it",
            labels=("role",),
        )  # fmt: skip
        for role, count in sorted(status.wanted.items()):
            wanted.add_metric((role,), count)
        yield wanted
        yield from node_metrics.families(status.nodes)


def _by(name: str, help_text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=(label,))
    for key in sorted(counts):
        family.add_metric((key,), counts[key])
    return family
