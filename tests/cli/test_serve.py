"""`pd serve` as users run it: a process with nodes under it, talked to, then told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pd.client import Client

PD = [sys.executable, "-m", "pd.cli.main"]
# Two threads are all that some machines have, and a tiny model needs none.
FLAGS = ["--port", "0", "--threads-per-node", "1", "--kv-cache-gib", "0.02"]


@contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its URL, which is the first line of its output."""
    process = subprocess.Popen(
        [*PD, "serve", *FLAGS, *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        yield process, url
    finally:
        if process.poll() is None:
            # Killed as it is, it could not end what it has started.
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in family:
                if child.is_running():
                    child.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def pd(*argv: str) -> str:
    done = subprocess.run([*PD, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.live
def test_serve_talk_and_stop(tiny_model_dir: Path) -> None:
    with server("--model", str(tiny_model_dir)) as (process, url):
        family = psutil.Process(process.pid).children(recursive=True)
        text = pd("generate", "hello", "--url", url, "--max-tokens", "8", "--temperature", "0")
        with Client(url) as client:
            answer = client.generate("hello", max_tokens=8, temperature=0)
        assert text == answer.text + "\n"
        assert answer.metrics is not None
        assert answer.metrics.prefill_node == "prefill-0"
        assert answer.metrics.decode_node == "decode-0"
        cell = json.loads(pd("status", "--url", url, "--json"))
        assert [node["role"] for node in cell["nodes"]] == ["prefill", "decode", "pool"]
        assert "decode-0" in pd("status", "--url", url)
        assert "pool-0" in pd("kv", "--url", url)
        # As a terminal does: the signal goes to everything that was started from it.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "stopped" in log
        assert not [child for child in family if child.is_running()]


@pytest.mark.live
def test_what_a_node_cannot_load_ends_the_start(tiny_model_dir: Path, tmp_path: Path) -> None:
    """An error that only a node finds reaches the user as one line, and nothing stays behind."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    done = subprocess.run(
        [*PD, "serve", *FLAGS, "--model", str(broken)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "model.safetensors" in done.stderr.splitlines()[-1]
