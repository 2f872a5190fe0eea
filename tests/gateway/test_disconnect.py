"""Clients that go away, and clients that do not read."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from pathlib import Path

import pytest
from fake_cell import text_tokens
from front import QUICK, Front, eventually, serving


def send_request(port: int, *, receive_buffer: int | None = None, **body: object) -> socket.socket:
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.connect(("127.0.0.1", port))
    data = json.dumps({"prompt": "hi", "max_tokens": 500, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    raw.sendall(head.encode() + data)
    return raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step_s", [0.002, 1000.0])
def test_a_disconnect_cancels_everywhere(front: Front, stream: bool, step_s: float) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 500)
    front.cell.step_s = step_s
    raw = send_request(front.server.port, stream=stream, n=2)
    eventually(lambda: front.cell.emitted >= 2)
    raw.close()
    eventually(lambda: not front.cell.running)
    eventually(lambda: not front.server.link.running)
    assert [cancel.indices for cancel in front.cell.cancels] == [(0, 1)]
    assert front.cell.emitted < 1000


def test_a_disconnect_before_admission_cancels(front: Front) -> None:
    front.cell.silent = True
    raw = send_request(front.server.port)
    eventually(lambda: front.cell.works)
    raw.close()
    eventually(lambda: front.cell.cancels)
    eventually(lambda: not front.server.link.running)


def test_a_disconnect_cancels_every_prompt_of_a_batch(front: Front) -> None:
    front.cell.step_s = 1000
    raw = send_request(front.server.port, prompt=["a", "b", "c"], stream=True)
    eventually(lambda: len(front.cell.running) == 3)
    raw.close()
    eventually(lambda: not front.cell.running)


def test_many_disconnects_leave_nothing_behind(front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 100)
    front.cell.step_s = 0.001
    for number in range(40):
        raw = send_request(front.server.port, stream=number % 2 == 0)
        time.sleep(0.001 * (number % 7))
        raw.close()
    eventually(lambda: not front.server.link.running and not front.cell.running)
    assert front.complete(max_tokens=3)["choices"][0]["text"] == "xxx"


def test_a_body_that_stops_halfway_is_no_request(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        time.sleep(0.02)
    assert front.complete()["choices"][0]["text"] == "hello world"
    assert len(front.cell.works) == 1


def test_a_keep_alive_connection_serves_one_request_after_another(front: Front) -> None:
    for _ in range(3):
        assert front.complete()["choices"][0]["text"] == "hello world"
    events = front.events("/v1/completions", prompt="hi")
    assert events[-1] == "[DONE]"
    assert front.complete()["choices"][0]["text"] == "hello world"
    assert front.cell.cancels == []


def flood(front: Front) -> socket.socket:
    """A stream much longer than any socket buffer, to a client that reads nothing of it."""
    front.server.model.__dict__["max_positions"] = 1_000_000
    front.cell.script = lambda request, index: text_tokens("x" * 1000)[:-1]
    port = front.server.port
    return send_request(port, stream=True, receive_buffer=4096, max_tokens=100_000, n=16)


def test_a_client_that_does_not_read_is_cut(text_model_dir: Path) -> None:
    """Its work is cancelled and its connection closed, though it never says a word."""
    with serving(text_model_dir, write_timeout_s=0.4) as front:
        connections = front.server._server.server_state.connections
        with flood(front):
            eventually(lambda: front.cell.cancels, 30)
            eventually(lambda: len(connections) == 1)  # the one of `front.http`
        assert front.complete(max_tokens=2)["choices"][0]["text"] == "xx"


def test_a_backlog_is_bounded(text_model_dir: Path) -> None:
    link = dataclasses.replace(QUICK, max_backlog=500)
    with serving(text_model_dir, link=link, write_timeout_s=30) as front:
        with flood(front) as raw:
            eventually(lambda: front.cell.cancels, 30)
            raw.settimeout(10)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += raw.recv(1 << 20)
        assert b"left more than 500 tokens unread" in answer
        assert b"[DONE]" not in answer
