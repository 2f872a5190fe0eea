"""Cells that outlive the command which started them, changed while they serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from asking import Asking

from pd.client import Client

LIMIT_S = 300.0
OPTIONS = [
    "--port", "0", "--threads-per-node", "1", "--kv-cache-gib", "0.05", "--heartbeat-s", "0.1",
    "--pool-dram-gib", "0.02", "--node-drain-s", "0.2", "--drain-s", "1",
]  # fmt: skip


class Commands:
    """`pd deploy` and `pd teardown` of one cell, as processes of their own."""

    def __init__(self, model: Path, name: str) -> None:
        self._model, self._name = model, name

    def run(self, command: str, *options: str) -> tuple[int, str, str]:
        address = ray.get_runtime_context().gcs_address
        done = subprocess.run(
            [sys.executable, "-m", "pd.cli.main", command, "--address", address,
             "--name", self._name, *options],
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.strip(), done.stderr

    def deploy(self, *options: str) -> tuple[int, str, str]:
        return self.run("deploy", "--model", str(self._model), *OPTIONS, *options)


@pytest.fixture(scope="module")
def commands(ray_session: None, live_model: Path) -> Iterator[Commands]:
    commands = Commands(live_model, "test")
    yield commands
    code, _, _ = commands.run("teardown")
    assert code == 0
    code, _, err = commands.run("teardown")
    assert code == 1 and "no cell 'test' runs" in err


@pytest.fixture(scope="module")
def url(commands: Commands) -> str:
    code, out, err = commands.deploy("--prefill", "1", "--decode", "1", "--dry-run")
    assert (code, out) == (0, "") and "would start cell 'test'" in err
    code, url, err = commands.deploy("--prefill", "1", "--decode", "1")
    assert code == 0, err
    return url


LAST = ("--mixed", "2", "--gateways", "1")


def processes(url: str) -> set[tuple[str, int]]:
    """Of all kinds, as they are told apart in a trace of the system."""
    with Client(url) as client:
        status = client.status()
        return {(status["gateway"]["id"], status["gateway"]["pid"])} | {
            (row["role"], row["pid"]) for row in status["nodes"]
        }


def roles(url: str) -> list[str]:
    with Client(url) as client:
        return sorted(row["role"] for row in client.status()["nodes"] if row["role"] != "pool")


def test_a_cell_is_changed_in_place(commands: Commands, url: str) -> None:
    soak = Asking(url, clients=4, seed=3)
    try:
        with soak.asking():
            code, again, err = commands.deploy("--prefill", "1", "--decode", "2", "--gateways", "2")
            assert code == 0 and again == url, err
            assert roles(url) == ["decode", "decode", "prefill"]
            code, again, err = commands.deploy(*LAST)
            assert code == 0 and again == url, err
            assert "becomes a mixed node" in err and "drain and remove decode" in err
            assert roles(url) == ["mixed", "mixed"]
    finally:
        soak.close()
    assert soak.wrong == [] and soak.answers >= 4


@pytest.mark.skipif("PD_SLOW_TESTS" not in os.environ, reason="a minute: set PD_SLOW_TESTS=1")
def test_every_process_takes_its_turn(commands: Commands, url: str) -> None:
    before = processes(url)
    soak = Asking(url, clients=4, seed=4)
    try:
        with soak.asking():
            code, again, err = commands.deploy(*LAST, "--roll")
    finally:
        soak.close()
    assert code == 0 and again == url, err
    assert soak.wrong == [] and soak.answers >= 4
    assert not before & processes(url)


def test_another_cell_takes_the_address(commands: Commands, url: str) -> None:
    """Blocks of another size: no process of the first cell could work with one of the second."""
    soak = Asking(url, clients=4, seed=5)
    try:
        with soak.asking():
            code, again, err = commands.deploy(*LAST, "--block-size", "8")
    finally:
        soak.close()
    assert code == 0 and again == url, err
    assert "cache.block_size: 16 -> 8" in err and soak.wrong == []
    with Client(url) as client:
        assert {row["block_size"] for row in client.status()["nodes"]} == {8}
    code, _, err = commands.deploy(*LAST, "--block-size", "8")
    assert code == 0 and "nothing to do" in err


def test_what_cannot_be_is_said_and_changes_nothing(commands: Commands, url: str) -> None:
    before = processes(url)
    code, _, err = commands.deploy("--prefill", "2", "--decode", "1", "--cpus-per-node", "1000")
    assert code != 0 and "1000 CPU" in err
    assert processes(url) == before
