"""A node that becomes ten times as slow is routed around, and trusted again when it is well."""

from __future__ import annotations

from typing import Any

from sim_cells import make_spec, random_workload

from pd.sim.cell import SimCell
from pd.sim.spec import Failure


def run(node: str, **options: Any) -> tuple[SimCell, list[tuple[float, str]], dict[str, int]]:
    """The cell after its requests, what it decided, and how many prompts went where meanwhile."""
    decided: list[tuple[float, str]] = []
    places: dict[str, int] = {}

    def note(now: float, kind: str, about: str, more: Any) -> None:
        if kind == "decided":
            decided.append((now, about))
        elif kind == "place" and 15.0 < now < 40.0:
            for each in (more["prefill"], more["decode"]):
                places[each] = places.get(each, 0) + 1

    failure = Failure(10.0, node, "slow", for_s=50.0, factor=10.0)
    settings = {"slow_node_retry_s": 15.0, "routing": "round_robin", **options}
    spec = make_spec(3, 3, failures=(failure,), options=settings)
    cell = SimCell(spec, on_note=note)
    for arrival in random_workload(4, count=500, rate=4.0).arrivals:
        cell.queue.at(arrival.time_s, cell.gateway.submit, arrival)
    cell.queue.run_until(200.0)
    assert not cell.gateway.running
    return cell, decided, places


def test_a_slow_node_is_left_alone_and_then_used_again() -> None:
    for node in ("prefill-1", "decode-2"):
        cell, decided, places = run(node)
        words = [about for _, about in decided]
        assert words[0] == f"{node} gets no new work"
        assert words[-1] == f"{node} gets work again"
        assert f"{node} is tried again" in words
        opened, closed = decided[0][0], decided[-1][0]
        assert 10.0 < opened < 20.0 and closed > 60.0
        kind = node.split("-")[0]
        others = [count for each, count in places.items() if each.startswith(kind) and each != node]
        assert places.get(node, 0) <= 6 < min(others)
        assert {row["state"] for row in cell.coordinator.status(cell.now).nodes} == {"ready"}


def test_it_can_be_switched_off() -> None:
    _, decided, places = run("prefill-1", slow_node_factor=0.0)
    assert not decided
    assert places["prefill-1"] > 20
