"""`pd simulate`: the same arguments print the same bytes; what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sim_cells import COST

from pd.cli.main import main

Captured = pytest.CaptureFixture[str]
SMALL = ["--requests", "40", "--rate", "4", "--prompt", "100-900", "--output", "20"]
CELL = ["--kv-bytes-per-token", "100000", "--kv-cache-gib", "1", "--max-num-batched-tokens", "512"]


@pytest.fixture
def cost(tmp_path: Path) -> str:
    path = tmp_path / "cost.json"
    COST.save(path)
    return str(path)


def printed(capsys: Captured, *args: str) -> str:
    assert main(["simulate", *SMALL, *CELL, *args]) == 0
    return capsys.readouterr().out


def test_a_table(cost: str, capsys: Captured) -> None:
    out = printed(capsys, "--cost", cost, "--slo-ttft-ms", "500", "--slo-tpot-ms", "50")
    assert "40 requests in" in out and "40 served" in out
    assert "attainment" in out and "TTFT" in out and "prefill" in out and "decode" in out


def test_the_same_arguments_print_the_same_bytes(cost: str, capsys: Captured) -> None:
    failing = ["--jitter", "0.2", "--fail", "decode-1:kill:3:2", "--decode", "2", "--json"]
    first = printed(capsys, "--cost", cost, *failing)
    assert printed(capsys, "--cost", cost, *failing) == first
    assert printed(capsys, "--cost", cost, *failing, "--seed", "1") != first
    found = json.loads(first)
    assert found["requests"]["ok"] == 40 and found["cell"]["nodes"] == {"prefill": 1, "decode": 2}
    assert len(found["nodes"]) == 4, "the one that was killed is there, too"
    assert found["cell"]["config"]["cluster"]["decode"] == 2


def test_events_tell_a_request_s_life(cost: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "events.jsonl"
    printed(capsys, "--cost", cost, "--mixed", "2", "--events", str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    life = [row["event"] for row in rows if row["id"] == "r3"]
    assert life == ["submit", "place", "prefilled", "first token", "end"]
    assert [row["t"] for row in rows] == sorted(row["t"] for row in rows)


def test_options_change_what_happens(cost: str, capsys: Captured) -> None:
    base = json.loads(printed(capsys, "--cost", cost, "--json"))
    slow = json.loads(printed(capsys, "--cost", cost, "--json", "--far-gbs", "0.05",
                              "--nodes-per-host", "1"))  # fmt: skip
    assert slow["tpot_s"]["mean"] > base["tpot_s"]["mean"]
    pool = ["--pool-dram-gib", "2", "--pool-disk-gib", "4", "--shared-prefixes", "2x256"]
    assert json.loads(printed(capsys, "--cost", cost, "--json", *pool))["hits"]["rate"] > 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cost", "nothing-here"], "no cost model 'nothing-here'"),
        (["--fail", "decode-9:kill:1"], "decode-9"),
        (["--fail", "decode-0:explode:1"], "write NODE:KIND:AT"),
        (["--kv-cache-gib", "0.0001"], "less than one block"),
        (["--far-gbs", "-1"], "--far-gbs must be above 0"),
        (["--decode", "0"], "neither phase"),
        (["--jitter", "-1"], "jitter must be 0 or more"),
        (["--events", "/nowhere/at/all"], "No such file"),
        (["--port", "1"], "unknown argument '--port'"),
    ],
)
def test_mistakes_are_one_line(args: list[str], said: str, cost: str, capsys: Captured) -> None:
    try:
        code = main(["simulate", *SMALL, *CELL, "--cost", cost, *args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_cost_model_that_is_silent_on_kv_needs_to_be_told(cost: str, capsys: Captured) -> None:
    assert main(["simulate", *SMALL, "--cost", cost]) == 2
    assert "kv_bytes_per_token" in capsys.readouterr().err
    assert main(["simulate", *SMALL, "--cost", cost, *CELL[:2]]) == 2
    assert "kv_tokens" in capsys.readouterr().err
