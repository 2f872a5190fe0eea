"""The socket that gateways share, and a gateway that leaves it to others."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import httpx
import pytest
from front import eventually, serving

from pd.errors import ConfigError
from pd.gateway.listener import Listener, take


def test_what_one_has_not_accepted_another_does() -> None:
    listener = Listener("127.0.0.1", 0)
    try:
        first = take(listener.name)
        with socket.create_connection(("127.0.0.1", listener.port), timeout=10):
            first.close()
            second = take(listener.name)
            second.setblocking(True)
            accepted, _ = second.accept()
            accepted.close()
            second.close()
    finally:
        listener.close()


def test_nobody_is_kept_waiting_before_a_gateway_is_there() -> None:
    listener = Listener("127.0.0.1", 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), timeout=10)
    listener.close()
    listener.close()
    with pytest.raises(ConfigError, match="does not hand on its HTTP socket"):
        take(listener.name)


def test_an_address_in_use_is_a_config_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot serve HTTP on 127.0.0.1:{port}"):
            Listener("127.0.0.1", port)


# A probing connection may be accepted in the moment in which the listener closes: it ends with the
# loop, and asyncio says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gateway_that_leaves_ends_what_it_has(text_model_dir: Path) -> None:
    with serving(text_model_dir) as front:
        front.cell.step_s = 0.05
        body = {"prompt": "hi", "max_tokens": 20, "stream": True}
        with httpx.Client(base_url=front.url, timeout=30) as kept:
            assert "connection" not in kept.get("/health").headers
            with front.http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                retired = asyncio.run_coroutine_threadsafe(front.server.retire(60), front.loop)
                eventually(lambda: refuses(front.server.port))
                answer = kept.post("/v1/completions", json={**body, "stream": False})
                assert answer.status_code == 200 and answer.headers["connection"] == "close"
                assert "data: [DONE]" in list(lines)
        front.http.close()
        retired.result(30)
        front.stopping = retired
    gc.collect()  # asyncio says so here, not in the midst of another test


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_after_its_time_who_still_streams_is_told(text_model_dir: Path) -> None:
    with serving(text_model_dir, drain_s=0.0) as front:
        front.cell.step_s = 1000
        body = {"prompt": "hi", "stream": True}
        with front.http.stream("POST", "/v1/completions", json=body) as response:
            eventually(lambda: front.cell.emitted)
            front.stopping = asyncio.run_coroutine_threadsafe(front.server.retire(0.1), front.loop)
            assert "the server is shutting down" in response.read().decode()
