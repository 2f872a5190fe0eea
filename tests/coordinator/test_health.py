"""Slow nodes as the coordinator sees and shows them."""

from __future__ import annotations

import pytest
from coordinating import Driver

from pd.messages import StartPrefill
from pd.types import Role

FAST_S, SLOW_S = 0.01, 0.2


class Steps(Driver):
    """Nodes that report steps."""

    def __init__(self, *roles: tuple[str, Role]) -> None:
        super().__init__(*roles)
        self.steps: dict[str, int] = {}
        self.tick()

    def step(self, node_id: str, step_s: float, count: int = 1) -> None:
        for _ in range(count):
            self.steps[node_id] = self.steps.get(node_id, 0) + 1
            self.snapshot(node_id, steps=self.steps[node_id], step_s=step_s, step_seqs=4,
                          step_context=100)  # fmt: skip

    def states(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self.coordinator.status(self.now).nodes}  # type: ignore[misc]


def test_prompts_go_round_a_slow_node_until_it_is_well() -> None:
    cell = Steps(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))
    for _ in range(20):
        cell.step("d0", FAST_S)
        cell.step("d1", FAST_S)
    cell.step("d0", SLOW_S, count=5)
    assert cell.states() == {"p0": "ready", "d0": "slow", "d1": "ready"}
    cell.clear()
    for number in range(4):
        cell.submit(f"r{number}")
    assert {start.decode for _, start in cell.sent(StartPrefill)} == {"d1"}
    cell.tick(31.0)
    assert cell.states()["d0"] == "trying"
    cell.step("d0", FAST_S, count=3)
    assert cell.states()["d0"] == "ready"


@pytest.mark.parametrize("count", [1, 2])
def test_work_goes_to_slow_nodes_where_there_are_no_others(count: int) -> None:
    nodes = [f"d{i}" for i in range(count)]
    cell = Steps(("p0", "prefill"), *((each, "decode") for each in nodes))
    for each in nodes * 20:
        cell.step(each, FAST_S)
    for each in nodes:
        cell.step(each, SLOW_S, count=8)
    cell.clear()
    cell.submit("r")
    assert len(cell.sent(StartPrefill)) == 1
    if count == 1:
        assert cell.states()["d0"] == "ready", "nobody could do its work"
