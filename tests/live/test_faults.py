"""Processes die and hang under load: Ray replaces them, and no stream shows a trace of it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

import httpx
import pytest
from live_cell import (
    WAIT_S,
    LiveCell,
    Streamed,
    eventually,
    orphaned_segments,
    ray_processes,
)

VOCABULARY = range(3, 380)


def requests(prompt_tokens: int, max_tokens: int) -> list[dict[str, Any]]:
    """Sixteen sampled requests, every fourth of two outputs."""
    rng = random.Random(prompt_tokens)
    return [
        {
            "prompt": rng.choices(VOCABULARY, k=prompt_tokens + 3 * number),
            "max_tokens": max_tokens,
            "temperature": 1.0,
            "seed": 1000 + number,
            "n": 2 if number % 4 == 0 else 1,
            "ignore_eos": True,
        }
        for number in range(16)
    ]


def all_have(num_tokens: int) -> Any:
    """Every output of every stream has come this far."""
    return lambda streams: all(
        len(stream.tokens) == stream.body["n"]
        and all(len(tokens) >= num_tokens for tokens in stream.tokens.values())
        for stream in streams
    )


def check_unharmed(streams: list[Streamed], expected: list[list[list[int]]]) -> None:
    assert [stream.errors for stream in streams] == [[]] * len(streams)
    assert all(stream.done for stream in streams)
    assert [stream.output for stream in streams] == expected
    assert all(set(stream.finishes.values()) == {"length"} for stream in streams)


def num_resumed(streams: list[Streamed]) -> int:
    return sum(stream.metrics["requests"][0]["attempts"] > 1 for stream in streams)


def check_replaced(cell: LiveCell, old: dict[str, Any], other: dict[str, Any]) -> None:
    """A new process in a later epoch, beside the other one, which went on."""
    cell.wait_idle()
    new = cell.node(old["role"])
    assert new["pid"] != old["pid"]
    assert new["epoch"] > max(old["epoch"], other["epoch"])
    now = cell.node(other["role"])
    assert (now["pid"], now["epoch"]) == (other["pid"], other["epoch"])
    eventually(lambda: not orphaned_segments())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_decode_node_lost_while_sixteen_streams_run(
    pd_cell: LiveCell, number: signal.Signals
) -> None:
    bodies = requests(prompt_tokens=20, max_tokens=400)
    expected = pd_cell.together(bodies)
    old, other = pd_cell.node("decode"), pd_cell.node("prefill")
    streams = pd_cell.stream(bodies, all_have(30), pd_cell.kill("decode", number))
    check_unharmed(streams, expected)
    assert num_resumed(streams) == len(streams)
    check_replaced(pd_cell, old, other)
    gaps = sorted(stream.longest_gap_s for stream in streams)
    print(f"\n{number.name} of the decode node: streams stood still for {gaps[0]:.1f} to "
          f"{gaps[-1]:.1f} s")  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_prefill_node_lost_among_its_prompts(pd_cell: LiveCell, number: signal.Signals) -> None:
    # Some are decoding, some on their way, some still waiting when it happens.
    bodies = requests(prompt_tokens=700 + number, max_tokens=120)
    other, old = pd_cell.node("decode"), pd_cell.node("prefill")

    def some_started(streams: list[Streamed]) -> bool:
        return sum(stream.num_tokens > 2 for stream in streams) >= 4

    streams = pd_cell.stream(bodies, some_started, pd_cell.kill("prefill", number))
    # Only now, so that no prompt was in the prefix cache before.
    check_unharmed(streams, pd_cell.together(bodies))
    check_replaced(pd_cell, old, other)
    gaps = sorted(stream.longest_gap_s for stream in streams)
    print(f"\n{number.name} of the prefill node: {num_resumed(streams)} streams resumed, the "
          f"longest standstill was {gaps[-1]:.1f} s")  # fmt: skip


def test_gateway_killed(pd_cell: LiveCell) -> None:
    bodies = requests(prompt_tokens=20, max_tokens=600)
    expected = pd_cell.tokens(**{**bodies[1], "max_tokens": 40})
    nodes = {row["id"]: row["pid"] for row in pd_cell.status()["nodes"]}
    gateway = pd_cell.status()["gateway"]["pid"]
    killed_at: list[float] = []

    def fault() -> None:
        os.kill(gateway, signal.SIGKILL)
        killed_at.append(time.monotonic())

    streams = pd_cell.stream(bodies, all_have(10), fault)
    assert all(stream.errors and not stream.done for stream in streams)
    deadline = time.monotonic() + WAIT_S
    while True:  # on the same port
        try:
            assert pd_cell.tokens(**{**bodies[1], "max_tokens": 40}) == expected
            break
        except (httpx.HTTPError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    print(f"\nSIGKILL of the gateway: served again after {time.monotonic() - killed_at[0]:.1f} s")
    pd_cell.wait_idle()
    assert {row["id"]: row["pid"] for row in pd_cell.status()["nodes"]} == nodes
    assert pd_cell.status()["gateway"]["pid"] != gateway


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_coordinator_lost(pd_cell: LiveCell, number: signal.Signals) -> None:
    """What runs goes on; what comes meanwhile waits; nobody else is replaced."""
    running = requests(prompt_tokens=20, max_tokens=600)[:8]
    later = requests(prompt_tokens=30, max_tokens=40)[:8]
    expected = pd_cell.together(running), pd_cell.together(later)
    pids = {row["id"]: row["pid"] for row in pd_cell.status()["nodes"]}
    (coordinator,) = coordinators = ray_processes("CoordinatorActor")
    assert len(coordinators) == 1, "one cell at a time"
    late: list[Streamed] = []

    def ask() -> None:
        late.extend(pd_cell.stream(later))

    asking = threading.Thread(target=ask)

    def fault() -> None:
        coordinator.send_signal(number)
        asking.start()

    streams = pd_cell.stream(running, all_have(10), fault)
    asking.join(timeout=WAIT_S)
    check_unharmed(streams, expected[0])
    check_unharmed(late, expected[1])
    pd_cell.wait_idle()
    assert {row["id"]: row["pid"] for row in pd_cell.status()["nodes"]} == pids
    (now,) = ray_processes("CoordinatorActor")
    assert now.pid != coordinator.pid
    gaps = max(stream.longest_gap_s for stream in streams)
    waits = max(stream.metrics["requests"][0]["ttft_s"] for stream in late)
    print(f"\n{number.name} of the coordinator: streams stood still for {gaps:.1f} s at most, "
          f"new requests waited {waits:.1f} s")  # fmt: skip
