"""The scripts that users run first: what they say when they cannot go on, and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def setup_env(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup_env.sh")],
        env={**os.environ, "PD_VENV": str(venv), **environment},
        capture_output=True,
        text=True,
    )


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_no_python_is_named(tmp_path: Path) -> None:
    done = setup_env(tmp_path / "venv", PD_PYTHON="no-such-python")
    assert done.returncode == 1
    assert "no Python 3.10 or newer" in done.stderr
    assert "PD_PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "bin", "python2.7", "exit 1")  # what it is asked is whether it is new enough
    done = setup_env(tmp_path / "venv", PD_PYTHON=str(tmp_path / "bin" / "python2.7"))
    assert done.returncode == 1
    assert "no Python 3.10 or newer" in done.stderr


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    table = "echo Filesystem; echo /dev/sda 1 1 1048576 99% /"
    program(tmp_path / "bin", "df", table)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = setup_env(tmp_path / "venv", PATH=path, PD_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "only 1 GB are free" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.live
@pytest.mark.model
def test_the_demo(model_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--model", str(model_dir), "--max-tokens", "16"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("short", "long", "chat", "sampled", "n = 2"):
        assert f"│ {name} " in done.stdout
    assert "prefill-0" in done.stdout
    assert "Traceback" not in done.stderr
