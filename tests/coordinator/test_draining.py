"""Nodes whose processes are to end: no new work, and what they have ends there or moves."""

from __future__ import annotations

import pytest
from coordinating import Driver

from pd.messages import SUPERVISOR, Drain, Draining, Interrupted, Reserve, StartPrefill, UsePool
from pd.types import NodeSnapshot


@pytest.fixture
def cell() -> Driver:
    return Driver(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))


def ask(cell: Driver, node_id: str, move_s: float = 5.0) -> str:
    """Why the node has to stay; empty if it does not."""
    cell.hear(SUPERVISOR, Drain(3, node_id, move_s))
    ((to, answer),) = cell.sent(Draining)
    assert (to, answer.call) == (SUPERVISOR, 3)
    return answer.error


def state(cell: Driver, node_id: str) -> object:
    rows = {row["id"]: row for row in cell.coordinator.status(cell.now).nodes}
    return rows[node_id]["state"]


def test_nothing_new_goes_to_a_node_that_leaves(cell: Driver) -> None:
    assert ask(cell, "d0") == ""
    for i in range(4):
        cell.submit(f"r{i}")
    assert [to for to, _ in cell.sent(Reserve)] == ["d1"] * 4
    assert state(cell, "d0") == "leaving"


def test_the_last_of_its_kind_stays(cell: Driver) -> None:
    assert "p0 has to stay: without it no prefill node is up" in ask(cell, "p0")
    assert ask(cell, "d0") == "" and "no decode node" in ask(cell, "d1")
    assert "there is no node 'd7'" in ask(cell, "d7")
    assert state(cell, "p0") == state(cell, "d1") == "ready"
    assert ask(cell, "d0") == "", "asked again, it is as it was"


def test_it_is_empty_once_it_has_had_nothing_for_a_while(cell: Driver) -> None:
    ask(cell, "d0")
    cell.snapshot("d0", num_running=1)
    cell.tick(3.0)
    assert state(cell, "d0") == "leaving"
    cell.snapshot("d0")
    assert state(cell, "d0") == "leaving", "blocks may still be on their way"
    cell.tick(3.0)
    assert state(cell, "d0") == "drained"


def test_work_on_its_way_there_counts(cell: Driver) -> None:
    cell.submit()
    ((to, reserve),) = cell.sent(Reserve)
    ask(cell, to)
    node = cell.coordinator.members.nodes[to]
    cell.coordinator.members.on_snapshot(to, NodeSnapshot(to, "decode", node.epoch))
    cell.tick(3.0)
    assert state(cell, to) == "leaving", "it has not heard of that hand-off yet"
    cell.snapshot(to, last_transfer_id=reserve.transfer_id)
    cell.tick(3.0)
    assert state(cell, to) == "drained"


def test_what_has_not_ended_in_time_goes_on_elsewhere(cell: Driver) -> None:
    work = cell.submit()
    ((to, _),) = cell.sent(Reserve)
    other = {"d0": "d1", "d1": "d0"}[to]
    cell.snapshot(to, num_running=1)
    ask(cell, to, move_s=5.0)
    cell.tick(4.0)
    assert not cell.sent(Interrupted)
    cell.tick(2.0)
    interrupted = cell.sent(Interrupted)
    assert {message.request_id for _, message in interrupted} == {work.request.request_id}
    assert "is to be removed" in interrupted[0][1].reason
    cell.sent(StartPrefill)
    cell.submit(attempt=1, output=(5,))
    assert [to for to, _ in cell.sent(Reserve)] == [other]


def test_prompts_of_a_prefill_node_move_only_without_a_token() -> None:
    cell = Driver(("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"))
    cell.submit()
    ((to, _),) = cell.sent(StartPrefill)
    ask(cell, to, move_s=0.0)
    cell.tick(0.0)
    ((_, interrupted),) = cell.sent(Interrupted)
    assert interrupted.unstarted_only


def test_a_later_node_of_its_name_has_its_own_role(cell: Driver) -> None:
    assert cell.coordinator.change_role("d0", "mixed", migrate=True, now=cell.now) == ""
    assert ask(cell, "d0") == ""
    assert "there is no node 'd0' that serves" in cell.coordinator.change_role(
        "d0", "decode", migrate=True, now=cell.now
    )
    cell.lose("d0")
    cell.join("d0", "decode")
    assert cell.coordinator.members.nodes["d0"].hello.role == "decode"
    assert state(cell, "d0") == "ready"


def test_a_pool_that_leaves_is_put_to_no_more(cell: Driver) -> None:
    cell.join("pool-0", "pool")
    cell.clear()
    assert ask(cell, "pool-0") == ""
    assert {(to, use.id) for to, use in cell.sent(UsePool)} == {
        ("p0", ""), ("d0", ""), ("d1", "")
    }  # fmt: skip
