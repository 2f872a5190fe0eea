"""Nodes of one host: how far a neighbour's steps make one's own longer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pd.cost.load import StepLoad
from pd.cost.sharing import Sharing, memory_share
from pd.errors import ConfigError
from pd.sim.cell import SimCell
from pd.sim.host import SimHost
from pd.sim.simulate import simulate
from pd.workload.arrival import Arrival, Workload
from tests.support.sim_cells import COST, check_idle, make_spec, random_workload

SHARING = Sharing(beside=0.1, bus=0.4)


def alone_and_beside(*arrivals: Arrival, sharing: Sharing = SHARING) -> list[list[float]]:
    """(TTFT, TPOT) of each request on two mixed nodes: on a host each, and on one."""
    spec = make_spec(0, 0, 2, options={"disaggregate": "never", "routing": "round_robin"})
    found = []
    for each in (spec, replace(spec, sharing=sharing)):
        outcomes = simulate(each, Workload("two", arrivals)).outcomes
        ordered = sorted(outcomes, key=lambda each: arrivals.index(each.arrival))
        found += [
            [each.ttft_s or 0.0 for each in ordered],
            [each.tpot_s or 0.0 for each in ordered],
        ]
    return found


def test_memory_share_is_that_of_a_step_of_one_token() -> None:
    assert memory_share(COST, StepLoad.decode(1, 1)) == pytest.approx(1.0, abs=0.01)
    assert memory_share(COST, StepLoad.chunk(500)) == pytest.approx(0.0101 / 0.06)
    assert memory_share(COST, StepLoad()) == 0.0


def test_who_idles_costs_nothing() -> None:
    assert SHARING.slowness(1.0, []) == SHARING.slowness(1.0, [0.0, 0.0]) == 1.0
    assert SHARING.slowness(1.0, [0.0, 0.5]) == pytest.approx(1.3)
    assert SHARING.slowness(0.5, [0.5, 0.5]) == pytest.approx(1.25)


def test_neighbours_are_told_and_only_of_news() -> None:
    told: list[str] = []
    host = SimHost(SHARING)
    for name in ("a", "b"):
        host.join(name, lambda name=name: told.append(name))  # type: ignore[misc]
    host.runs("a", 1.0)
    assert not told  # b idles
    host.runs("b", 0.5)
    host.runs("b", 0.499)  # nearly as before
    assert told == ["a"]
    assert host.slowness("a") == pytest.approx(1.3)
    host.runs("b", 0.0)
    assert told == ["a", "a"] and host.slowness("a") == 1.0


def test_others_are_on_the_core_that_was_idle_last() -> None:
    host = SimHost(Sharing(background=0.2))
    for name in ("a", "b"):
        host.join(name, lambda: None)
    host.runs("a", 0.5)
    assert host.slowness("a") == 1.0, "they have the other core"
    host.runs("b", 0.5)
    assert (host.slowness("a"), host.slowness("b")) == (1.0, pytest.approx(1.25))
    host.runs("b", 0.9)  # its next step
    assert (host.slowness("a"), host.slowness("b")) == (1.0, pytest.approx(1.25))
    host.runs("a", 0.0)
    assert host.slowness("b") == 1.0
    host.runs("a", 0.5)
    assert (host.slowness("a"), host.slowness("b")) == (pytest.approx(1.25), 1.0)


def test_two_decoding_nodes_slow_each_other() -> None:
    pair = Arrival(0.0, 16, 101), Arrival(0.0, 16, 101)
    _, alone, _, beside = alone_and_beside(*pair)
    assert beside == pytest.approx([1.5 * each for each in alone], rel=0.02)


def test_the_rest_of_a_run_is_faster_once_the_neighbour_is_done() -> None:
    pair = Arrival(0.0, 16, 101), Arrival(0.0, 16, 51)
    _, alone, _, beside = alone_and_beside(*pair)
    # Half of the first one's tokens come at the slow pace.
    assert beside[0] == pytest.approx(1.25 * alone[0], rel=0.02)
    assert beside[1] == pytest.approx(1.5 * alone[1], rel=0.02)


def test_a_long_step_is_stretched_from_when_the_neighbour_begins() -> None:
    """A chunk of 500 tokens takes 60 ms alone; 30 ms later the other one begins."""
    only_bus = Sharing(bus=60 / 10.1)  # such a chunk takes twice as long beside one of share 1
    pair = Arrival(0.0, 500, 1), Arrival(0.03, 16, 200)
    alone, _, beside, _ = alone_and_beside(*pair, sharing=only_bus)
    assert beside[0] - alone[0] == pytest.approx(0.03, rel=0.15)


@pytest.mark.parametrize("cell", [{"mixed": 3, "prefill": 0, "decode": 0}, {"decode": 2}])
def test_a_crowded_cell_serves_all_the_same(cell: dict[str, int]) -> None:
    workload = random_workload(3)
    quiet = make_spec(**cell)
    crowded = replace(quiet, sharing=SHARING)
    runs = [simulate(spec, workload) for spec in (quiet, crowded, crowded)]
    assert runs[1].outcomes == runs[2].outcomes
    assert all(each.status == "ok" for each in runs[1].outcomes)
    before, after = (run.summary().tpot_s.mean for run in runs[:2])
    assert before < after < 2.5 * before


def test_a_killed_neighbour_costs_nothing_any_more() -> None:
    spec = replace(make_spec(1, 2), sharing=SHARING)
    cell = SimCell(spec)
    for _ in range(4):
        cell.gateway.submit(Arrival(0.0, 64, 400))
    cell.queue.run_until(1.0)
    cell.kill("decode-1")
    cell.kill("prefill-0")
    cell.queue.run_until(1.2)
    host = cell._host("host-0")
    assert host is not None and host.slowness("decode-0") == 1.0
    cell.queue.run_until(200.0)
    check_idle(cell)


def test_nodes_of_two_hosts_cost_each_other_nothing() -> None:
    spec = make_spec(0, 0, 2, group={"per_host": 1})
    crowded = replace(spec, sharing=SHARING)
    workload = random_workload(5)
    assert simulate(spec, workload).outcomes == simulate(crowded, workload).outcomes


def test_a_sharing_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"
    path.write_text(json.dumps({"sharing": {"beside": 0.1, "bus": 0.4}}))
    assert Sharing.load(path) == SHARING
    path.write_text("{}")
    with pytest.raises(ConfigError, match="has no 'sharing'"):
        Sharing.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        Sharing.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="bus"):
        Sharing(bus=-1.0)
