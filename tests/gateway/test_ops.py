"""Health, readiness, metrics, status, the API key, shutdown."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import pytest
from fake_cell import text_tokens
from front import NAME, Front, eventually, serving
from rejecting import reject_with

from pd.errors import ConfigError, ModelError
from pd.gateway.server import GatewayOptions, GatewayServer


def sample(front: Front, name: str) -> float:
    text = front.http.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} not in:\n{text}"
    return float(found[1])


def test_readiness_follows_the_cell(front: Front) -> None:
    assert front.http.get("/ready").status_code == 200
    front.cell.ready = False
    eventually(lambda: front.http.get("/ready").status_code == 503)
    refused = front.http.get("/ready")
    assert "no decode node is up" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    assert front.http.get("/health").status_code == 200
    front.cell.ready = True
    eventually(lambda: front.http.get("/ready").status_code == 200)


def test_before_joining_requests_are_refused(text_model_dir: Path) -> None:
    def unwelcome(cell) -> None:  # type: ignore[no-untyped-def]
        cell.welcome = False

    with serving(text_model_dir, joined=False, prepare=unwelcome) as front:
        response = front.post("/v1/completions", {"prompt": "hi"})
        assert response.status_code == 503
        assert "not joined" in response.json()["error"]["message"]
        assert front.http.get("/ready").status_code == 503
        front.cell.welcome = True
        eventually(lambda: front.http.get("/ready").status_code == 200)
        assert front.complete()["choices"][0]["text"] == "hello world"


def test_status_shows_nodes_and_streams(front: Front) -> None:
    status = front.http.get("/v1/status").json()
    assert [node["id"] for node in status["nodes"]] == ["prefill-0", "decode-0"]
    assert status["ready"] is True
    assert status["gateway"]["running"] == 0


def test_metrics_count_what_happened(text_model_dir: Path) -> None:
    with serving(text_model_dir) as front:
        front.cell.interrupt_after = {0: 3}
        front.complete(slo={"ttft_ms": 10_000, "tpot_ms": 10_000})
        front.cell.interrupt_after = {}
        front.complete(slo={"ttft_ms": 0.0001})
        front.cell.reject = reject_with(429)
        body = {"prompt": "hi", "slo": {"ttft_ms": 10_000}}
        assert front.post("/v1/completions", body).status_code == 429
        assert sample(front, 'pd_requests_total{outcome="finished"}') == 2
        assert sample(front, 'pd_requests_total{outcome="rejected"}') == 1
        assert sample(front, 'pd_rejections_total{status="429"}') == 1
        assert sample(front, "pd_generation_tokens_total") == 24
        assert sample(front, "pd_interruptions_total") == 1
        assert sample(front, 'pd_slo_attained_total{tenant_class="default"}') == 1
        assert sample(front, 'pd_slo_missed_total{tenant_class="default"}') == 2
        assert sample(front, 'pd_goodput_tokens_total{tenant_class="default"}') == 12
        assert sample(front, 'pd_stage_seconds_count{stage="compute"}') == 2
        assert sample(front, 'pd_stage_seconds_count{stage="first_step"}') == 2
        assert sample(front, "pd_ttft_seconds_count") == 2
        assert sample(front, "pd_itl_seconds_count") == 22
        assert sample(front, "pd_e2e_seconds_count") == 2
        assert sample(front, "pd_request_prompt_tokens_sum") == 4
        assert sample(front, "pd_requests_running") == 0
        assert sample(front, 'pd_node_free_blocks{node="decode-0",role="decode"}') == 5
        assert sample(front, "pd_cell_ready") == 1


def test_the_key_guards_v1_only(text_model_dir: Path) -> None:
    with serving(text_model_dir, api_keys={"s3cret": ""}) as front:
        for path in ("/health", "/ready", "/metrics"):
            assert front.http.get(path).status_code == 200
        for wrong in ({}, {"authorization": "Bearer nope"}, {"authorization": "s3cret"},
                      {"authorization": "Basic s3cret"}, {"authorization": "Bearer s3cret2"},
                      {"authorization": "Bearer \xe9"}):  # fmt: skip
            raw = [(k.encode(), v.encode("latin-1")) for k, v in wrong.items()]
            response = front.http.post("/v1/completions", json={"prompt": "hi"}, headers=raw)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert front.http.get("/v1/models", headers=raw).status_code == 401
        right = {"authorization": "Bearer s3cret"}
        assert front.http.get("/v1/models", headers=right).status_code == 200
        assert front.post("/v1/completions", {"prompt": "hi"}, headers=right).status_code == 200


def test_too_many_requests_at_once_are_refused(text_model_dir: Path) -> None:
    from pd.gateway.continuity import LinkOptions

    with serving(text_model_dir, link=LinkOptions(heartbeat_s=0.05, max_streams=2)) as front:
        front.cell.step_s = 1000
        threads = [
            threading.Thread(target=lambda: front.post("/v1/completions", {"prompt": "hi"}))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(front.server.link.running) == 2)
        response = front.post("/v1/completions", {"prompt": "hi"})
        assert response.status_code == 429
        assert "limit is 2" in response.json()["error"]["message"]
        front.stop().result(10)
        for thread in threads:
            thread.join()


def test_shutdown_lets_streams_end(text_model_dir: Path) -> None:
    with serving(text_model_dir, drain_s=10.0) as front:
        front.cell.script = lambda request, index: text_tokens("x" * 30)
        front.cell.step_s = 0.01
        answers: list[dict] = []  # type: ignore[type-arg]
        thread = threading.Thread(target=lambda: answers.append(front.complete()))
        thread.start()
        eventually(lambda: front.cell.emitted)
        stopping = front.stop()
        eventually(lambda: not front.server.link.readiness()[0])
        refused = httpx.post(f"{front.url}/v1/completions", json={"prompt": "hi"})
        assert refused.status_code == 503
        thread.join()
        stopping.result(10)
        assert answers[0]["choices"][0]["text"] == "x" * 30


def test_shutdown_tells_streams_that_take_too_long(text_model_dir: Path) -> None:
    with serving(text_model_dir, drain_s=0.1) as front:
        front.cell.step_s = 1000
        with front.http.stream(
            "POST", "/v1/completions", json={"prompt": "hi", "stream": True}
        ) as response:
            eventually(lambda: front.cell.emitted)
            front.stop().result(10)
            text = response.read().decode()
        assert "the server is shutting down" in text
        assert "[DONE]" not in text
        eventually(lambda: front.cell.closed)
        assert front.cell.cancels


def test_a_port_in_use_is_a_config_error(front: Front, text_model_dir: Path) -> None:
    options = GatewayOptions(text_model_dir, port=front.server.port)
    with pytest.raises(ConfigError, match="cannot serve HTTP on 127.0.0.1"):
        GatewayServer(options, front.cell, None)  # type: ignore[arg-type]


def test_a_missing_model_is_a_model_error(tmp_path: Path, front: Front) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        GatewayServer(GatewayOptions(tmp_path, port=0), front.cell, None)  # type: ignore[arg-type]


def test_the_name_defaults_to_the_directory(text_model_dir: Path) -> None:
    from pd.gateway.served import ServedModel

    assert ServedModel.load(text_model_dir).name == text_model_dir.name
    assert ServedModel.load(text_model_dir, NAME).name == NAME
