"""The fleet that routing looks at is what the members say, however they came to say it."""

from __future__ import annotations

from typing import Any

from coordinating import Driver
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pd.messages import Cancel, Peers
from pd.policies.candidate import Candidate, Fleet
from pd.policies.fit import fits
from pd.types import Request, Role, SamplingParams, Work

NODES = st.sampled_from(["a", "b", "c", "d", "e"])
ROLES: st.SearchStrategy[Role] = st.sampled_from(["prefill", "decode", "mixed"])


def parts(fleet: Fleet) -> tuple[Any, ...]:
    """All that routing reads, in its order."""

    def items(nodes: dict[str, Candidate]) -> list[tuple[str, Candidate]]:
        return list(nodes.items())

    return (
        items(fleet.nodes), items(fleet.prefills), items(fleet.mixed),
        {layout: items(nodes) for layout, nodes in fleet.decodes.items()},
        fleet.kinds, fleet.num_prompts, fleet.typical, fleet.measured,
    )  # fmt: skip


def work_of(num_tokens: int) -> Work:
    return Work(Request("w", "g", (1,) * num_tokens, SamplingParams(max_tokens=4)), (0,), (), 0)


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Driver()
        self.count = 0

    @property
    def members(self) -> Any:
        return self.cell.coordinator.members

    @rule(node_id=NODES, role=ROLES, layout=st.integers(1, 2), blocks=st.sampled_from([5, 20]))
    def join(self, node_id: str, role: Role, layout: int, blocks: int) -> None:
        self.cell.join(node_id, role, layout=layout, num_blocks=blocks)

    @precondition(lambda self: self.members.nodes)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.cell.lose(data.draw(st.sampled_from(sorted(self.members.nodes))))

    @precondition(lambda self: self.members.nodes)
    @rule(
        data=st.data(), rate=st.sampled_from([0.0, 900.0, 1100.0]), fetch_s=st.floats(0, 0.1),
        waiting=st.integers(0, 3), free=st.integers(0, 20),
    )  # fmt: skip
    def snapshot(
        self, data: st.DataObject, rate: float, fetch_s: float, waiting: int, free: int
    ) -> None:
        self.cell.snapshot(
            data.draw(st.sampled_from(sorted(self.members.nodes))), prefill_rate=rate,
            fetch_s_per_block=fetch_s, num_waiting=waiting, waiting_tokens=7 * waiting,
            free_blocks=free,
        )  # fmt: skip

    @rule(num_tokens=st.sampled_from([3, 30, 70]))
    def submit(self, num_tokens: int) -> None:
        self.count += 1
        self.cell.submit(f"r{self.count}", num_tokens)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.count))
        self.cell.hear("g", Cancel(f"r{number}", (0,)))

    @rule(node_id=NODES, role=ROLES)
    def change_role(self, node_id: str, role: Role) -> None:
        self.cell.coordinator.change_role(node_id, role, migrate=False, now=self.cell.now)

    @rule(node_id=NODES)
    def drain(self, node_id: str) -> None:
        self.members.drain(node_id, 5.0, self.cell.now)

    @rule(seconds=st.sampled_from([0.0, 1.0, 7.0]))
    def tick(self, seconds: float) -> None:
        self.cell.tick(seconds)
        self.cell.clear()

    @invariant()
    def the_fleet_is_as_if_made_anew(self) -> None:
        serving = self.members.serving
        assert parts(self.members.fleet) == parts(Fleet(node.candidate() for node in serving))

    @invariant()
    def what_does_not_fit_or_is_slow_is_left_out(self) -> None:
        for work, slow in ((work_of(3), set()), (work_of(30), set()), (work_of(30), {"a", "c"})):
            expected = [
                node.candidate() for node in self.members.serving
                if node.id not in slow
                and fits(node.hello, work, prefill=node.hello.role == "prefill")
            ]  # fmt: skip
            found = self.members.fleet_for(work, without=slow)
            assert parts(found) == parts(Fleet(expected))


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@given(st.integers(1, 30))
@settings(max_examples=10, deadline=None)
def test_those_that_join_together_are_announced_once(number: int) -> None:
    cell = Driver()
    for index in range(number):
        cell.join(f"m{index}", "mixed")
    told = cell.sent(Peers)
    assert sorted(to for to, _ in told) == sorted(["g", *(f"m{i}" for i in range(number))])
    assert all(len(peers.peers) == number + 1 for _, peers in told)
    assert not cell.sent(Peers)


def test_nobody_is_sent_work_before_it_knows_the_others() -> None:
    cell = Driver()
    cell.join("p", "prefill")
    cell.join("d", "decode")
    cell.submit()
    to_d = [
        effect.message for effect in cell.coordinator.drain() if getattr(effect, "to", "") == "d"
    ]
    kinds = [type(message).__name__ for message in to_d]
    assert kinds.index("Welcome") < kinds.index("Peers") < kinds.index("Reserve"), kinds
