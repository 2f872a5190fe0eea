"""A cell that has lost all nodes of a phase: those of the other do both, until some are back."""

from __future__ import annotations

from typing import Any

import pytest
from coordinating import Driver

from pd.messages import ChangeRole, Interrupted, SetRole, StartPrefill
from pd.outbox import Decided
from pd.types import Role

AFTER_S = 10.0


def make(*roles: tuple[str, Role], **limits: Any) -> Driver:
    return Driver(*roles, **{"stand_in_s": AFTER_S, **limits})


def roles(cell: Driver) -> dict[str, Role]:
    return {node.id: node.hello.role for node in cell.coordinator.members.nodes.values()}


def test_streams_go_on_where_no_node_of_the_phase_is_left() -> None:
    cell = make(("p0", "prefill"), ("d0", "decode"))
    work = cell.submit(max_tokens=8)
    cell.clear()
    cell.tick()
    cell.lose("d0")
    ((_, interrupted),) = cell.sent(Interrupted)
    assert interrupted.indices == work.indices
    cell.submit(attempt=1, output=(5,))
    cell.tick(AFTER_S - 1.0)
    assert roles(cell) == {"p0": "prefill"} and not cell.sent(StartPrefill)
    assert not cell.coordinator.status(cell.now).ready
    cell.tick(3.0)
    assert roles(cell) == {"p0": "mixed"} and cell.coordinator.status(cell.now).ready
    assert set(cell.sent(SetRole)) == {("p0", SetRole("mixed", False))}
    ((to, start),) = cell.sent(StartPrefill)
    assert (to, start.decode, start.work.attempt) == ("p0", "p0", 1)


@pytest.mark.parametrize("left, lost", [("prefill", "decode"), ("decode", "prefill")])
def test_all_stand_in_until_one_that_can_do_it_has_been_back_as_long(
    left: Role, lost: Role
) -> None:
    cell = make(("a", left), ("b", left), ("c", lost))
    cell.lose("c")
    cell.tick(3 * AFTER_S)
    assert roles(cell) == {"a": "mixed", "b": "mixed"}, "not back, since the other could do it all"
    cell.join("c", lost)
    cell.tick(AFTER_S - 2.0)
    assert roles(cell)["a"] == roles(cell)["b"] == "mixed"
    cell.lose("c")  # for a moment: it counts anew
    cell.tick(2.0)
    cell.join("c", lost)
    cell.tick(AFTER_S - 2.0)
    assert roles(cell)["a"] == "mixed"
    cell.tick(4.0)
    assert roles(cell) == {"a": left, "b": left, "c": lost}
    told = dict(cell.sent(SetRole))
    assert told["a"].role == told["b"].role == left


def test_it_is_told_why() -> None:
    cell = make(("p0", "prefill"), ("d0", "decode"))
    cell.tick()
    cell.lose("d0")
    while cell.coordinator.members.missing():
        cell.coordinator.drain()
        cell.tick(1.0)
    (decided,) = [e for e in cell.coordinator.drain() if isinstance(e, Decided)]
    assert decided.what == "p0 becomes a mixed node"
    assert decided.reason == "no decode node is up, for 10 s now"


def test_a_role_that_somebody_gave_it_since_stays() -> None:
    cell = make(("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"))
    cell.lose("d0")
    cell.tick(2 * AFTER_S)
    cell.hear("g", ChangeRole(1, "p0", "decode", True))
    cell.tick(2 * AFTER_S)
    assert roles(cell) == {"p0": "decode", "p1": "prefill"}


def test_who_was_lost_standing_in_comes_back_so_and_then_takes_its_role() -> None:
    cell = make(("p0", "prefill"), ("d0", "decode"))
    cell.lose("d0")
    cell.tick(2 * AFTER_S)
    cell.lose("p0")
    cell.join("p0", "prefill")
    assert roles(cell) == {"p0": "mixed"}
    cell.join("d0", "decode")
    cell.tick(2 * AFTER_S)
    assert roles(cell) == {"p0": "prefill", "d0": "decode"}


def test_without_nodes_or_without_the_option_nothing_changes() -> None:
    cell = make(("p0", "prefill"), ("d0", "decode"), stand_in_s=0.0)
    cell.lose("d0")
    cell.tick(100.0)
    assert roles(cell) == {"p0": "prefill"}
    cell = make(("d0", "decode"))
    cell.lose("d0")
    cell.tick(100.0)
    assert roles(cell) == {}
