"""The transfer bench runs, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_transfer.py"


def test_bench_transfer(tmp_path: Path) -> None:
    out = tmp_path / "transfer.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--blocks",
        "3",
        "--rounds",
        "2",
        "--transports",
        "inproc",
        "zmq",
        "--json",
        str(out),
    ]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    rows = json.loads(out.read_text())["rows"]
    names = {row["what"] for row in rows}
    assert {"memory copy", "raw ZeroMQ", "inproc", "zmq", "zmq, encrypted"} <= names
    assert {row["blocks"] for row in rows} == {1, 3}
    assert all(row["gb_per_s"] > 0 and row["vs_copy"] > 0 for row in rows)
