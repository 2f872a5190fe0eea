"""`pd replay` on a recording of a simulated cell."""

from __future__ import annotations

import json
from pathlib import Path

import cell.cell
import pytest
from cell.cell import Cell
from cell.workload import make_request

from pd.cli.main import main
from pd.recorder import MAGIC, Recorder


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two requests, the second on a cell whose roles were changed, and a node that dies."""
    path = tmp_path / "cell.rec"
    monkeypatch.setattr(cell.cell, "Coordinator", lambda limits: Recorder(limits, path))
    run = Cell({"p0": "prefill", "d0": "decode", "d1": "decode"})
    run.submit(make_request("first"))
    run.settle()
    run.hear_role_change("d1", "prefill")
    run.submit(make_request("second"))
    run.steps(5)
    run.kill_node("p0")
    run.start_node("p0")
    run.settle()
    recorder = run.coordinator
    assert isinstance(recorder, Recorder)
    recorder.close()
    return path


def test_decisions_are_shown(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording)]) == 0
    out = capsys.readouterr().out
    assert "setrole" in out and "admitted" in out and "second" in out
    assert "effects as they were recorded" in out.splitlines()[-1]
    assert main(["replay", str(recording), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_as_json(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"admitted", "setrole"} <= {row["decision"] for row in rows}
    times = [row["at_s"] for row in rows]
    assert times == sorted(times) and 0 <= times[0] < 1  # since the recording began


def test_what_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "bad").write_bytes(MAGIC[:-1] + b"x")
    assert main(["replay", str(tmp_path / "bad")]) == 1
    assert "not a recording" in capsys.readouterr().err
