"""Clients that hardly read: who is cut off, and when."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from front import Front, eventually, serving
from hypothesis import given
from hypothesis import strategies as st

from pd.gateway.stalled import PROGRESS_BYTES, StallGuard

TIMEOUT_S = 10.0
KIB = 1 << 10


@dataclass(eq=False)
class Connection:
    left: int = 0
    cycle: Any = None
    aborted: bool = False
    transport: Any = field(init=False)

    def __post_init__(self) -> None:
        self.transport = self

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([64 * KIB] * 12, True),
        ([64 * KIB - second for second in range(12)], True),  # a byte a second
        ([5] * 12, True),  # an answer that is complete, and not taken
        ([64 * KIB] * 10 + [0], False),
        ([200 * KIB - second * 2 * KIB for second in range(40)], False),  # slow, but it reads
        ([0] * 30, False),
    ],
)
def test_who_is_cut_off(sizes: list[int], cut: bool) -> None:
    guard, connection = StallGuard(TIMEOUT_S), Connection()
    for second, size in enumerate(sizes):
        connection.left = size
        guard.look([connection], float(second))
    assert connection.aborted == cut


@given(st.lists(st.integers(0, 80 * KIB), min_size=2, max_size=60))
def test_whoever_takes_enough_in_time_stays(sizes: list[int]) -> None:
    """And nobody is cut off before the time, or stays for twice of it without taking anything."""
    guard, connection = StallGuard(TIMEOUT_S), Connection()
    for second, size in enumerate(sizes):
        connection.left = size
        if guard.look([connection], float(second)):
            tail = sizes[max(0, second - int(TIMEOUT_S)) : second + 1]
            assert all(tail) and second > TIMEOUT_S
            assert max(tail) - min(tail) < PROGRESS_BYTES or tail != sorted(tail, reverse=True)
            return
    longest = run = 1
    for before, after in pairwise(sizes):
        run = run + 1 if before == after > 0 else 1
        longest = max(longest, run)
    assert longest <= 2 * TIMEOUT_S


def test_a_stream_is_its_writers_business() -> None:
    guard = StallGuard(TIMEOUT_S)
    connection = Connection(64 * KIB, SimpleNamespace(response_complete=False))
    assert not any(guard.look([connection], float(second)) for second in range(99))
    connection.cycle.response_complete = True
    assert any(guard.look([connection], 99.0 + second) for second in range(12))


def test_a_connection_that_ends_is_forgotten() -> None:
    guard, first, second = StallGuard(TIMEOUT_S), Connection(100), Connection(100)
    guard.look([first], 0.0)
    guard.look([], 5.0)
    guard.look([second], 9.0)
    assert guard.look([first, second], 12.0) == 0, "it is as if it were new"
    assert guard.look([first, second], 20.0) == 1 and second.aborted


def post(front: Front, **body: Any) -> socket.socket:
    """A request whose client keeps 4 KiB at most, and does not read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", front.server.port))
    data = json.dumps({"prompt": "hi", "ignore_eos": True, **body}).encode()
    raw.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(data)).encode() + b"\r\n\r\n" + data
    )
    return raw


def test_a_whole_answer_that_is_not_read(text_model_dir: Path) -> None:
    """It was written in one go; nobody waits for its client, and still it is not kept for ever."""
    with serving(text_model_dir, write_timeout_s=0.5) as front:
        connections = front.server._server.server_state.connections
        with post(
            front, n=16, max_tokens=500, return_token_ids=True, logprobs=5, prompt=["x"] * 16
        ):
            eventually(lambda: len(connections) > 1)
            eventually(lambda: front.cell.finished or len(front.cell.works) >= 16, 30)
            eventually(lambda: len(connections) == 1, 60)
        front.complete()
