"""What `pd top` draws: of a server with load, of one that has nothing, in small terminals."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pd.cli.top_view import PARTS, spark, view, waterfall
from pd.member import Node
from pd.messages import NodeHello
from pd.timeline import Part
from pd.types import NodeSnapshot


def node(node_id: str, role: Any, **fields: Any) -> dict[str, Any]:
    hello = NodeHello(node_id, role, 1, {}, 7, 100, 16, 2048, 8, 4242, "host-a")
    snapshot = NodeSnapshot(node_id, role, 3, num_blocks=100, free_blocks=60, **fields)
    return dict(Node(hello, 3, 0.0, snapshot).describe(0.1))


def request(number: int, **fields: Any) -> dict[str, Any]:
    spans = [("admit", 0.0, 0.01), ("queue", 0.01, 0.2), ("compute", 0.2, 0.5), ("decode", 0.5, 1)]
    return {
        "request_id": f"cmpl-{number:024x}", "arrived_at": 1.7e9, "outcome": "finished",
        "attained": True, "missed": [], "prompt_tokens": 10, "output_tokens": 20, "ttft_s": 0.5,
        "tpot_s": 0.02, "e2e_s": 1.0,
        "spans": [{"name": n, "start_s": a, "end_s": b, "where": "x"} for n, a, b in spans],
        **fields,
    }  # fmt: skip


def seen(**status: Any) -> dict[str, Any]:
    nodes = [node("prefill-0", "prefill"), node("decode-0", "decode"), node("pool-0", "pool")]
    values = [0.1 * i for i in range(40)]
    names = ["t", "attained_per_s", "missed_per_s", "tokens_per_s", "running", "waiting"]
    names += [f"{name}_{p}" for name in ("ttft", "tpot") for p in ("p50", "p90", "p99")]
    return {
        "status": {
            "ready": True, "reason": "", "model": "tiny", "nodes": nodes, "num_requests": 3,
            "gateway": {"running": 2, "waiting": 1}, **status,
        },
        "history": {
            "gateway": "gateway-0", "now": 1.7e9 + 12, "targets": {"ttft_s": 1.5, "tpot_s": None},
            "gone": [], "columns": dict.fromkeys(names, values),
        },
        "requests": {
            "running": [request(1, outcome="running", attained=None)],
            "ended": [request(2), request(3, attained=False, missed=["ttft", "tpot"])],
        },
        "decisions": [
            {"last_at": 1.7e9, "what": "decode-1 left", "reason": "it died", "times": 3},
        ],
    }  # fmt: skip


def drawn(told: dict[str, Any], width: int = 160, height: int | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(view(told, width, height))
    return out.getvalue()


def test_everything_is_there() -> None:
    text = drawn(seen())
    parts = [
        "tiny", "● ready", "attainment", "50.0%", "TTFT p90", "target 1.50 s", "prefill-0",
        "pool-0", "late: ttft, tpot", "on time", "decode-1 left 3×", "it died",
    ]  # fmt: skip
    for part in parts:
        assert part in text, part


def test_a_degraded_cell_says_so() -> None:
    told = seen()
    told["history"]["gone"] = [{"id": "decode-1", "role": "decode", "since": 1.7e9}]
    assert "degraded: decode-1 is gone" in drawn(told)
    assert "gone for 12 s" in drawn(told)
    told["status"]["nodes"][1]["silent_s"] = 7.0
    assert "decode-0 is silent for 7 s" in drawn(told)


def test_a_cell_that_has_nothing_yet() -> None:
    told = seen(ready=False, reason="no node has joined yet", nodes=[])
    told["history"]["columns"] = {"t": []}
    told["requests"] = {"running": [], "ended": []}
    told["decisions"] = []
    text = drawn(told)
    assert "not ready: no node has joined yet" in text and "no decisions yet" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_it_fits_its_terminal(width: int, height: int) -> None:
    told = seen()
    told["requests"]["ended"] = [request(i) for i in range(60)]
    lines = drawn(told, width, height).splitlines()
    assert all(len(line) <= width for line in lines)
    if height >= 40:
        assert len(lines) <= height


def test_every_part_of_a_request_has_a_colour() -> None:
    from typing import get_args

    assert set(PARTS) == set(get_args(Part))


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=50), st.integers(1, 40))
def test_a_curve_is_as_wide_as_asked(values: list[float | None], width: int) -> None:
    assert len(spark(values, width)) == width


@given(st.lists(st.floats(0, 5), max_size=7), st.floats(0.0, 50.0), st.integers(1, 80))
def test_a_waterfall_is_no_wider_than_asked(
    lengths: list[float], longest: float, width: int
) -> None:
    edges = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    spans = [
        {"name": name, "start_s": a, "end_s": b, "where": ""}
        for name, a, b in zip(PARTS, edges, edges[1:], strict=False)
    ]
    row = waterfall({"spans": spans}, max(longest, edges[-1]), width)
    assert len(row.plain) <= width


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    from front import serving
    from text_model import write_text_model

    with serving(write_text_model(tmp_path / "model")) as front:
        front.cell.nodes = (node("prefill-0", "prefill"), node("decode-0", "decode"))
        front.complete()
        yield front.url


def test_once_prints_a_running_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pd.cli.main import main

    assert main(["top", "--once", "--url", url]) == 0
    text = capsys.readouterr().out
    assert "tiny" in text and "finished" in text


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from pd.cli.main import main

    assert main(["top", "--url", "http://127.0.0.1:9"]) == 1
    assert "pd: error:" in capsys.readouterr().err


def test_q_leaves_a_terminal_as_it_was(url: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-m", "pd.cli.main", "top", "--url", url, "--interval", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        shown, deadline = b"", time.monotonic() + 60
        while b"tiny" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 1 << 16)
        os.write(ours, b"xq")
        while process.poll() is None:  # what it still writes has to be taken
            assert time.monotonic() < deadline, "q does not leave"
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 1 << 16)
        assert process.returncode == 0
        assert termios.tcgetattr(theirs)[3] == before[3], "echo and lines are back"
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
