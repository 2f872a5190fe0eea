"""`pd bench` against a gateway over a fake cell, and against odd servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from front import Front, serving
from odd_server import OddServer
from odd_serving import serving_app
from text_model import write_text_model

from pd.cli.main import main
from pd.workload.recorded import load_log, load_outcomes

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Takes whatever it is asked, and answers at once."""
    with serving(write_text_model(tmp_path_factory.mktemp("text-model"))) as front:
        yield front


SMALL = ["--rate", "200", "--requests", "12", "--prompt", "4-9", "--output", "3", "--warmup", "1"]


def test_a_run_with_all_its_files(server: Front, capsys: Captured, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("run.json", "run.jsonl", "run.html")}
    argv = ["bench", "--url", server.url, *SMALL, "--slo-ttft-ms", "60000"]
    argv += ["--json", str(files["run.json"]), "--record", str(files["run.jsonl"])]
    assert main([*argv, "--report", str(files["run.html"])]) == 0
    out = capsys.readouterr().out
    assert server.url in out and "100.0%" in out and "12 requests a run" in out
    data = json.loads(files["run.json"].read_text())
    assert data["endpoints"][0]["ours"] and data["endpoints"][0]["token_ids"]
    assert data["endpoints"][0]["vocabulary"] == 258
    assert "api_key" not in files["run.json"].read_text()
    one = data["runs"][0]
    assert (one["requests"], one["ok"], one["met"], one["attainment"]) == (12, 12, 12, 1.0)
    assert one["ttft_s"]["p50"] > 0 and data["slo"] == {"ttft_s": 60.0, "tpot_s": None}
    page = files["run.html"].read_text()
    assert "<svg" in page and "TTFT" in page and page.endswith("</html>\n")
    assert len(load_log(files["run.jsonl"])) == 12
    assert all(each.num_output == 3 for each in load_outcomes(files["run.jsonl"]))
    # What was recorded is a workload again.
    again = ["bench", "--url", server.url, "--workload", str(files["run.jsonl"]), "--warmup", "0"]
    assert main(again) == 0
    assert "12 requests a run" in capsys.readouterr().out


def test_a_sweep_draws_attainment_by_rate(server: Front, capsys: Captured, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.svg"
    argv = ["bench", "--url", server.url, "--rates", "300,100", "--requests", "10", "--prompt", "4",
            "--output", "2", "--slo-tpot-ms", "10000", "--report", str(picture)]  # fmt: skip
    assert main(argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(server.url)]
    assert [line.split()[1] for line in lines] == ["100", "300"]
    assert "requests that met their targets" in picture.read_text()


def test_a_search_says_what_it_found(capsys: Captured, tmp_path: Path) -> None:
    """A server that keeps everyone waiting: no rate can hold."""
    with serving_app(OddServer(first_s=0.05)) as url:
        argv = ["bench", "--url", url, "--search", "--rate", "3000", "--requests", "10",
                "--prompt", "4", "--output", "2", "--slo-ttft-ms", "1", "--warmup", "0",
                "--repeats", "1", "--json", str(tmp_path / "s.json")]  # fmt: skip
        assert main(argv) == 0
    assert "no rate holds" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())["search"]
    assert found["rate"] is None and found["bracketed"] and len(found["trials"]) == 7


def test_a_search_of_too_few_requests_says_so(server: Front, capsys: Captured) -> None:
    argv = ["bench", "--url", server.url, "--search", "--rate", "100", "--requests", "4"]
    argv += ["--prompt", "4", "--output", "2", "--slo-ttft-ms", "60000", "--warmup", "0"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "highest rate with 90% in time" in out and "send more of them (--requests)" in out


def test_the_ramp_is_sent_and_not_counted(server: Front, tmp_path: Path) -> None:
    """Of 20 requests in a second, evenly, those of the first half second do not count."""
    argv = ["bench", "--url", server.url, "--rate", "20", "--requests", "20", "--prompt", "4",
            "--output", "2", "--arrivals", "fixed", "--ramp-s", "0.5", "--warmup", "0",
            "--json", str(tmp_path / "r.json"), "--record", str(tmp_path / "r.jsonl")]  # fmt: skip
    assert main(argv) == 0
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["requests"] == 10
    assert len(load_outcomes(tmp_path / "r.jsonl")) == 20


def test_two_servers_take_turns(server: Front, capsys: Captured) -> None:
    other = OddServer(step_s=0.02)
    with serving_app(other) as url:
        argv = ["bench", "--url", server.url, "--compare", url, *SMALL, "--repeats", "3"]
        assert main(argv) == 0
    out = capsys.readouterr().out
    assert f"{url} beside {server.url}: goodput x" in out and "mean TPOT x" in out
    assert sum(line.startswith(url) for line in out.splitlines()) == 3 + 2
    # The probe, the warm-up and three runs of the same sizes.
    assert len(other.bodies) == 1 + 1 + 3 * 12
    runs = [other.bodies[2 + 12 * i :][:12] for i in range(3)]
    # Sorted: what is sent a few milliseconds later may still be read first.
    lengths = [sorted(len(each["prompt"]) for each in sent) for sent in runs]
    assert lengths[0] == lengths[1] == lengths[2]
    prompts = {json.dumps(each["prompt"]) for each in other.bodies[2:]}
    assert len(prompts) == 36, "a prompt was sent twice: a cache would have known it"


def test_rejections_are_misses_and_their_reason_is_shown(capsys: Captured) -> None:
    odd = OddServer(answer=lambda number: "429" if number % 2 else "fine")
    with serving_app(odd) as url:
        argv = ["bench", "--url", url, "--rate", "100", "--requests", "10", "--prompt", "4",
                "--output", "2", "--warmup", "0"]  # fmt: skip
        assert main(argv) == 0
    out = capsys.readouterr().out
    assert "50.0%" in out and "5 x 429: told to 429" in out


def test_a_server_that_fails_the_warm_up_is_not_measured(capsys: Captured) -> None:
    odd = OddServer(answer=lambda number: "fine" if number == 0 else "500")
    with serving_app(odd) as url:
        assert main(["bench", "--url", url, "--requests", "3", "--prompt", "4"]) == 1
    assert "fails a request of 4 prompt and 64 output tokens: 500" in capsys.readouterr().err


def test_requests_that_do_not_fit_the_model_are_left_out(capsys: Captured) -> None:
    with serving_app(OddServer()) as url:
        argv = ["bench", "--url", url, "--prompt", "300-500", "--output", "1", "--rate", "1000",
                "--requests", "40", "--warmup", "0"]  # fmt: skip
        assert main(argv) == 0
    captured = capsys.readouterr()
    assert "of 40 requests, longer than the 400 tokens" in captured.out
    assert not re.search(r"note: .*\d x ", captured.out), "a request failed"


def test_a_workload_of_which_nothing_fits(capsys: Captured) -> None:
    with serving_app(OddServer()) as url:
        assert main(["bench", "--url", url, "--prompt", "401"]) == 1
    assert "has more than 400 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "part"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "cannot connect to http://127.0.0.1:9"),
        (["--url", "nonsense"], 2, "'nonsense' is not a server's URL"),
        (["--workload", "nowhere.jsonl"], 1, "cannot read nowhere.jsonl"),
        (["--workload", "x", "--prompt", "5"], 2, "leave out --prompt"),
        (["--prompt", "0"], 2, "--prompt: "),
        (["--output", "many"], 2, "--output: 'many' is no length"),
        (["--rate", "0"], 2, "--rate must be above 0"),
        (["--rate", "nan"], 2, "--rate must be above 0"),
        (["--rates", "1,x"], 2, "--rates 1,x: write rates"),
        (["--rates", "1", "--rate", "1"], 2, "--rate and --rates exclude"),
        (["--rates", "1", "--search"], 2, "--rates and --search exclude"),
        (["--search"], 2, "--search needs targets"),
        (["--search", "--slo-ttft-ms", "5", "--goal", "2"], 2, "a goal in (0, 1]"),
        (["--goal", "0.8"], 2, "--goal is of --search"),
        (["--repeats", "3"], 2, "--repeats is of"),
        (["--compare", "nonsense"], 2, "--compare nonsense"),
        (["--slo-ttft-ms", "-1"], 2, "--slo-ttft-ms must be above 0"),
        (["--burstiness", "3"], 2, "--burstiness is of --arrivals gamma"),
        (["--think-s", "3"], 2, "--think-s is of --turns"),
        (["--shared-prefixes", "8"], 2, "write COUNTxTOKENS"),
        (["--report", "x.pdf"], 2, "must end in .html or .svg"),
        (["--json", "/dev/null/at/all.json"], 2, "/dev/null is no folder"),
        (["--model", "other"], 1, "no model 'other'; it serves tiny"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    server: Front, capsys: Captured, argv: list[str], code: int, part: str
) -> None:
    if "--url" not in argv:
        argv = ["--url", server.url, *argv]
    assert main(["bench", *argv]) == code
    error = capsys.readouterr().err
    assert part in error and len(error.splitlines()) == 1
