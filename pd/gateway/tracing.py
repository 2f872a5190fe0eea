"""OpenTelemetry spans of requests, made from their timelines once they are over.

The gateway knows when everything happened to a request, in its own clock: so the spans of a trace
fit each other, nothing is measured twice, and neither nodes nor tokens pay for it. Each process's
part is a service of its own, as a tracing tool shows them: gateway, coordinator, prefill, transfer,
decode.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from pd.errors import ConfigError
from pd.gateway.describe import outcome_of
from pd.gateway.stream import RunningRequest
from pd.gateway.trace_context import TraceContext
from pd.timeline import Part

# Whose time each part of a request's life is.
SERVICES: Mapping[Part, str] = {
    "admit": "pd-coordinator", "queue": "pd-prefill", "fetch": "pd-prefill",
    "compute": "pd-prefill", "transfer": "pd-transfer", "first_step": "pd-decode",
    "decode": "pd-decode",
}  # fmt: skip
GATEWAY = "pd-gateway"

_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where spans go: to an OTLP collector over HTTP, into a file, or nowhere if neither is set.
    `sample` is the share of requests that are recorded if their client has not decided that."""

    endpoint: str | None = None
    file: str | None = None
    sample: float = 1.0

    @property
    def enabled(self) -> bool:
        return bool(self.endpoint or self.file)


class Tracer:
    """Writes the spans of requests that ended; a thread exports them. In one event loop only."""

    def __init__(self, options: TraceOptions, gateway_id: str) -> None:
        """ConfigError if OpenTelemetry is not installed or the file cannot be written."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise _not_installed(error) from None

        self._ids = _trace_ids()
        self._file = _opened(options.file) if options.file else None
        exporters = [_to_collector(options.endpoint)] if options.endpoint else []
        if self._file is not None:
            exporters.append(_to_file(self._file))
        self._exporters = exporters
        self._processors = [BatchSpanProcessor(each) for each in exporters]
        sampler = ParentBased(TraceIdRatioBased(options.sample))
        self._tracers: dict[str, Any] = {}
        for service in (GATEWAY, *SERVICES.values()):
            if service in self._tracers:
                continue
            provider = TracerProvider(
                resource=Resource.create(
                    {"service.name": service, "service.instance.id": gateway_id}
                ),
                sampler=sampler, id_generator=self._ids, shutdown_on_exit=False,
            )  # fmt: skip
            for processor in self._processors:
                provider.add_span_processor(processor)
            self._tracers[service] = provider.get_tracer("pd")

    def ended(self, running: RunningRequest, to_wall_s: float) -> None:
        """Write its spans; `to_wall_s` turns the gateway's clock into Unix time."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.status import Status, StatusCode

        trace, timeline = running.trace, running.timeline
        if trace is None:
            return

        def at(clock_s: float) -> int:
            return int((clock_s + to_wall_s) * 1e9)

        outcome = outcome_of(running)
        self._ids.trace_id = int(trace.trace_id, 16)
        root = self._tracers[GATEWAY].start_span(
            "request", context=_parent(trace), kind=SpanKind.SERVER,
            start_time=at(timeline.arrival_s), attributes=_attributes(running, outcome),
        )  # fmt: skip
        if root.is_recording():
            within = set_span_in_context(root)
            for span in timeline.spans(timeline.end_s):
                node = running.prefill if SERVICES[span.name] == "pd-prefill" else running.decode
                attributes = {} if span.name == "admit" or not node else {"pd.node": node}
                self._tracers[SERVICES[span.name]].start_span(
                    span.name, context=within, start_time=at(span.start_s), attributes=attributes
                ).end(end_time=at(span.end_s))
            for each in timeline.interruptions:
                root.add_event("interrupted", {"reason": each.reason}, timestamp=at(each.at_s))
            if outcome in ("failed", "rejected"):
                root.set_status(Status(StatusCode.ERROR, running.record.error or outcome))
        root.end(end_time=at(timeline.end_s))

    def close(self) -> None:
        """Export what waits, for a short while at most."""
        closing = [threading.Thread(target=each.shutdown, daemon=True) for each in self._processors]
        for thread in closing:
            thread.start()
        for thread, exporter in zip(closing, self._exporters, strict=True):
            thread.join(_CLOSE_S)
            if thread.is_alive():  # a collector that is away is tried for long
                exporter.shutdown()
                thread.join(_CLOSE_S)
        if self._file is not None:
            self._file.close()


def _parent(trace: TraceContext) -> Any:
    """The client's span, or nothing."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not trace.span_id:
        return Context()
    span = SpanContext(
        int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True,
        trace_flags=TraceFlags(int(trace.sampled)),
    )  # fmt: skip
    return set_span_in_context(NonRecordingSpan(span), Context())


def _attributes(running: RunningRequest, outcome: str) -> dict[str, str | int | float | bool]:
    """By OpenTelemetry's names for generative AI where it has them."""
    request, timeline = running.record.request, running.timeline
    found: dict[str, str | int | float | bool | None] = {
        "gen_ai.usage.input_tokens": len(request.prompt),
        "gen_ai.usage.output_tokens": running.record.num_output,
        "gen_ai.response.id": request.request_id,
        "pd.outcome": outcome,
        "pd.tenant_class": request.tenant_class,
        "pd.prefill_node": running.prefill,
        "pd.decode_node": running.decode,
        "pd.attempts": running.record.attempts,
        "pd.ttft_s": timeline.ttft_s,
        "pd.tpot_s": timeline.tpot_s,
        "pd.slo_attained": running.attained(),
    }
    return {key: value for key, value in found.items() if value is not None}


def _trace_ids() -> Any:
    """An id generator whose next trace is known beforehand, as the log has to name it."""
    from opentelemetry.sdk.trace import RandomIdGenerator

    class TraceIds(RandomIdGenerator):
        trace_id = 0

        def generate_trace_id(self) -> int:
            return self.trace_id

    return TraceIds()


def _to_collector(endpoint: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise _not_installed(error) from None
    return OTLPSpanExporter(endpoint=_traces_url(endpoint))


def _to_file(out: TextIO) -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")


def _opened(path: str) -> TextIO:
    try:
        return Path(path).expanduser().open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"observe.trace_file = {path}: {error.strerror}") from None


def _traces_url(endpoint: str) -> str:
    """Where a collector takes traces, if no path was given."""
    path = urlsplit(endpoint).path
    return endpoint if path.strip("/") else endpoint.rstrip("/") + "/v1/traces"


def _not_installed(error: ImportError) -> ConfigError:
    return ConfigError(
        f"traces need OpenTelemetry ({error}): pip install 'pd-serve[trace]', or leave "
        "observe.trace_endpoint and observe.trace_file out"
    )
