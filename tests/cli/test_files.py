"""Whether a file can be written is said before the work whose result it is for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pd.cli.files import check_writable, write_text
from pd.cli.main import main
from pd.errors import ConfigError


def test_what_can_be_written_is_written(tmp_path: Path) -> None:
    check_writable(None)
    for path in (tmp_path / "new.txt", tmp_path / "not" / "there" / "yet.txt"):
        check_writable(path)
        assert not path.parent.joinpath("new.txt").exists(), "nothing is made by asking"
        write_text(path, "1")
        check_writable(path)
        assert path.read_text() == "1"
        path.unlink()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, part in ((tmp_path, "it is a folder"), (file / "a" / "b", f"{file} is no folder")):
        with pytest.raises(ConfigError, match=part):
            check_writable(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_permissions_count(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o400)
    with pytest.raises(ConfigError, match="may not be written to"):
        check_writable(file)
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="nothing may be written in"):
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "argv",
    [
        ["profile", "no-such-model", "--out", "/dev/null/cost.json"],
        ["profile", "no-such-model", "--samples", "/dev/null/cost.json"],
        ["tune", "--cost", "llama-3.1-8b-h100", "--gpus", "2", "--slo-ttft-ms", "1000",
         "--rate", "1", "--out", "/dev/null/tuned"],
    ],
)  # fmt: skip
def test_commands_say_so_before_they_begin(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "/dev/null is no folder" in said and len(said.splitlines()) == 1
