"""The fidelity check's own arithmetic: what is compared with what, and what counts as agreement."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pd.config import Config
from pd.cost import library
from pd.cost.load import StepLoad
from pd.cost.sharing import Sharing
from pd.sim.build import Hardware, cell_spec
from pd.workload.arrival import Arrival, Workload
from tests.support.sim_cells import make_spec

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

import check_fidelity  # noqa: E402
from fidelity.agreement import (  # noqa: E402
    STATISTICS,
    Times,
    compare,
    ranking,
    summary,
    table,
    within,
)
from fidelity.contention import POINTS, fit, memory_shares  # noqa: E402
from fidelity.loads import CHUNK, LONGEST, capacity, chosen, loads  # noqa: E402
from fidelity.overheads import Overheads, PerStep  # noqa: E402
from fidelity.replay import ALONE, front_s, predict, warm_up  # noqa: E402

COST = library.find("smollm2-135m-cpu-1-thread")


def times(*ttft_s: float, tpot_s: float | None = 0.02) -> list[Times]:
    return [Times(float(i), 100, 20, each, tpot_s) for i, each in enumerate(ttft_s)]


def row(cell: str, workload: str, measured: float, simulated: float) -> dict[str, Any]:
    figures = compare(times(measured), times(simulated))
    return {"cell": cell, "workload": workload, "below": True, "figures": figures}


def test_errors_are_relative_to_what_was_measured() -> None:
    figures = compare(times(0.1, 0.3), times(0.1, 0.2, tpot_s=0.025))
    assert figures["ttft_s"]["mean"]["error"] == pytest.approx(-0.25)
    assert figures["ttft_s"]["p99"] == pytest.approx(
        {"measured_s": 0.3, "simulated_s": 0.2, "error": -1 / 3}
    )
    assert figures["tpot_s"]["p50"]["error"] == pytest.approx(0.25)
    assert within(figures) == {"ttft_s": 1, "tpot_s": 0}


def test_requests_of_one_token_have_no_tpot() -> None:
    figures = compare(times(0.1, tpot_s=None), times(0.1, tpot_s=None))
    assert math.isnan(figures["tpot_s"]["mean"]["error"])
    assert figures["ttft_s"]["mean"]["error"] == 0.0


def test_other_requests_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not the same"):
        compare(times(0.1, 0.2), times(0.1))
    with pytest.raises(ValueError, match="not the same"):
        compare(times(0.1), [replace(times(0.1)[0], num_output=3)])


def test_the_better_cell_is_agreed_on_or_not() -> None:
    rows = [row("a", "one", 0.1, 0.1), row("b", "one", 0.2, 0.15),  # a is better: agreed
            row("a", "two", 0.1, 0.3), row("b", "two", 0.2, 0.2),  # a is better: missed
            row("a", "three", 0.1, 0.1), row("b", "three", 0.101, 0.3)]  # fmt: skip
    ranks = ranking(rows)
    # TTFT has three figures a workload; TPOT is level everywhere.
    assert (ranks["compared"], ranks["agree"], ranks["level"]) == (6, 3, 12)
    assert {each["workload"] for each in ranks["wrong"]} == {"two"}
    assert ranks["wrong"][0]["measured"] == pytest.approx(0.5)
    assert ranks["wrong"][0]["simulated"] == pytest.approx(1.5)


def test_summary_and_table_tell_every_error() -> None:
    rows = [row("a", "one", 0.1, 0.11), {**row("a", "two", 0.1, 0.2), "below": False}]
    found = summary(rows)
    assert found["below saturation"]["ttft_s"]["largest_error"] == pytest.approx(0.1)
    assert found["below saturation"]["ttft_s"]["within_target"] == len(STATISTICS)
    assert found["near saturation"]["ttft_s"]["within_target"] == 0
    headings, lines = table(rows)
    assert [len(line) for line in lines] == [len(headings)] * 2
    assert lines[1][:3] == ["two", "a", "100 +100%"]


def test_ten_loads_without_any_trace(tmp_path: Path) -> None:
    made = loads(tmp_path)
    assert len({each.name for each in made}) == 10
    assert sum(not each.below for each in made) == 2
    for each in made:
        workload = each.make(COST, 20.0)
        again = each.make(COST, 20.0)
        assert workload.arrivals == again.arrivals
        assert 8 <= len(workload) <= 200
        assert all(a.num_prompt + a.num_output <= LONGEST for a in workload)
    assert [each.name for each in chosen(["near"], made)] == [e.name for e in made if not e.below]
    with pytest.raises(SystemExit, match="no workload begins with nothing"):
        chosen(["nothing"], made)


def test_capacity_is_that_of_the_busier_node() -> None:
    assert capacity(COST, 900, 1) == pytest.approx(1 / COST.prefill_s(900, chunk=CHUNK))
    assert capacity(COST, 16, 400) < 0.3 * capacity(COST, 16, 100)


def test_a_simulated_cell_is_warm_when_the_workload_begins() -> None:
    arrivals = [Arrival(0.0, 100, 5), Arrival(0.4, 60, 3)]
    found = predict(make_spec(1, 1), Workload("two", arrivals))
    assert [(each.time_s, each.num_prompt) for each in found] == [
        (pytest.approx(0.0, abs=1e-9), 100), (pytest.approx(0.4), 60),
    ]  # fmt: skip
    assert found[0].ttft_s == pytest.approx(0.021, rel=0.1)


def test_a_simulated_cpu_node_has_the_limits_of_one() -> None:
    spec = cell_spec(Config.from_dict(None, pool_dram_gib=0), Hardware(COST))
    for group in spec.groups:
        assert group.max_num_batched_tokens == CHUNK
        assert (
            group.num_blocks * group.block_bytes
            <= 2**30
            < ((group.num_blocks + 1) * group.block_bytes)
        )


def test_a_sharing_is_found_in_times_that_have_one() -> None:
    shares = memory_shares(COST)
    true = Sharing(0.12, 0.3)
    alone = {name: COST.step_s(point.load) for name, point in POINTS.items()}
    measured = {
        other: {
            name: alone[name] * true.slowness(shares[name], [shares[other]] if other else [])
            for name in POINTS
        }
        for other in ("", *POINTS)
    }
    found, error = fit(measured, shares)
    assert (found.beside, found.bus) == pytest.approx((0.12, 0.3))
    assert error == pytest.approx(0.0, abs=1e-9)
    faster = {
        other: {name: (0.9 if other else 1.0) * alone[name] for name in POINTS}
        for other in measured
    }
    assert fit(faster, shares)[0] == Sharing(0.0, 0.0)


def test_figures_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "fidelity.json"
    assert check_fidelity.stored(path) == {}
    path.write_text(json.dumps({"rows": [{"cell": "a", "workload": "one", "measured": {"x": 1}}]}))
    assert check_fidelity.stored(path) == {"a": {"one": {"x": 1}}}


def test_the_picture_has_both_cells(tmp_path: Path) -> None:
    path = tmp_path / "fidelity.svg"
    rows = [row(cell, "one", 0.1, 0.11) for cell in check_fidelity.COLOURS]
    check_fidelity.picture(rows, path)
    text = path.read_text()
    assert all(f"{cell}, p99" in text for cell in check_fidelity.COLOURS)


def test_overheads_are_so_much_a_step_and_a_token() -> None:
    found = Overheads.load(ROOT / "benchmarks" / "token_path.json")
    assert 0 < found.loop.token_s < found.loop.step_s < 0.001
    assert 0 < found.front.token_s < found.front.step_s < 0.001
    slower = found.on(COST).step_s(StepLoad.decode(4, 400)) - COST.step_s(StepLoad.decode(4, 400))
    assert slower == pytest.approx(found.loop.step_s + 4 * found.loop.token_s)
    busy = found.background(50, 400) - found.background(0, 0)
    assert busy == pytest.approx(50 * found.front.step_s + 400 * found.front.token_s)
    assert found.background(5000, 40000) == 0.5, "a step leaves no more than half a core"
    assert PerStep.through(1.0, 32.0) == PerStep(0.0, 1.0)


def test_what_http_adds_is_what_short_requests_take_longer() -> None:
    spec = make_spec(1, 1)
    simulated = [time for each in ALONE for time in predict(spec, Workload("alone", [each]))]
    later = [replace(each, ttft_s=(each.ttft_s or 0.0) + 0.004) for each in simulated]
    assert front_s(spec, later) == pytest.approx(0.004)
    assert front_s(spec, [replace(each, ttft_s=0.0) for each in simulated]) == 0.0


def test_the_warm_up_fills_the_memory_with_prompts_unlike_each_other() -> None:
    warm = warm_up(kv_tokens=8000, num_nodes=2)
    assert warm.num_prompt_tokens >= 2 * 8000
    assert len({each.num_prompt for each in warm}) == len(warm)
