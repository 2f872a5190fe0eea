"""A whole search, small: the winner is simulated, served and reported as it was found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sim_cells import random_workload
from tuning import SMALL, make_problem

from pd.cli.load import load_config
from pd.cli.main import main
from pd.errors import ConfigError
from pd.sim.build import Hardware, cell_spec
from pd.sim.simulate import simulate
from pd.tune.portrait import STAGES, portray
from pd.tune.search import Search
from pd.tune.workers import Workers
from pd.types import SLO

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one `pd tune`."""
    folder = tmp_path_factory.mktemp("tuned")
    SMALL.save(folder / "g.json")
    code = main([
        "tune", "--cost", str(folder / "g.json"), "--gpus", "3", "--prompt", "100-900",
        "--output", "20", "--requests", "240", "--slo-ttft-ms", "500", "--slo-tpot-ms", "60",
        "--minutes", "1", "--jobs", "1", "--families", "mixed,split", "--routing", "cache_aware",
        "--block-size", "16", "--max-num-seqs", "256", "--prefill-order", "fcfs",
        "--out", str(folder),
    ])  # fmt: skip
    assert code == 0
    return folder


def test_the_winner_holds_its_rate_when_it_is_served(tuned: Path) -> None:
    result = json.loads((tuned / "result.json").read_text())
    best = result["best"]
    assert best["goodput"] > 0 and best["gpus"] == 3
    assert best["goodput"] == max(each["goodput"] for each in result["ranked"]
                                  if each["rung"] == best["rung"])  # fmt: skip
    config = load_config(str(tuned / "config.yaml"), {})
    assert (config.slo.ttft_ms, config.slo.tpot_ms) == (500, 60)
    from pd.workload.lengths import parse_lengths
    from pd.workload.spec import WorkloadSpec

    spec = WorkloadSpec(
        prompts=parse_lengths("100-900"), outputs=parse_lengths("20"), num_requests=240
    )
    workload = spec.make().first(best["requests"])
    cell = cell_spec(config, Hardware(SMALL))

    def attainment(rate: float) -> float:
        return simulate(cell, workload.at_rate(rate)).summary(SLO(0.5, 0.06)).attainment

    assert attainment(best["goodput"]) >= 0.9
    assert best["does_not_hold"] is None or attainment(best["does_not_hold"]) < 0.9


def test_the_page_is_well_formed_and_loads_nothing(tuned: Path) -> None:
    page = (tuned / "report.html").read_text()
    assert "<script" not in page and "prefers-color-scheme: dark" in page
    assert not re.search(r'(src|href)="', page) and "url(" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) >= 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page)


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    SMALL.save(tmp_path / "g.json")
    base = ["tune", "--cost", str(tmp_path / "g.json"), "--gpus", "2", "--out", str(tmp_path)]
    for more, said in [
        ([], "a search needs targets"),
        (["--slo-ttft-ms", "500", "--minutes", "0"], "--minutes must be above 0"),
        (["--slo-ttft-ms", "500", "--families", "x"], "no family 'x'"),
        (["--slo-ttft-ms", "500", "--requests", "3"], "at least 50"),
        (["--slo-ttft-ms", "500", "--goal", "2"], "the goal is a share"),
    ]:
        assert main([*base, *more]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("slo", [SLO(0.001, None), SLO(None, 0.001)])
def test_targets_that_nothing_meets_are_said_to_be_so(slo: SLO) -> None:
    problem = make_problem(slo=slo)
    with Workers(problem, 1) as workers, pytest.raises(ConfigError, match="set later targets"):
        Search(problem, workers, 5.0).run()


def test_a_portrait_accounts_for_the_whole_time() -> None:
    problem = make_problem(workload=random_workload(5, count=240))
    from pd.tune.candidate import Candidate, Group

    split = Candidate.of((Group("prefill", 1, "small"), Group("decode", 2, "small")), {})
    portrait = portray(problem, (split, 100, 3.0))
    assert set(portrait.stages) == set(STAGES) and portrait.stages["decoding"] > 0
    outcomes = portrait.result.outcomes
    lives = [each.end_s - each.arrival.time_s for each in outcomes if each.status == "ok"]
    assert sum(portrait.stages.values()) == pytest.approx(sum(lives) / len(lives), rel=0.05)
    assert {each.role for each in portrait.moments} == {"prefill", "decode"}
    assert all(0 <= each.busy <= 1 for each in portrait.moments)
