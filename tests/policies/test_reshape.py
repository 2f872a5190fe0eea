"""Roles that follow targets: the better set of roles is gone for, and kept."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from demands import CHAT, SPEED
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.policies.balance import BalanceOptions, NodeLoad
from pd.policies.goodput import Demand, Goodput, Roles
from pd.policies.reshape import Reshaped, ReshapeState, reshape
from pd.types import Role

OPTIONS = BalanceOptions(mixed=True, window_s=5.0, patience_s=2.0, cooldown_s=10.0)
BUSY = replace(CHAT, per_s=8.0)
PATIENT = replace(BUSY, ttft_s=6.0, tpot_s=0.036)  # wants a pair
HURRIED = replace(BUSY, ttft_s=1.0, tpot_s=0.2)  # wants mixed nodes


def goodput(roles: Roles, demand: Demand) -> float:
    return Goodput(demand, SPEED)(roles)


@dataclass
class Cell:
    """Nodes that take `change_s` to change, with no load of their own to be seen."""

    roles: dict[str, Role]
    demand: Demand
    change_s: float = 3.0
    options: BalanceOptions = OPTIONS
    state: ReshapeState = field(default_factory=ReshapeState)
    changes: list[tuple[float, Reshaped]] = field(default_factory=list)
    now: float = 0.0
    busy: float = 0.0

    def __post_init__(self) -> None:
        self.changing: dict[str, tuple[Role, float]] = {}

    def run(self, seconds: int, noise: float = 0.0, seed: int = 0) -> None:
        rng = random.Random(seed)
        for _ in range(seconds):
            self.now += 1.0
            for node_id, (role, at) in list(self.changing.items()):
                if self.now >= at:
                    self.roles[node_id] = role
                    del self.changing[node_id]
            demand = replace(
                self.demand,
                per_s=self.demand.per_s * rng.uniform(1 - noise, 1 + noise),
                prompt_tokens=self.demand.prompt_tokens * rng.uniform(1 - noise, 1 + noise),
                output_tokens=self.demand.output_tokens * rng.uniform(1 - noise, 1 + noise),
            )
            nodes = [
                NodeLoad(
                    node_id, role, busy=self.busy if role != "decode" else 0.0,
                    target=self.changing.get(node_id, (None, 0.0))[0],
                )
                for node_id, role in self.roles.items()
            ]  # fmt: skip
            change = reshape(nodes, self.state, self.options, demand, SPEED, self.now)
            if change is not None:
                assert change.node_id not in self.changing
                self.changes.append((self.now, change))
                self.changing[change.node_id] = (change.role, self.now + self.change_s)

    @property
    def counts(self) -> Roles:
        roles = list(self.roles.values())
        return Roles(roles.count("prefill"), roles.count("decode"), roles.count("mixed"))


def mixed(count: int, demand: Demand, **more: Any) -> Cell:
    return Cell({f"m{i}": "mixed" for i in range(count)}, demand, **more)


def test_two_mixed_nodes_become_a_pair_where_tokens_may_not_wait() -> None:
    cell = mixed(2, PATIENT)
    cell.run(12)
    assert cell.counts == Roles(prefill=1, decode=1)
    (first, change), (second, _) = cell.changes
    assert change.role == "prefill", "the idlest, whose outputs have to end or move"
    assert second - first <= cell.change_s + 1.0, "the second change waits for the first alone"
    cell.run(600)
    assert len(cell.changes) == 2


def test_and_a_pair_two_mixed_nodes_where_prompts_may_not() -> None:
    cell = Cell({"p": "prefill", "d": "decode"}, HURRIED)
    cell.run(30)
    assert cell.counts == Roles(mixed=2)
    cell.demand = PATIENT
    cell.run(30)
    assert cell.counts == Roles(prefill=1, decode=1)


def test_a_cell_at_ease_stays_as_it_is() -> None:
    cell = mixed(2, replace(PATIENT, per_s=0.5))
    cell.run(600)
    assert not cell.changes


def test_what_is_seen_of_nodes_presses_too() -> None:
    serves = goodput(Roles(mixed=2), PATIENT)
    cell = mixed(2, replace(PATIENT, per_s=0.6 * serves), busy=1.0)
    cell.run(30)
    assert cell.counts == Roles(prefill=1, decode=1)


def test_a_long_prompt_in_a_cell_with_little_to_do_does_not() -> None:
    serves = goodput(Roles(mixed=2), PATIENT)
    cell = mixed(2, replace(PATIENT, per_s=0.4 * serves), busy=1.0)
    cell.run(600)
    assert not cell.changes


def test_a_short_peak_changes_nothing() -> None:
    cell = mixed(2, PATIENT)
    for _ in range(20):
        cell.demand = PATIENT
        cell.run(2)
        cell.demand = replace(PATIENT, per_s=0.1)
        cell.run(10)
    assert not cell.changes


def test_what_is_hardly_better_is_not_gone_for() -> None:
    near = replace(BUSY, ttft_s=3.0, tpot_s=0.05)
    pair, same = (goodput(each, near) for each in (Roles(1, 1), Roles(mixed=2)))
    assert 0.87 < pair / same < 1.15
    for start in (mixed(2, near), Cell({"p": "prefill", "d": "decode"}, near)):
        start.run(300)
        assert not start.changes


@pytest.mark.parametrize("num_nodes", [2, 3, 5, 8])
@pytest.mark.parametrize("demand", [PATIENT, HURRIED, BUSY])
def test_an_hour_of_noise_makes_nothing_flap(num_nodes: int, demand: Demand) -> None:
    cell = mixed(num_nodes, demand)
    for part in range(6):
        cell.run(600, noise=0.15, seed=part)
    late = [at for at, _ in cell.changes if at > 600]
    assert len(late) <= 1, [(at, str(each.goal)) for at, each in cell.changes]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.floats(0.1, 50),
    st.floats(10, 4000), st.floats(1, 500), st.floats(0.1, 10), st.floats(0.02, 0.5),
    st.integers(1, 2), st.integers(1, 2),
)  # fmt: skip
def test_a_constant_load_comes_to_rest_at_something_no_worse(
    num_prefill: int, num_decode: int, num_mixed: int, per_s: float, prompt: float, output: float,
    ttft_s: float, tpot_s: float, min_prefill: int, min_decode: int,
) -> None:  # fmt: skip
    start = Roles(num_prefill, num_decode, num_mixed)
    if start.prefill + start.mixed < min_prefill or start.decode + start.mixed < min_decode:
        return
    demand = Demand(per_s, prompt, 1.0, 1.0, output, prompt + output / 2, 1.0, ttft_s, tpot_s)
    roles: dict[str, Role] = {f"p{i}": "prefill" for i in range(num_prefill)}
    roles |= {f"d{i}": "decode" for i in range(num_decode)}
    roles |= {f"m{i}": "mixed" for i in range(num_mixed)}
    options = replace(OPTIONS, min_prefill=min_prefill, min_decode=min_decode)
    cell = Cell(roles, demand, options=options)
    cell.run(400)
    made = len(cell.changes)
    cell.run(400)
    assert len(cell.changes) == made and not cell.changing
    end = cell.counts
    assert end.prefill + end.mixed >= min_prefill and end.decode + end.mixed >= min_decode
    assert goodput(end, demand) >= goodput(start, demand) * (1 - 1e-9)


def test_a_goal_that_cannot_be_reached_any_more_is_given_up() -> None:
    cell = mixed(3, PATIENT)
    while not cell.changes:
        cell.run(1)
    goal = cell.changes[0][1].goal
    gone = next(node_id for node_id in cell.roles if node_id not in cell.changing)
    del cell.roles[gone]
    cell.run(60)
    assert cell.counts != goal and not cell.changing and cell.state.goal is None
    assert goodput(cell.counts, PATIENT) >= goodput(Roles(mixed=2), PATIENT)


def test_every_change_says_why() -> None:
    cell = mixed(2, PATIENT)
    cell.run(12)
    _, change = cell.changes[0]
    assert change.goal == Roles(prefill=1, decode=1)
    assert change.reason.startswith("8 requests a second come, of which 2 mixed can serve ")
    assert "1 prefill + 1 decode" in change.reason
    assert change.numbers["asked_per_s"] == 8.0
    assert change.numbers["serves_then"] > change.numbers["serves"] / OPTIONS.gain
