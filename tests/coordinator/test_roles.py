"""Nodes that are given another role: who is told what, and what is routed where since."""

from __future__ import annotations

import pytest
from coordinating import Driver

from pd.messages import ChangeRole, Reserve, RoleChanged, SetRole
from pd.types import NodeSnapshot, Role


@pytest.fixture
def cell() -> Driver:
    return Driver(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))


def ask(cell: Driver, node_id: str, role: Role, *, migrate: bool = True) -> str:
    """The coordinator's answer to a gateway that asks; empty if it is done."""
    cell.hear("g", ChangeRole(7, node_id, role, migrate))
    ((to, answer),) = cell.sent(RoleChanged)
    assert (to, answer.call) == ("g", 7)
    return answer.error


def test_work_goes_by_the_new_role_at_once(cell: Driver) -> None:
    assert ask(cell, "d0", "prefill") == ""
    assert cell.sent(SetRole) == [("d0", SetRole("prefill", True))]
    for i in range(4):
        cell.submit(f"r{i}", prompt=tuple(range(100 * i, 100 * i + 10)))
    assert [to for to, _ in cell.sent(Reserve)] == ["d1"] * 4
    rows = {row["id"]: row for row in cell.coordinator.status(cell.now).nodes}
    assert rows["d0"]["role"] == "prefill" and rows["d0"]["state"] == "changing"


def test_a_cell_never_gives_up_what_it_needs(cell: Driver) -> None:
    assert "no prefill node" in ask(cell, "p0", "decode")
    assert "there is no node 'd7'" in ask(cell, "d7", "prefill")
    assert "cannot become 'pool'" in ask(cell, "d0", "pool")
    assert ask(cell, "d0", "prefill") == "" and "no decode node" in ask(cell, "d1", "prefill")
    assert ask(cell, "d1", "mixed") == "" and ask(cell, "p0", "decode") == ""
    assert [(to, told.role) for to, told in cell.sent(SetRole)] == [
        ("d0", "prefill"), ("d1", "mixed"), ("p0", "decode"),
    ]  # fmt: skip


def test_with_a_node_down_only_what_the_others_can_do_without_it() -> None:
    cell = Driver(("p0", "prefill"), ("d0", "decode"))
    cell.lose("p0")
    assert "no decode node" in ask(cell, "d0", "prefill")
    assert ask(cell, "d0", "mixed") == ""


def test_the_role_it_has_needs_nothing(cell: Driver) -> None:
    assert ask(cell, "d0", "decode") == ""
    assert not cell.sent(SetRole)


def test_it_is_told_again_until_it_says_so(cell: Driver) -> None:
    ask(cell, "d0", "prefill")
    cell.sent(SetRole)
    cell.tick(3.0)
    assert len(cell.sent(SetRole)) == 3
    node = cell.coordinator.members.nodes["d0"]
    cell.coordinator.members.on_snapshot(
        "d0", NodeSnapshot("d0", "prefill", node.epoch, num_running=1)
    )
    cell.tick(3.0)
    assert not cell.sent(SetRole)
    assert not node.settled, "it still decodes"
    cell.snapshot("d0")
    assert node.settled


def test_outputs_may_have_time_to_end_before_they_are_moved(cell: Driver) -> None:
    members = cell.coordinator.members

    def change(node_id: str, role: Role) -> None:
        assert not members.change_role(node_id, role, migrate=True, now=cell.now, end_s=5.0)

    def decodes(num_running: int) -> None:
        epoch = members.nodes["d0"].epoch
        snapshot = NodeSnapshot("d0", "prefill", epoch, num_running=num_running)
        members.on_snapshot("d0", snapshot)

    change("d0", "prefill")
    assert cell.sent(SetRole) == [("d0", SetRole("prefill", False))]
    decodes(1)
    cell.tick(4.5)
    assert not cell.sent(SetRole)
    cell.tick(1.0)
    assert cell.sent(SetRole) == [("d0", SetRole("prefill", True))]
    decodes(1)
    cell.tick(30.0)
    assert not cell.sent(SetRole), "it was told once, and has heard it"
    change("d0", "decode")
    change("d0", "prefill")
    cell.clear()
    decodes(0)
    cell.tick(30.0)
    assert not cell.sent(SetRole), "all of them have ended by themselves"
    change("d0", "decode")
    assert cell.sent(SetRole) == [("d0", SetRole("decode", True))], "prompts are moved at once"


def test_a_process_that_takes_its_place_has_the_role_too(cell: Driver) -> None:
    ask(cell, "d0", "prefill", migrate=False)
    cell.lose("d0")
    cell.clear()
    cell.join("d0", "decode")
    assert cell.sent(SetRole) == [("d0", SetRole("prefill", False))]
    assert cell.coordinator.members.nodes["d0"].hello.role == "prefill"
