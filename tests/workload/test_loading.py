"""Workload files: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pd.errors import WorkloadError
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.load import load_workload
from pd.workload.mooncake import load_mooncake
from pd.workload.outcome import Outcome
from pd.workload.recorded import load_log, load_outcomes, write_log

TRACES = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
SERVEGEN = "t_s,client_id,input_tokens,output_tokens,reason_ratio\n"


def mooncake(*rows: tuple[float, int, int, list[int]]) -> str:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def stored(folder: Path, text: str, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_mooncake_rows(tmp_path: Path) -> None:
    path = stored(tmp_path, mooncake((0, 600, 7, [1, 2]), (1500, 512, 0, [1])))
    workload = load_workload(path)
    assert workload.name == "trace" and workload.block_tokens == 512
    assert workload.arrivals == (Arrival(0.0, 600, 7, (1, 2)), Arrival(1.5, 512, 1, (1,)))


def test_requests_of_one_tick_are_spread_until_the_next(tmp_path: Path) -> None:
    rows = [(tick, 10, 1, [number]) for number, tick in enumerate([0] * 5 + [3000] * 5 + [3500])]
    path = stored(tmp_path, mooncake(*rows))
    times = [each.time_s for each in load_mooncake(path)]
    assert len(set(times)) == 11
    assert all(0 <= t < 3 for t in times[:5]) and all(3 <= t < 3.5 for t in times[5:10])
    assert times[10] == 3.5
    assert [each.prefix for each in load_mooncake(path)] == [(i,) for i in range(11)]
    assert times == [each.time_s for each in load_mooncake(path)]
    assert times != [each.time_s for each in load_mooncake(path, seed=1)]
    plain = [each.time_s for each in load_mooncake(path, spread=False)]
    assert plain == [0.0] * 5 + [3.0] * 5 + [3.5]


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    path.write_bytes(gzip.compress(mooncake((0, 5, 5, [1])).encode()))
    assert len(load_workload(path)) == 1


def test_azure_rows_count_from_the_first(tmp_path: Path) -> None:
    text = AZURE + (
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:51,10,0\r\n"
    )
    workload = load_workload(stored(tmp_path, text, "a.csv"))
    assert [(a.num_prompt, a.num_output) for a in workload] == [(374, 44), (396, 109), (10, 1)]
    assert [a.time_s for a in workload] == pytest.approx([0.0, 4.314579, 4.31941], abs=1e-5)


def test_azure_rows_of_2024(tmp_path: Path) -> None:
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.5Z,1,5\n"
    workload = load_workload(stored(tmp_path, text))
    assert workload.duration_s == pytest.approx(1.49007, abs=1e-5)


def test_servegen_rows(tmp_path: Path) -> None:
    workload = load_workload(stored(tmp_path, SERVEGEN + "0.5,47,56,654,0.9\n0.1,3,5,6,0\n"))
    assert workload.arrivals[1] == Arrival(0.5, 56, 654, tenant="client-47")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins no workload"),
        ("hello\n", "begins no workload"),
        ("{\n", "line 1: not JSON"),
        (mooncake((0, 5, 5, [1])) + "[1]\n", "line 2: '[1]' is no JSON object"),
        (mooncake((0, 5, 5, [1])) + '{"timestamp": 1}', "line 2: has no 'input_length'"),
        (mooncake((0, 513, 5, [1])), "line 1: 1 'hash_ids' for 513 tokens"),
        (mooncake((0, 5, 5, ["a"])), "'hash_ids' must be a list of whole"),  # type: ignore[list-item]
        (mooncake((0, 5, 5, 3)), "'hash_ids' must be a list"),  # type: ignore[arg-type]
        (mooncake((-1, 5, 5, [1])), "'timestamp' is -1; it must be at least 0"),
        (mooncake((float("nan"), 5, 5, [1])), "'timestamp' is nan"),
        (mooncake((0, 0, 5, [])), "'input_length' is 0; it must be from 1"),
        (mooncake((0, 5, -1, [1])), "'output_length' is -1"),
        (mooncake((0, 5, 1.5, [1])), "'output_length' is 1.5; it must be a whole number"),  # type: ignore[arg-type]
        (mooncake((0, 5, True, [1])), "'output_length' is True"),
        (mooncake((0, 10**30, 5, [1])), "'input_length' is 1000"),
        (AZURE, "has no requests"),
        (AZURE + "yesterday,1,1\n", "line 2: 'TIMESTAMP' is 'yesterday'"),
        (AZURE + "2023-13-40 18:15:46,1,1\n", "line 2: 'TIMESTAMP'"),
        (AZURE + "2023-11-16 18:15:46,1\n", "line 2: 2 values for 3 columns"),
        (AZURE + "2023-11-16 18:15:46,many,1\n", "'ContextTokens' is 'many'"),
        (AZURE + '2023-11-16 18:15:46,"1,1\n', "line 2: not CSV"),
        (SERVEGEN + "0.1,3,5,6\n", "4 values for 5 columns"),
        (SERVEGEN + "soon,3,5,6,1\n", "'t_s' is 'soon'; it must be a number"),
        (SERVEGEN + "inf,3,5,6,1\n", "'t_s' is inf"),
        ('{"pd_workload": 2}\n', "a log of version 2"),
        ('{"pd_workload": 1, "name": 3, "block_tokens": 1}\n', "'name' is 3"),
        ('{"pd_workload": 1, "name": "x", "block_tokens": 0}\n', "'block_tokens' is 0"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = stored(tmp_path, text)
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read .*No such file"):
        load_workload(tmp_path / "none.csv")
    with pytest.raises(WorkloadError, match="cannot read"):
        load_workload(tmp_path)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(mooncake((0, 5, 5, [1])).encode() * 100)[:-9])
    with pytest.raises(WorkloadError, match="damaged gzip"):
        load_workload(broken)
    (tmp_path / "latin").write_bytes(b"{\xff}")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        load_workload(tmp_path / "latin")


slos = st.none() | st.builds(SLO, st.none() | st.floats(0, 100), st.none() | st.floats(0, 9))


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    num_prompt = draw(st.integers(1, 100))
    prefix = draw(st.sampled_from([(), tuple(range(-(-num_prompt // 16)))]))
    arrival = Arrival(
        draw(st.floats(0, 1e6)), num_prompt, draw(st.integers(1, 99)), prefix,
        draw(st.text(max_size=5)), draw(st.text(max_size=5)), draw(st.integers(-5, 5)), draw(slos),
    )  # fmt: skip
    seconds = st.none() | st.floats(0, 1e6)
    return Outcome(
        arrival, draw(seconds), draw(seconds), draw(st.integers(0, 99)),
        draw(st.sampled_from(["ok", "rejected", "error"])), draw(st.floats(0, 1e6)),
        draw(seconds), tuple(draw(st.lists(st.floats(0, 10), max_size=4))),
        draw(st.text(max_size=9)),
    )  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(outcomes(), min_size=1, max_size=8))
def test_a_log_is_read_back_as_it_was_written(tmp_path: Path, drawn: list[Outcome]) -> None:
    drawn.sort(key=lambda each: each.arrival.time_s)
    workload = Workload("w", [each.arrival for each in drawn], 16)
    path = tmp_path / "log.jsonl"
    write_log(path, workload, drawn)
    assert load_workload(path).arrivals == workload.arrivals
    assert load_outcomes(path) == drawn
    write_log(path, workload)
    assert load_log(path).arrivals == workload.arrivals
    with pytest.raises(WorkloadError, match="has no 'status'"):
        load_outcomes(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), head=st.sampled_from(["", AZURE, SERVEGEN, '{"', "\x1f\x8b"]))
def test_any_bytes_are_a_workload_or_an_error(tmp_path: Path, data: bytes, head: str) -> None:
    path = tmp_path / "fuzz"
    path.write_bytes(head.encode("latin-1") + data)
    try:
        assert len(load_workload(path)) > 0
    except WorkloadError as error:
        assert str(path) in str(error)


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no published traces in {TRACES}")
@pytest.mark.parametrize(
    ("name", "rows", "rate"),
    [
        ("mooncake_conversation.jsonl.gz", 12_031, 3.40),
        ("mooncake_synthetic.jsonl.gz", 3_993, 3.91),
        ("azure2023_conv.csv.gz", 19_366, 5.53),
        ("servegen_deepseek_r1_1h_synth.csv.gz", 71_334, 19.8),
    ],
)
def test_published_traces(name: str, rows: int, rate: float) -> None:
    workload = load_workload(TRACES / name)
    assert len(workload) == rows
    assert workload.rate == pytest.approx(rate, rel=0.01)
    workload.scaled(length=1 / 16)
