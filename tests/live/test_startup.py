"""What can go wrong before a cell serves: one clear line, an exit status, nothing left running."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_cell import eventually, orphaned_segments, ray_processes

from pd.errors import PDError

LIMIT_S = 180.0


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def no_weights(live_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(live_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model"


def actors() -> set[int]:
    names = ("NodeActor", "GatewayActor", "CoordinatorActor")
    return {process.pid for name in names for process in ray_processes(name)}


def refusal(start_cell: Any, **options: Any) -> str:
    """Why a cell does not start; all that was started for it has ended."""
    before = actors()
    with pytest.raises(PDError) as caught, start_cell(**{"mixed": 1, **options}):
        pass
    deadline = time.monotonic() + LIMIT_S
    while actors() - before:
        assert time.monotonic() < deadline, f"left running: {actors() - before}"
        time.sleep(0.1)
    eventually(lambda: not orphaned_segments())  # other tests make some, and end them
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_no_weights(start_cell: Any, no_weights: Path) -> None:
    assert "holds neither model.safetensors nor" in refusal(start_cell, model=str(no_weights))


def test_port_in_use(start_cell: Any, taken_port: int) -> None:
    message = refusal(start_cell, port=taken_port)
    assert message.startswith(f"cannot serve HTTP on 127.0.0.1:{taken_port}: Address already in")


def test_address_of_another_host(start_cell: Any) -> None:
    for option in ("bind", "host"):
        message = refusal(start_cell, **{option: "192.0.2.77"})
        assert message.startswith("cannot listen on 192.0.2.77: ") and f"--{option}" in message


@pytest.mark.parametrize("transports", [("shm",), ("zmq",)])
def test_more_kv_than_memory(start_cell: Any, transports: tuple[str, ...]) -> None:
    message = refusal(start_cell, kv_cache_gib=1e6, transports=transports)
    assert ("/dev/shm has room for" if "shm" in transports else "KV cache") in message


def test_more_than_ray_has(start_cell: Any) -> None:
    message = refusal(start_cell, cpus_per_node=10_000)
    assert message.startswith("1 nodes of 10000 CPU each need 10000 and the Ray cluster has 64")


# ------------------------------------------------------------------ the command itself
@contextmanager
def serve(*options: str) -> Iterator[subprocess.Popen[str]]:
    """`pd serve`; however the test ends, so does the command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pd.cli.main", "serve", "--threads-per-node", "1", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.terminate()


def run(*options: str) -> tuple[int, str, str]:
    with serve(*options) as process:
        return ended(process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command that ends by itself, with all of its Ray."""
    out, err = process.communicate(timeout=LIMIT_S)
    session = re.compile(rf"/session_[0-9_-]+_{process.pid}/")
    deadline = time.monotonic() + LIMIT_S
    while left := [p.pid for p in psutil.process_iter(["cmdline"]) if _of(p, session)]:
        assert time.monotonic() < deadline, f"left running: {left}"
        time.sleep(0.1)
    return process.returncode, out, err


def _of(process: psutil.Process, session: re.Pattern[str]) -> bool:
    return bool(session.search(" ".join(process.info["cmdline"] or ())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--transports", "carrier-pigeon"], "transports must be a list of shm, zmq"),
        (["--address", "127.0.0.1:1"], "no Ray cluster at '127.0.0.1:1'"),
        (["--config", "/no/such.yaml"], "cannot read /no/such.yaml: No such file"),
        (["--model", "/no/such/model"], "no model '/no/such/model'"),
        (["--prefil", "2"], "did you mean '--prefill'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options(live_model: Path, options: list[str], message: str) -> None:
    code, out, err = run("--model", str(live_model), *options)
    assert code in (1, 2) and out == ""
    errors = [line for line in err.splitlines() if not line.startswith("==>")]
    assert len(errors) == 1 and message in errors[0], err


def test_unknown_key_in_file(live_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("cluster:\n  prefil: 2\n")
    code, out, err = run("--model", str(live_model), "--config", str(config))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "did you mean 'prefill'" in err


def test_command_without_weights(no_weights: Path) -> None:
    code, out, err = run("--model", str(no_weights), "--mixed", "1", "--port", "0")
    assert (code, out) == (1, "")
    errors = [line for line in err.splitlines() if line.startswith("pd: error:")]
    assert len(errors) == 1 and "holds neither model.safetensors" in errors[0]
    assert "Traceback" not in err


def test_command_serves_until_it_is_told_to_stop(live_model: Path) -> None:
    options = ("--model", str(live_model), "--mixed", "1", "--kv-cache-gib", "0.05")
    with serve(*options, "--port", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "hi"}, timeout=LIMIT_S)
        assert answer.status_code == 200
        process.terminate()
        code, _, err = ended(process)
    assert code == 0 and "==> stopped" in err and "Traceback" not in err
    eventually(lambda: not orphaned_segments())
