"""`pd generate`, `pd chat` and `pd status` against a gateway over a fake cell."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from front import Front, serving
from text_model import write_text_model

from pd.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Whatever is asked, the answer is "hello world"."""
    with serving(write_text_model(tmp_path_factory.mktemp("text-model"))) as front:
        yield front


def test_generate_prints_the_text(server: Front, capsys: Captured) -> None:
    assert main(["generate", "hello", "--url", server.url]) == 0
    assert capsys.readouterr().out == "hello world\n"


def test_generate_reads_standard_input(
    server: Front, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["generate", "-", "--url", server.url]) == 0
    assert capsys.readouterr().out == "hello world\n"


def test_generate_several_outputs_and_stats(server: Front, capsys: Captured) -> None:
    argv = ["generate", "hi", "--url", server.url, "-n", "3", "--stats"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    for index in range(3):
        assert f"[{index}] hello world\n" in captured.out
    assert "TTFT" in captured.err


def test_generate_takes_the_url_from_the_environment(
    server: Front, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_URL", server.url)
    assert main(["generate", "hello", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "part"),
    [
        (["--temperature", "-1"], 1, "temperature"),
        (["--max-tokens", "0"], 1, "max_tokens"),
        (["-n", "0"], 1, "n"),
        (["--url", "http://127.0.0.1:9"], 1, "cannot connect"),
        (["--url", "ftp://x"], 2, "not a server's URL"),
        (["--url", ""], 2, "not a server's URL"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    argv: list[str], code: int, part: str, server: Front, capsys: Captured
) -> None:
    assert main(["generate", "x", "--url", server.url, *argv]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert part in captured.err


def chat(server: Front, lines: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main(["chat", "--url", server.url, *flags])


def test_chat_goes_on_until_its_input_ends(
    server: Front, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat(server, "hello\n\nand again\n", monkeypatch) == 0
    assert capsys.readouterr().out == "hello world\n" * 2


def test_chat_commands(server: Front, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat(server, "/help\n/nonsense\n/reset\n/exit\nnever said\n", monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "/exit" in captured.err
    assert "unknown command /nonsense" in captured.err


def test_a_conversation_is_a_session(server: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(server.cell.works)
    assert chat(server, "one\ntwo\n/reset\nthree\n", monkeypatch) == 0
    one, two, three = (work.request.session for work in server.cell.works[before:])
    assert one == two != three and one and three


def test_chat_survives_a_refusal(
    server: Front, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat(server, "x" * 200_000 + "\nshort\n", monkeypatch) == 0
    captured = capsys.readouterr()
    assert "refused" in captured.err
    assert captured.out == "hello world\n"


def test_status_as_a_table_and_as_json(server: Front, capsys: Captured) -> None:
    code = main(["status", "--url", server.url])
    text = capsys.readouterr().out
    assert main(["status", "--url", server.url, "--json"]) == code
    cell = json.loads(capsys.readouterr().out)
    assert (code == 0) == cell["ready"]
    assert server.url in text.replace("\n", "")
    for node in cell["nodes"]:
        assert node["id"] in text


def test_status_of_nobody(capsys: Captured) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9"]) == 1
    assert "cannot connect" in capsys.readouterr().err
