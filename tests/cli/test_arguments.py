"""The command line: flags made from the configuration, and errors a user can act on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pd.cli.load import dump_config, load_config, with_api_keys_from_environment
from pd.cli.main import main
from pd.config import OPTIONS, Config
from pd.errors import ConfigError

Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, *argv: str) -> tuple[int, str]:
    """Exit status and the single line of standard error."""
    try:
        code = main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        code = stop.code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return code, lines[0]


def printed(capsys: Captured, *argv: str) -> str:
    assert main(["serve", "--print-config", *argv]) == 0
    return capsys.readouterr().out


def test_print_config_is_a_file_that_reads_back(tmp_path: Path, capsys: Captured) -> None:
    text = printed(capsys, "--mixed", "2", "--lease-s", "3.5", "--no-verify", "--api-key", "a: b")
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    config = load_config(str(file), {})
    assert config == Config.from_dict(mixed=2, lease_s=3.5, verify=False, api_key="a: b")
    assert printed(capsys, "--config", str(file)) == text


def test_print_config_explains_every_key(capsys: Captured) -> None:
    text = printed(capsys)
    for option in OPTIONS.values():
        assert f"  # {option.help}\n  {option.key}:" in text


@given(
    model=st.text(min_size=1).filter(str.strip),
    api_key=st.one_of(st.none(), st.text(min_size=1)),
    lease_s=st.floats(1.0, 1e12),
)
def test_any_text_survives_the_file(model: str, api_key: str | None, lease_s: float) -> None:
    config = Config.from_dict(model=model, api_key=api_key, lease_s=lease_s)
    assert Config.from_dict(yaml.safe_load(dump_config(config))) == config


def test_flags_win_over_the_file(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("gateway: {port: 1234, max_n: 3}\n")
    config = Config.from_dict(
        yaml.safe_load(printed(capsys, "--config", str(file), "--port", "4321"))
    )
    assert (config.gateway.port, config.gateway.max_n) == (4321, 3)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["serve", "--prefil", "2"], ["'--prefil'", "did you mean '--prefill'"]),
        (["serve", "--port", "http"], ["gateway.port", "'http'"]),
        (["serve", "--port", "70000"], ["from 0 to 65535", "70000"]),
        (["serve", "--dtype", "int8"], ["one of auto, float32"]),
        (["serve", "--transports", "shm,tcp"], ["transfer.transports"]),
        (["serve", "--port"], ["--port", "expected one argument"]),
        (["serve", "--prefill", "0"], ["cluster.prefill is 0"]),
        (["serve", "--config", "/no/such.yaml"], ["/no/such.yaml", "No such file"]),
        (["serve", "extra"], ["'extra'"]),
        (["model", "get"], ["NAME"]),
        (["model", "get", "x", "--dtype", "int4"], ["--dtype", "int4"]),
        (["model"], ["ACTION"]),
        (["sevre"], ["sevre"]),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], parts: list[str], capsys: Captured) -> None:
    code, line = fails(capsys, *argv)
    assert code == 2
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cluster: {prefil: 1}", "did you mean 'prefill'"),
        ("gateway:\n  port: 1\n  port: 2\n", "line 3: key 'port' is given twice"),
        ("gateway: {port: [}", "not valid YAML"),
        ("gateway: 12", "section 'gateway' must be a mapping"),
        ("- 1", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("gateway: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(text: str, part: str, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    code, line = fails(capsys, "serve", "--config", str(file))
    assert code == 2
    assert str(file) in line
    assert part in line


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(file), {})


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert load_config(str(file), {}) == Config()


def test_a_missing_model_is_named_before_anything_starts(tmp_path: Path, capsys: Captured) -> None:
    code, line = fails(capsys, "serve", "--model", str(tmp_path / "nothing"))
    assert code == 1
    assert "nothing" in line
    assert "smollm2-135m" in line
    (tmp_path / "empty").mkdir()
    code, line = fails(capsys, "serve", "--model", str(tmp_path / "empty"))
    assert code == 1
    assert "no config.json" in line


def test_a_port_that_cannot_be_had_is_named_at_once(capsys: Captured) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, line = fails(capsys, "serve", "--port", port)
        assert code == 2
        assert port in line
    code, line = fails(capsys, "serve", "--host", "192.0.2.1")
    assert code == 2
    assert "192.0.2.1" in line


def test_an_unknown_model_name_lists_the_known(capsys: Captured) -> None:
    code, line = fails(capsys, "model", "get", "gpt-5")
    assert code == 1
    assert "gpt-5" in line
    assert "smollm2-135m" in line


def test_model_list_says_what_is_here(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_HOME", str(tmp_path))
    assert main(["model", "list"]) == 0
    assert "not fetched" in capsys.readouterr().out


def test_no_command_shows_the_help(capsys: Captured) -> None:
    assert main([]) == 2
    assert "serve" in capsys.readouterr().err


def test_help_mentions_every_flag(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in OPTIONS.values():
        assert option.flag in text or f"--[no-]{option.flag[2:]}" in text


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_API_KEY", "k0")
    monkeypatch.setenv("PD_API_KEYS", "alice=k1, bob=k2")
    given = with_api_keys_from_environment(Config())
    assert given.gateway.tenants() == {"k0": "", "k1": "alice", "k2": "bob"}
    configured = Config.from_dict(api_key="own", api_keys=["carol=k3"])
    assert with_api_keys_from_environment(configured) == configured
    monkeypatch.setenv("PD_API_KEYS", "alice")
    with pytest.raises(ConfigError, match="NAME=KEY"):
        with_api_keys_from_environment(Config())
