"""Traces: what a client's context becomes, and the spans that a file and a collector get."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_cell import text_tokens
from front import Front, eventually, serving
from rejecting import reject_with

from pd.errors import ConfigError
from pd.gateway.trace_context import TraceContext

pytest.importorskip("opentelemetry.sdk", reason="pip install 'pd-serve[trace]'")

from pd.gateway.tracing import SERVICES, TraceOptions, Tracer

OTLP = "opentelemetry.exporter.otlp.proto.http"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "context"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_what_a_client_may_send(header: str, context: TraceContext | None) -> None:
    assert TraceContext.of({"traceparent": header}) == context


def test_a_new_trace_is_another_one() -> None:
    assert TraceContext.of({}) is None
    assert TraceContext.new().trace_id != TraceContext.new().trace_id


def spans_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def traced(text_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The spans of four requests: with a context, without, resumed, turned away; and of none that
    its client does not record."""
    file = tmp_path_factory.mktemp("traces") / "spans.jsonl"
    with serving(text_model_dir, trace=TraceOptions(file=str(file))) as front:
        front.cell.script = lambda request, index: text_tokens("x" * 20)
        front.cell.step_s = 0.002
        ask(front, f"00-{TRACE}-{SPAN}-01", 1)
        ask(front, f"00-{TRACE}-{SPAN}-00", 2)
        ask(front, "not a context", 3)
        front.cell.interrupt_after = {0: 3}
        ask(front, f"00-{TRACE}-{SPAN}-01", 4)
        front.cell.reject = reject_with(429)
        body = {"prompt": "hi", "max_tokens": 5}
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        assert front.post("/v1/completions", body, headers=headers).status_code == 429
    return spans_of(file)


def ask(front: Front, traceparent: str, max_tokens: int) -> None:
    """A request that is known by the number of its tokens."""
    body = {"prompt": "hi", "max_tokens": 5 + max_tokens}
    response = front.post("/v1/completions", body, headers={"traceparent": traceparent})
    assert response.status_code == 200


def roots(spans: list[dict[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    return [
        span for span in spans
        if span["attributes"].get("gen_ai.usage.output_tokens") == 5 + max_tokens
    ]  # fmt: skip


def test_a_request_is_a_child_of_its_clients_span(traced: list[dict[str, Any]]) -> None:
    (root,) = roots(traced, 1)
    assert root["name"] == "request" and root["kind"] == "SpanKind.SERVER"
    assert root["context"]["trace_id"] == f"0x{TRACE}" and root["parent_id"] == f"0x{SPAN}"
    assert root["attributes"]["pd.outcome"] == "finished"
    assert root["attributes"]["pd.prefill_node"] == "prefill-0"
    assert root["attributes"]["gen_ai.usage.input_tokens"] == 2


def test_its_parts_are_its_children_in_time_and_by_service(traced: list[dict[str, Any]]) -> None:
    (root,) = roots(traced, 1)
    parts = [span for span in traced if span["parent_id"] == root["context"]["span_id"]]
    services = {span["name"]: span["resource"]["attributes"]["service.name"] for span in parts}
    assert services == {name: SERVICES[name] for name in services}  # type: ignore[index]
    assert {"admit", "first_step", "decode"} <= services.keys()
    assert root["resource"]["attributes"]["service.name"] == "pd-gateway"
    edges = sorted((span["start_time"], span["end_time"]) for span in parts)
    assert edges[0][0] == root["start_time"]
    assert all(root["start_time"] <= a <= b <= root["end_time"] for a, b in edges)
    assert all(span["context"]["trace_id"] == f"0x{TRACE}" for span in parts)


def test_what_a_client_does_not_record_is_not_recorded(traced: list[dict[str, Any]]) -> None:
    assert not roots(traced, 2)


def test_without_a_context_a_trace_begins(traced: list[dict[str, Any]]) -> None:
    (root,) = roots(traced, 3)
    assert root["parent_id"] is None
    assert root["context"]["trace_id"] not in (f"0x{TRACE}", f"0x{'0' * 32}")


def test_interruptions_and_rejections_are_seen(traced: list[dict[str, Any]]) -> None:
    (resumed,) = roots(traced, 4)
    (event,) = resumed["events"]
    assert (event["name"], event["attributes"]["reason"]) == ("interrupted", "told to")
    (rejected,) = [s for s in traced if s["attributes"].get("pd.outcome") == "rejected"]
    assert rejected["status"]["status_code"] == "ERROR"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP collector on this host, and what it has got."""
    pytest.importorskip(OTLP, reason="pip install 'pd-serve[trace]'")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_all_services(text_model_dir: Path) -> None:
    with collector() as (url, got):
        with serving(text_model_dir, trace=TraceOptions(endpoint=url)) as front:
            front.cell.step_s = 0.002
            ask(front, f"00-{TRACE}-{SPAN}-01", 1)
        eventually(lambda: got)
    services = {
        pair.value.string_value
        for request in got for resource in request.resource_spans
        for pair in resource.resource.attributes if pair.key == "service.name"
    }  # fmt: skip
    assert {"pd-gateway", "pd-coordinator", "pd-decode"} <= services


def test_a_collector_that_is_away_hurts_nobody(text_model_dir: Path) -> None:
    pytest.importorskip(OTLP, reason="pip install 'pd-serve[trace]'")
    with serving(text_model_dir, trace=TraceOptions(endpoint="http://127.0.0.1:9")) as front:
        ask(front, f"00-{TRACE}-{SPAN}-01", 1)


def test_a_sample_of_none_records_none(text_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    with serving(text_model_dir, trace=TraceOptions(file=str(file), sample=0.0)) as front:
        ask(front, "", 1)
    assert file.read_text() == ""


def test_a_file_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trace_file"):
        Tracer(TraceOptions(file=str(tmp_path / "no" / "such" / "dir")), "gateway-0")
