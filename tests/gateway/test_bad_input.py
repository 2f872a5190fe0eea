"""Everything a client can get wrong: a 4xx that says what, and a server that goes on."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from front import Front

P: dict[str, Any] = {"prompt": "hi"}
M: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

# (path, body, status, param, part of the message)
TABLE: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    # types
    (COMPLETIONS, {**P, "n": "2"}, 400, "n", "expected int, got str"),
    (COMPLETIONS, {**P, "n": True}, 400, "n", "expected int, got bool"),
    (COMPLETIONS, {**P, "max_tokens": 1.5}, 400, "max_tokens", "expected int"),
    (COMPLETIONS, {**P, "stream": "yes"}, 400, "stream", "expected bool"),
    (COMPLETIONS, {**P, "stop": ["a", 1]}, 400, "stop[1]", "expected str"),
    (COMPLETIONS, {**P, "logit_bias": {"1": "x"}}, 400, None, "expected float"),
    (COMPLETIONS, {**P, "stream_options": []}, 400, "stream_options", "expected object"),
    (COMPLETIONS, {"prompt": {"a": 1}}, 400, "prompt", "expected"),
    (COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt", "mixture"),
    (COMPLETIONS, {"prompt": [[1], "a"]}, 400, "prompt", "mixture"),
    (COMPLETIONS, {"prompt": [True]}, 400, "prompt[0]", "got bool"),
    (CHAT, {"messages": "hi"}, 400, "messages", "expected array"),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "messages[0].role", "required"),
    # unknown and unsupported fields
    (COMPLETIONS, {**P, "max_token": 3}, 400, "max_token", "did you mean 'max_tokens'"),
    (COMPLETIONS, {**P, "zzz": 3}, 400, "zzz", "unknown field 'zzz'"),
    (COMPLETIONS, {**P, "messages": []}, 400, "messages", "unknown field"),
    (CHAT, {**M, "temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
    (CHAT, {**M, "stream_options": {"usage": True}}, 400, "stream_options.usage", "include_usage"),
    (CHAT, {"messages": [{"role": "user", "contents": "x"}]}, 400, None, "did you mean 'content'"),
    (CHAT, {**M, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    (CHAT, {**M, "tool_choice": "required"}, 400, "tool_choice", "not supported"),
    (CHAT, {**M, "response_format": {"type": "json_object"}}, 400, "response_format", "supported"),
    (CHAT, {**M, "reasoning_effort": "high"}, 400, "reasoning_effort", "not supported"),
    (COMPLETIONS, {**P, "suffix": "end"}, 400, "suffix", "not supported"),
    (COMPLETIONS, {**P, "best_of": 2}, 400, "best_of", "best_of"),
    (COMPLETIONS, {**P, "use_beam_search": True}, 400, "use_beam_search", "not supported"),
    (COMPLETIONS, {**P, "store": 0}, 400, "store", "not supported"),
    (COMPLETIONS, {**P, "echo": True, "logprobs": 1}, 400, "logprobs", "echo"),
    (COMPLETIONS, {**P, "stream_options": {}}, 400, "stream_options", "needs 'stream'"),
    # model
    (COMPLETIONS, {**P, "model": "gpt-9"}, 404, "model", "'gpt-9' does not exist"),
    (CHAT, {**M, "model": "gpt-9"}, 404, "model", "'gpt-9' does not exist"),
    # prompts
    (COMPLETIONS, {}, 400, "prompt", "required"),
    (COMPLETIONS, {"prompt": None}, 400, "prompt", "required"),
    (COMPLETIONS, {"prompt": ""}, 400, "prompt", "empty"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt", "empty"),
    (COMPLETIONS, {"prompt": ["a", ""]}, 400, "prompt", "empty"),
    (COMPLETIONS, {"prompt": [[1], []]}, 400, "prompt", "empty"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt", "token id"),
    (COMPLETIONS, {"prompt": [258]}, 400, "prompt", "token id outside 0 to 257"),
    (COMPLETIONS, {"prompt": [10**30]}, 400, "prompt", "token id"),
    (COMPLETIONS, {"prompt": ["a"] * 65}, 400, "prompt", "at most 64"),
    (COMPLETIONS, {"prompt": ["a"] * 60, "n": 16}, 400, "n", "outputs a request may have"),
    (COMPLETIONS, {"prompt": "x" * 512}, 400, "prompt", "512 tokens"),
    (COMPLETIONS, {"prompt": [7] * 5000}, 400, "prompt", "5000 tokens"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 600}]}, 400, "messages", "tokens"),
    (CHAT, {"messages": []}, 400, "messages", "at least one"),
    (CHAT, {}, 400, "messages", "required"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "must be"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "string"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400, "messages[0].content[0]", "only text",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        400, "messages[0].tool_calls", "not supported",
    ),
    (CHAT, {**M, "chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs", "set"),
    (CHAT, {**M, "chat_template_kwargs": {"fail": True}}, 400, "messages", "told to fail"),
    # ranges
    (COMPLETIONS, {**P, "n": 0}, 400, "n", "at least 1"),
    (COMPLETIONS, {**P, "n": 17}, 400, "n", "at most 16"),
    (COMPLETIONS, {**P, "n": -(10**30)}, 400, "n", "at least 1"),
    (COMPLETIONS, {**P, "max_tokens": 0}, 400, "max_tokens", "at least 1"),
    (COMPLETIONS, {**P, "max_tokens": -5}, 400, "max_tokens", "at least 1"),
    (COMPLETIONS, {**P, "max_tokens": 511}, 400, "max_tokens", "serves 512"),
    (CHAT, {**M, "max_completion_tokens": 10**9}, 400, "max_completion_tokens", "serves 512"),
    (COMPLETIONS, {**P, "min_tokens": 17}, 400, "min_tokens", "at most 16 tokens"),
    (COMPLETIONS, {**P, "min_tokens": -1}, 400, "min_tokens", "at least 0"),
    (COMPLETIONS, {**P, "temperature": -0.1}, 400, "temperature", "at least 0"),
    (COMPLETIONS, {**P, "temperature": 2.1}, 400, "temperature", "at most 2"),
    (COMPLETIONS, {**P, "top_p": 0}, 400, "top_p", "more than 0"),
    (COMPLETIONS, {**P, "top_p": 1.01}, 400, "top_p", "at most 1"),
    (COMPLETIONS, {**P, "top_k": -2}, 400, "top_k", "at least -1"),
    (COMPLETIONS, {**P, "min_p": 1.5}, 400, "min_p", "at most 1"),
    (COMPLETIONS, {**P, "repetition_penalty": 0}, 400, "repetition_penalty", "at least 0.01"),
    (COMPLETIONS, {**P, "presence_penalty": 3}, 400, "presence_penalty", "at most 2"),
    (COMPLETIONS, {**P, "frequency_penalty": -3}, 400, "frequency_penalty", "at least -2"),
    (COMPLETIONS, {**P, "logprobs": 21}, 400, "logprobs", "at most 20"),
    (CHAT, {**M, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "at most 20"),
    (CHAT, {**M, "top_logprobs": 2}, 400, "top_logprobs", "needs 'logprobs'"),
    (COMPLETIONS, {**P, "seed": 2**64}, 400, "seed", "at most"),
    (COMPLETIONS, {**P, "priority": 2**40}, 400, "priority", "at most"),
    (COMPLETIONS, {**P, "stop": ""}, 400, "stop", "empty string"),
    (COMPLETIONS, {**P, "stop": [str(i) for i in range(17)]}, 400, "stop", "at most 16"),
    (COMPLETIONS, {**P, "stop": "x" * 257}, 400, "stop", "at most 256 characters"),
    (COMPLETIONS, {**P, "stop_token_ids": [999]}, 400, "stop_token_ids", "token id"),
    (COMPLETIONS, {**P, "stop_token_ids": list(range(17))}, 400, "stop_token_ids", "at most 16"),
    (COMPLETIONS, {**P, "logit_bias": {"x": 1}}, 400, "logit_bias", "token ids from 0 to 257"),
    (COMPLETIONS, {**P, "logit_bias": {"258": 1}}, 400, "logit_bias", "token ids"),
    (COMPLETIONS, {**P, "logit_bias": {"٣": 1}}, 400, "logit_bias", "token ids"),
    (COMPLETIONS, {**P, "logit_bias": {"1": 101}}, 400, "logit_bias", "at most 100"),
    (COMPLETIONS, {**P, "slo": {"ttft_ms": 0}}, 400, "slo.ttft_ms", "more than 0"),
    (COMPLETIONS, {**P, "cache_salt": ""}, 400, "cache_salt", "1 to 256 characters"),
    (COMPLETIONS, {**P, "cache_salt": "x" * 257}, 400, "cache_salt", "not 257"),
    (COMPLETIONS, {**P, "cache_salt": 7}, 400, "cache_salt", "expected str"),
    (CHAT, {**M, "cache_salt": ["x"]}, 400, "cache_salt", "expected str"),
    (COMPLETIONS, {**P, "session_id": ""}, 400, "session_id", "1 to 256 characters"),
    (CHAT, {**M, "session_id": "x" * 257}, 400, "session_id", "not 257"),
    (CHAT, {**M, "session_id": {}}, 400, "session_id", "expected str"),
    (COMPLETIONS, {**P, "sessionid": "x"}, 400, "sessionid", "did you mean 'session_id'"),
    (COMPLETIONS, {**P, "slo": {"ttft": 1}}, 400, "slo.ttft", "did you mean 'ttft_ms'"),
]  # fmt: skip


@pytest.mark.parametrize("path, body, status, param, part", TABLE)
def test_a_wrong_field_is_named(
    front: Front, path: str, body: dict[str, Any], status: int, param: str | None, part: str
) -> None:
    for stream in ({}, {"stream": True}) if "stream" not in str(body) else ({},):
        response = front.post(path, {**body, **stream})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert part in error["message"]
        if param is not None:
            assert error["param"] == param
    assert front.cell.works == []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b"3", b'"hi"', b'{"prompt": "hi"} x', b'{"prompt": NaN}',
        b"{'prompt': 'hi'}", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"\xef\xbb\xbf{}",
        b'{"prompt":' + b"[" * 100_000, b'{"metadata":' + b'{"a":' * 100_000,
        b'{"prompt": "hi", "temperature": 1e999}', b'{"prompt": "hi", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "hi", "' + b"k" * 5000 + b'": 1}', b"\x00" * 64, b"%PDF-1.4",
    ],
)  # fmt: skip
def test_a_body_that_is_no_request(front: Front, data: bytes) -> None:
    for path in (COMPLETIONS, CHAT):
        response = front.http.post(path, content=data)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 400
    assert front.complete()["choices"][0]["text"] == "hello world"


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", ""])
def test_a_wrong_target_header(front: Front, value: str) -> None:
    for body in (P, {**P, "slo": {"ttft_ms": 250}}):  # even where the body's is what counts
        response = front.post(COMPLETIONS, body, headers={"x-slo-ttft-ms": value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-slo-ttft-ms"


@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/completion", 404, "not_found"),
        ("POST", "/v1/completions/", 404, "not_found"),
        ("GET", "/v1/../etc/passwd", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_a_wrong_path_or_method(
    front: Front, method: str, path: str, status: int, code: str
) -> None:
    response = front.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_a_compressed_body_is_refused(front: Front) -> None:
    response = front.http.post(COMPLETIONS, content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert "gzip" in response.json()["error"]["message"]


def test_ten_megabytes_are_refused_by_their_length(front: Front) -> None:
    data = json.dumps({"prompt": "x" * 10_000_000}).encode()
    response = front.http.post(COMPLETIONS, content=data)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert front.complete()["choices"][0]["text"] == "hello world"


def test_ten_megabytes_without_a_length_are_refused_on_the_way(front: Front) -> None:
    pieces = (b"x" * 100_000 for _ in range(100))
    response = front.http.post(COMPLETIONS, content=pieces)
    assert response.status_code == 413


def test_a_large_body_is_refused_before_it_is_sent(front: Front) -> None:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", front.server.port), timeout=10) as raw:
        raw.sendall(head.encode())
        answer = b""
        while data := raw.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", b"POST",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 200_000,
    ],
)  # fmt: skip
def test_bytes_that_are_no_http(front: Front, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", front.server.port), timeout=10) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := raw.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    assert b"HTTP/1.1 5" not in answer
    assert front.complete()["choices"][0]["text"] == "hello world"


def test_harmless_fields_are_accepted(front: Front) -> None:
    body = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "best_of": 1, "n": 1, "suffix": None, "logprobs": None, "stop": None,
        "use_beam_search": False, "prompt_cache_key": "k",
    }  # fmt: skip
    assert front.complete(**body)["choices"][0]["text"] == "hello world"
    chat = {
        **M, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none",
        "parallel_tool_calls": True, "logprobs": False, "modalities": ["text"],
        "stream": False, "stream_options": None,
    }  # fmt: skip
    assert front.post(CHAT, chat).status_code == 200
