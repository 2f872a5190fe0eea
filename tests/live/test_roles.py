"""Roles change while streams run: nobody notices but the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_cell import LiveCell
from role_soak import RoleSoak

from pd.cli.main import main


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recording") / "cell.rec"


@pytest.fixture(scope="module")
def cell(start_cell: Callable[..., Any], recording: Path) -> Iterator[LiveCell]:
    with start_cell(prefill=1, decode=2, pool_dram_gib=0.02, record=str(recording)) as cell:
        yield cell


def test_roles_change_under_load(cell: LiveCell) -> None:
    soak = RoleSoak(cell.url, clients=6, seed=1)
    try:
        soak.run(changes=12)
    finally:
        soak.close()
    assert soak.wrong == [] and soak.answers >= 6
    cell.wait_idle()


def test_the_command(cell: LiveCell, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("decode", "mixed"):
        assert main(["role", "decode-0", role, "--url", cell.url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "decode-0 is a mixed node"
    for node in ("decode-1", "prefill-0"):
        main(["role", node, "prefill", "--url", cell.url])
    assert main(["role", "decode-0", "prefill", "--url", cell.url]) == 1
    assert "decode-0 has to stay a mixed node: then no decode node is up" in capsys.readouterr().err


def test_everything_that_was_decided_is_decided_again(
    cell: LiveCell, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell.wait_idle()
    assert main(["replay", str(recording)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "effects as they were recorded" in lines[-1]
    assert sum(" setrole " in line for line in lines) >= 12
    assert sum(" admitted " in line for line in lines) >= 6
