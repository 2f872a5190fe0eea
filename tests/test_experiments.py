"""The simulated experiments' pure parts, and each on a very small scale."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import bench_overload  # noqa: E402
import remeasure  # noqa: E402
import sim_balance  # noqa: E402
import sim_fairness  # noqa: E402
import sim_overload  # noqa: E402
from benchlib.simulated import Window, count, steady  # noqa: E402

from pd.cost import library  # noqa: E402
from pd.types import SLO  # noqa: E402
from pd.workload.arrival import Arrival, Workload  # noqa: E402
from pd.workload.outcome import Outcome  # noqa: E402


def outcome(at_s: float, ttft_s: float, status: str = "ok") -> Outcome:
    return Outcome(Arrival(at_s, 8, 4), ttft_s, 0.01, 4, status, at_s + 1)  # type: ignore[arg-type]


def test_what_has_not_ended_is_a_miss_and_what_is_outside_does_not_count() -> None:
    workload = Workload("w", [Arrival(float(i), 8, 4) for i in range(10)])
    ended = [outcome(1, 0.1), outcome(2, 0.1), outcome(3, 9.0), outcome(4, 0.1, "rejected")]
    counted = count(workload, ended, SLO(1.0, 0.1), Window(2.0, 7.0))
    assert (counted.arrived, counted.ok, counted.rejected, counted.met) == (5, 2, 1, 1)
    assert counted.goodput == pytest.approx(0.2)
    assert counted.attainment == pytest.approx(0.2)


def test_a_quiet_beginning_comes_before_the_load() -> None:
    workload = sim_overload.load(2.0, 40.0, 20.0)
    quiet = sum(each.time_s < sim_overload.WARM_S for each in workload)
    assert 5 < quiet < 50 and len(workload) - quiet > 300
    assert workload.arrivals[-1].time_s < 20.0


def test_shares_are_of_the_best() -> None:
    rows = sim_overload.with_shares([{"goodput": 5.0}, {"goodput": 10.0}, {"goodput": 0.0}])
    assert [row["of_peak"] for row in rows] == [0.5, 1.0, 0.0]


def test_the_widest_gap_is_that_of_any_span() -> None:
    served = [(0.0, "a", 5.0), (1.0, "b", 9.0), (2.0, "b", 3.0), (3.0, "a", 2.0)]
    assert sim_fairness.widest_gap(served) == 12.0
    assert sim_fairness.widest_gap([(float(i), "ab"[i % 2], 1.0) for i in range(100)]) == 1.0
    assert sim_fairness.widest_gap([]) == 0.0


def test_a_change_that_is_undone_next_is_a_reversal() -> None:
    def said(*what: str) -> list[tuple[float, str, str]]:
        return [(float(i), each, "") for i, each in enumerate(what)]

    there = "prefill-0 becomes a decode node"
    assert sim_balance.reversals(said(there, "prefill-0 becomes a prefill node")) == 1
    assert sim_balance.reversals(said(there, "prefill-0 becomes a mixed node")) == 0
    assert sim_balance.reversals(said(there, "prefill-1 becomes a decode node")) == 0


def test_a_moving_mix_moves() -> None:
    load = sim_balance.moving((4.0, 4.0), 4.0, 2)
    halves = [load.window(0, 120), load.window(120, 240)]
    means = [each.num_prompt_tokens / each.num_output_tokens for each in halves]
    assert means[0] > 20 * means[1]


def test_growth_is_from_the_first_quarter_to_the_last() -> None:
    assert bench_overload.growth_mib([10.0] * 8) == 0.0
    assert bench_overload.growth_mib([10.0, 10.0, 11.0, 12.0, 13.0, 13.0, 14.0, 14.0]) == 4.0


def test_an_overload_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, drawing = tmp_path / "o.json", tmp_path / "o.svg"
    arguments = ["--cells", "2P2D", "--admissions", "predicted", "--factors", "3", "--seconds"]
    places = ["--json", str(report), "--picture", str(drawing)]
    monkeypatch.setattr(
        sys, "argv", ["sim_overload.py", *arguments, "23", "--start", "16", *places]
    )
    monkeypatch.setattr(sim_overload, "capacity", lambda *args: 16.0)
    assert sim_overload.main() == 0
    (row,) = json.loads(report.read_text())["rows"]
    assert row["rejected"] > 0 and row["goodput"] > 8.0
    assert row["retry_after_s"]["missing"] == 0 and row["retry_after_s"]["least"] >= 1.0
    assert drawing.read_text().startswith("<svg")


def test_who_asks_little_waits_less_with_fair_shares() -> None:
    cost = library.find(sim_fairness.COST)
    rows = {row["setting"]: row for row in sim_fairness.tenants(cost, 10.0, 1, 512)}
    assert rows["vtc"]["mean_s"] < 0.8 * rows["none"]["mean_s"]
    assert rows["alone"]["of_alone"] == 1.0
    # What remains is to wait for the step that runs.
    assert rows["vtc"]["more_s"] < rows["vtc"]["full_step_s"]


def test_the_service_gap_is_within_the_bound() -> None:
    row = sim_fairness.service_gap(library.find(sim_fairness.COST), 15.0, "vtc")
    assert 0 < row["gap_tokens"] <= row["bound_tokens"]
    assert len(row["light_ahead"]) > 5


def test_service_is_counted_when_it_is_given() -> None:
    each = Outcome(Arrival(1.0, 10, 3, tenant="light"), 0.5, 0.25, 3, "ok", 2.0)
    assert sim_fairness.service([each], outputs=False) == [(1.5, "light", 10.0)]
    served = sim_fairness.service([each], outputs=True)
    assert [at for at, _, _ in served] == [1.5, 1.5, 1.75, 2.0]
    assert sum(amount for _, _, amount in served) == 16.0
    assert sim_fairness.course(served) == [(1, 14.0), (2, 16.0)]


def test_a_load_has_the_rate_it_was_given() -> None:
    assert steady(50.0, 40.0).rate == pytest.approx(50.0, rel=0.1)


def test_kept_figures_can_be_made_again() -> None:
    """Their commands are of scripts, and of options of these, that there are."""
    runs = remeasure.kept(ROOT / "benchmarks")
    assert {"goodput", "overload", "sim_routing"} <= runs.keys()
    for name, run in runs.items():
        script, *words = remeasure.arguments(run["command"])[1:]
        text = (ROOT / script).read_text()
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        assert all(f'"{option}"' in text for option in options), (name, run["command"])


def test_a_command_of_no_script_is_refused() -> None:
    with pytest.raises(SystemExit, match="no command of a script"):
        remeasure.arguments("python scripts/bench_nothing.py --json x")
