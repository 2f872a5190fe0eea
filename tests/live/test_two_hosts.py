"""A cell across two hosts of namespaces, and a link between them that fails. Needs root."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_cell import LiveCell
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from hostlib.hosts import Hosts, two_hosts, why_not  # noqa: E402
from hostlib.secrecy import readable, segments, shared_pieces  # noqa: E402
from hostlib.serving import (  # noqa: E402
    FIRST_FREE_PORT,
    node_logs,
    serve_across,
    ways_of_blocks,
    wrong_ways,
)
from hostlib.trials import Trial  # noqa: E402

MIB = 1 << 20
NODE_TIMEOUT_S = 3.0
MAX_TOKENS = 24
RNG = random.Random(5)
# The last one of each is for when the fault is over.
BODIES = {
    name: [
        {"prompt": RNG.choices(range(3, 380), k=RNG.randint(300, 600)), "max_tokens": MAX_TOKENS,
         "temperature": 0, "ignore_eos": True}
        for _ in range(5)
    ]
    for name in ("recorded", "resets", "cut")
}  # fmt: skip


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def model(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        tmp_path_factory.mktemp("two-hosts-model"),
        hidden_size=128, intermediate_size=256, num_hidden_layers=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[list[int]]]:
    """What transformers makes of the same prompts."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def answer(prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        ids, past = torch.tensor([prompt]), None
        with torch.inference_mode():
            while len(tokens) < MAX_TOKENS:
                out = reference(ids, past_key_values=past, use_cache=True)
                tokens.append(int(out.logits[0, -1].argmax()))
                ids, past = torch.tensor([tokens[-1:]]), out.past_key_values
        return tokens

    return {name: [answer(body["prompt"]) for body in bodies] for name, bodies in BODIES.items()}


@pytest.fixture(scope="module")
def cell(hosts: Hosts, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCell]:
    options: dict[str, Any] = {
        "model": str(model), "threads_per_node": 1, "kv_cache_gib": 0.05, "pool_dram_gib": 0.02,
        "heartbeat_s": 0.1, "node_timeout_s": NODE_TIMEOUT_S, "lease_s": NODE_TIMEOUT_S,
        "drain_s": 1.0, "start_timeout_s": 300.0,
    }  # fmt: skip
    logs = tmp_path_factory.mktemp("two-hosts")
    with serve_across(hosts, logs, options) as served, hosts.first.network():
        cell = LiveCell(served)
        yield cell
        cell.http.close()
        for host in hosts.all:  # for whoever wants to know what happened
            (logs / f"nodes-{host.name}.log").write_text(node_logs(host))


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, cell: LiveCell, expected: dict[str, list[list[int]]]
) -> Trial:
    name = request.node.name.removeprefix("test_")
    return Trial(name, cell, BODIES[name], expected[name])


def check_recovery(trial: Trial, hosts: Hosts) -> None:
    """All was right in the end, the next request is served, and nothing is left behind."""
    hosts.link.plain()
    trial.recover()
    outcome = trial.outcome
    print(
        f"\n{outcome.name}: {outcome.right} of {outcome.requests} right, {outcome.resumed} "
        f"resumed, longest pause {outcome.longest_gap_s:.1f} s, {hosts.link.state()}"
    )
    assert outcome.problems == []
    assert outcome.right + outcome.clear_errors == outcome.requests == 4
    assert [len(segments(host)) for host in hosts.all] == [2, 2]


def test_recorded(trial: Trial, hosts: Hosts, tmp_path: Path) -> None:
    """Every pair of processes takes the way it should; nothing of it can be read."""
    hosts.link.faults(delay_s=0.02)
    hosts.link.record(tmp_path / "passed")
    trial.run(at_once=4)
    hosts.link.record(None)
    pieces = shared_pieces(hosts.first, hosts.second, 50)
    assert len(pieces) == 50
    assert readable(tmp_path / "passed", pieces) == []
    assert readable(segments(hosts.first)[0], pieces), "they are found where they can be read"
    check_recovery(trial, hosts)
    assert trial.outcome.right == 4
    homes = {row["id"]: row["host"] for row in trial.cell.status()["nodes"]}
    assert wrong_ways(ways_of_blocks(hosts), homes) == []


def test_resets(trial: Trial, hosts: Hosts) -> None:
    hosts.link.faults(
        bytes_per_s=2 * MIB, stall_every_s=1.0, stall_s=0.3, reset_every_s=0.3,
        reset_ports=FIRST_FREE_PORT, seed=1,
    )  # fmt: skip
    trial.run(at_once=4)
    assert hosts.link.state()["resets"] > 0
    check_recovery(trial, hosts)


def test_cut(trial: Trial, hosts: Hosts) -> None:
    """In the middle of a hand-off, for longer than makes a node count as lost."""
    hosts.link.faults(bytes_per_s=2 * MIB)
    hosts.link.cut_after(MIB, NODE_TIMEOUT_S + 2)
    trial.run(at_once=4)
    state = hosts.link.state()
    assert state["cuts"] == 1
    time.sleep(state["cut_left_s"])
    check_recovery(trial, hosts)
    assert set(trial.outcome.replaced) >= {"decode-0"}, "its successor joined in a later epoch"
