"""`Client` and `AsyncClient` against a real gateway: one body of tests runs both."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_cell import text_tokens
from front import NAME, Front, eventually
from rejecting import reject_with

import pd
from pd.client.answers import Completion, Delta
from pd.errors import (
    APIStatusError,
    ClientError,
    ConnectError,
    RequestTimeoutError,
    StreamError,
)


class Blocking:
    """`AsyncClient` with the manners of `Client`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = pd.AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = self.loop.run_until_complete(getattr(self.client, name)(*args, **options))
            return BlockingStream(self.loop, result) if name.startswith("stream") else result

        return call

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class BlockingStream:
    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Any) -> None:
        self.loop, self.stream = loop, stream

    def __iter__(self) -> Iterator[Delta]:
        while True:
            try:
                yield self.loop.run_until_complete(self.stream.__anext__())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self.loop.run_until_complete(self.stream.aclose())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


Make = Callable[..., Any]


@pytest.fixture(params=[pd.Client, Blocking], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    @contextmanager
    def made(*args: Any, **options: Any) -> Iterator[Any]:
        client = request.param(*args, **options)
        try:
            yield client
        finally:
            client.close()

    return made


@pytest.fixture
def client(make: Make, front: Front) -> Iterator[Any]:
    with make(front.url) as client:
        yield client


def test_generate(client: Any) -> None:
    answer: Completion = client.generate("hi", max_tokens=5, return_token_ids=True)
    assert answer.text == "hello"
    assert answer.finish_reason == "length"
    assert answer.token_ids == tuple(b"hello")
    assert answer.usage.completion_tokens == 5
    assert answer.metrics is not None
    assert answer.metrics.prefill_node == "prefill-0"
    assert answer.metrics.decode_node == "decode-0"
    assert answer.metrics.ttft_s is not None


def test_generate_several(client: Any, front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens(f"{chr(request.prompt[0])}{index}")
    answer = client.generate(["a", "b"], n=2)
    assert [choice.text for choice in answer.choices] == ["a0", "a1", "b0", "b1"]
    assert len(answer.requests) == 2


def test_chat_takes_messages_or_a_string(client: Any, front: Front) -> None:
    assert client.chat("hi").text == "hello world"
    client.chat([{"role": "user", "content": "hi"}])
    first, second = (work.request.prompt for work in front.cell.works)
    assert first == second


@pytest.mark.parametrize("method", ["stream", "stream_chat"])
def test_streams(client: Any, method: str) -> None:
    stream = getattr(client, method)("hi", max_tokens=64)
    deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == "hello world"
    assert [delta.finish_reason for delta in deltas] == [None] * 11 + ["stop"]
    assert stream.usage.completion_tokens == 12
    assert stream.requests[0].attempts == 1


def test_text_with_line_separators_arrives_whole(client: Any, front: Front) -> None:
    text = "a\u2028b\u2029c\x85d\r\ne\x0bf 漢"
    front.cell.script = lambda request, index: text_tokens(text)
    assert "".join(d.text for d in client.stream("hi", max_tokens=64)) == text
    assert client.generate("hi", max_tokens=64).text == text


def test_models_and_status(client: Any) -> None:
    assert client.models() == [NAME]
    status = client.status()
    assert status["ready"] is True
    assert {node["role"] for node in status["nodes"]} == {"prefill", "decode"}


def test_closing_a_stream_cancels(client: Any, front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 400)
    front.cell.step_s = 0.002
    stream = client.stream("hi", max_tokens=400)
    assert next(iter(stream)).text == "x"
    stream.close()
    eventually(lambda: front.cell.cancels)


def test_status_errors_carry_the_servers_words(client: Any) -> None:
    with pytest.raises(APIStatusError, match="'n' must be at least 1") as caught:
        client.generate("hi", n=0)
    assert caught.value.status == 400
    assert caught.value.body["error"]["param"] == "n"
    with pytest.raises(APIStatusError, match="does not exist"):
        client.stream("hi", model="other")


def test_the_model_may_be_set_once(make: Make, front: Front) -> None:
    with make(front.url, model="other", max_retries=0) as client:
        with pytest.raises(APIStatusError, match="404"):
            client.generate("hi")


def test_session_and_salt_may_be_set_once_or_by_call(make: Make, front: Front) -> None:
    with make(front.url, session_id="s", cache_salt="x") as client:
        client.generate("hi")
        client.chat("hi", session_id="t")
        list(client.stream("hi", cache_salt=None))
    asked = [(work.request.session, work.request.cache_salt) for work in front.cell.works]
    assert asked == [("s", "x"), ("t", "x"), ("s", "")]


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_retried_after_the_time_told(client: Any, front: Front, status: int) -> None:
    front.cell.reject = reject_with(status, times=1, retry_after_s=0.4)
    before_s = time.monotonic()
    assert client.generate("hi").text == "hello world"
    assert time.monotonic() - before_s >= 0.4
    assert len(front.cell.works) == 2


def test_retries_are_bounded(make: Make, front: Front) -> None:
    front.cell.reject = reject_with(429)
    with make(front.url, max_retries=1) as client, pytest.raises(APIStatusError, match="429"):
        client.stream("hi")
    assert len(front.cell.works) == 2


def test_a_failed_generation_is_not_tried_again(client: Any, front: Front) -> None:
    front.cell.fail_with = "error"
    with pytest.raises(APIStatusError, match="a node ended the request"):
        client.generate("hi")
    assert len(front.cell.works) == 1


def test_a_stream_that_fails_says_so(client: Any, front: Front) -> None:
    front.cell.fail_with, front.cell.step_s = "error", 0.02
    received = []
    with pytest.raises(StreamError, match="a node ended the request"):
        for delta in client.stream("hi"):
            received.append(delta.text)
    assert "hel".startswith("".join(received))
    assert len(front.cell.works) == 1


def test_a_refused_connection_is_retried_then_told(make: Make) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with make(url, max_retries=1) as client, pytest.raises(ConnectError, match="cannot conn"):
            client.generate("hi")


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_a_silent_server_is_a_timeout(make: Make, front: Front, method: str) -> None:
    front.cell.step_s = 1000
    with make(front.url, timeouts=pd.Timeouts(idle_s=0.2)) as client:
        with pytest.raises(RequestTimeoutError, match="silent"):
            list(getattr(client, method)("hi"))
    eventually(lambda: front.cell.cancels)


def test_the_total_time_is_bounded_while_tokens_come(make: Make, front: Front) -> None:
    front.cell.script = lambda request, index: text_tokens("x" * 400)
    front.cell.step_s = 0.01
    with make(front.url, timeout_s=0.3) as client:
        with pytest.raises(RequestTimeoutError, match="total"):
            list(client.stream("hi", max_tokens=400))
    eventually(lambda: front.cell.cancels)


def test_a_server_that_goes_away_mid_stream_is_an_error(make: Make) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        b'data: {"id":"x","choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
    )
    with one_answer(answer) as url, make(url) as client:
        received = []
        with pytest.raises(StreamError, match="broke off"):
            for delta in client.stream("hi"):
                received.append(delta.text)
        assert received == ["a"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1}', b'{"choices": [{}]}'])
def test_an_answer_of_another_kind_is_an_error(make: Make, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with one_answer(head + body) as url, make(url) as client:
        with pytest.raises(ClientError, match="cannot read the server's answer"):
            client.generate("hi")


def test_parameters_that_are_no_json_are_refused(client: Any) -> None:
    for value in (object(), float("nan")):
        with pytest.raises(ClientError, match="cannot be sent as JSON"):
            client.generate("hi", temperature=value)


def test_importing_pd_loads_no_http_library() -> None:
    code = (
        "import sys, pd; assert 'httpx' not in sys.modules; "
        "pd.Client; assert 'httpx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        pd.Clinet  # type: ignore[attr-defined]  # noqa: B018


@contextmanager
def one_answer(answer: bytes) -> Iterator[str]:
    """A server that reads one request, answers with these bytes and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
