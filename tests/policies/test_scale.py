"""How many nodes: enough soon, fewer late, and the same number for a load at the boundary."""

from __future__ import annotations

import random

from balancing import cell
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.policies.balance import BalanceOptions, NodeLoad
from pd.policies.scale import (
    Leaver,
    ScaleOptions,
    ScaleState,
    first_to_go,
    needed,
    nodes_wanted,
    scale,
    share_out,
)
from pd.types import Role

BALANCING = BalanceOptions()
OPTIONS = ScaleOptions(min_nodes=2, max_nodes=16)


class Cell:
    """Nodes that take a minute to start, and go at once."""

    def __init__(self, num_nodes: int, options: ScaleOptions = OPTIONS, seed: int = 0) -> None:
        self.num_nodes, self.options = num_nodes, options
        self.starting: list[float] = []
        self.state = ScaleState()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.asked: list[tuple[float, int]] = []

    def loads(self, work: float) -> list[NodeLoad]:
        half = work / 2 / self.num_nodes
        return [
            NodeLoad(f"m{i}", "mixed", busy=half, step_s=2 * half * BALANCING.tpot_s)
            for i in range(self.num_nodes)
        ]

    def run(self, seconds: float, work: float, noise: float = 0.0) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            up = [at for at in self.starting if at <= self.now]
            self.num_nodes += len(up)
            self.starting = [at for at in self.starting if at > self.now]
            now_work = work * self.rng.uniform(1 - noise, 1 + noise)
            have = self.num_nodes + len(self.starting)
            wanted = scale(
                self.loads(now_work), len(self.starting), self.state, BALANCING, self.options,
                self.now,
            )  # fmt: skip
            assert self.options.min_nodes <= wanted <= self.options.max_nodes
            if wanted != have:
                self.asked.append((self.now, wanted))
            if wanted > have:
                self.starting += [self.now + 60.0] * (wanted - have)
            elif wanted < have:
                self.num_nodes = max(1, self.num_nodes - (have - wanted))


def test_it_grows_soon_and_asks_once_for_what_is_starting() -> None:
    up = Cell(2)
    up.run(200, work=3.0)
    assert up.asked == [(16.0, 4)] and up.num_nodes == 4


def test_it_shrinks_only_when_no_moment_needed_the_nodes() -> None:
    down = Cell(8)
    down.run(280, work=1.5)
    assert down.asked == []
    down.run(3, work=6.0)  # one peak, and the wait begins anew
    down.run(290, work=1.5)
    assert down.asked == []
    down.run(600, work=1.5)
    assert down.num_nodes == 2


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 15.0), st.floats(0.0, 0.2), st.integers(0, 99), st.integers(2, 16))
def test_a_noisy_load_is_not_followed_up_and_down_for_an_hour(
    work: float, noise: float, seed: int, start: int
) -> None:
    hour = Cell(start, seed=seed)
    hour.run(3600, work, noise)
    numbers = [start, *(number for _, number in hour.asked)]
    turns = sum(
        (b - a) * (c - b) < 0 for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False)
    )
    assert turns <= 1
    assert len([at for at, _ in hour.asked if at > 1800]) <= 1


def test_bounds_hold_at_once() -> None:
    state = ScaleState()
    nodes = [NodeLoad(f"p{i}", "prefill") for i in range(20)]
    assert scale(nodes, 0, state, BALANCING, OPTIONS, 0.0) == 16
    assert scale(nodes[:1], 0, state, BALANCING, OPTIONS, 1.0) == 2
    assert scale(nodes[:1], 1, state, BALANCING, OPTIONS, 2.0) == 2


def test_what_is_wanted_is_the_work_at_the_pressure_asked_for() -> None:
    day = cell(2, 2, prefill=1.5, decode=1.0)
    assert nodes_wanted(day.loads(), BALANCING, OPTIONS) == 4  # 2.5 / 0.75
    assert nodes_wanted([], BALANCING, OPTIONS) == 2


def test_large_steps_are_taken_in_several() -> None:
    up = Cell(2, ScaleOptions(min_nodes=1, max_nodes=16, max_step=3))
    up.run(20, work=12.0)
    assert [number for _, number in up.asked] == [5, 8, 11, 14, 16][: len(up.asked)]
    assert len(up.asked) >= 1


ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")
COUNTS = st.fixed_dictionaries({role: st.integers(0, 6) for role in ROLES}).filter(
    lambda counts: sum(counts.values()) > 0
)


@given(COUNTS, COUNTS, st.integers(1, 30))
def test_nodes_are_shared_out_where_they_are_lacking(
    before: dict[Role, int], needs: dict[Role, int], total: int
) -> None:
    then = share_out(before, needs, total)
    fewest = sum(count > 0 for count in before.values())
    assert sum(then.values()) == max(total, fewest)
    for role in ROLES:
        assert (then[role] > 0) == (before[role] > 0), "no role comes or goes"
    if total >= sum(before.values()):
        assert all(then[role] >= before[role] for role in ROLES)
        enough = [role for role in ROLES if then[role] > max(before[role], needs[role])]
        lacking = [r for r in ROLES if before[r] and then[r] < needs[r]]
        assert not (enough and lacking)
    else:
        assert all(then[role] <= before[role] for role in ROLES)


def test_each_side_takes_whole_nodes() -> None:
    nodes = [NodeLoad("p", "prefill", busy=0.1), NodeLoad("d", "decode", full=0.8)]
    assert needed(nodes, BALANCING, OPTIONS) == {"prefill": 1, "decode": 2}
    assert nodes_wanted(nodes, BALANCING, OPTIONS) == 3


@given(
    st.lists(
        st.builds(Leaver, st.integers(0, 99).map("d-{}".format), st.sampled_from("abcd"),
                  st.integers(0, 3)),
        min_size=1, max_size=8, unique_by=lambda each: each.node_id,
    )
)  # fmt: skip
def test_whoever_goes_empties_a_host_soonest(leavers: list[Leaver]) -> None:
    hosts = [each.host for each in leavers]
    gone = next(x for x in leavers if x.node_id == first_to_go(leavers, hosts, keep="a"))
    others = [each for each in leavers if each.host != "a"]
    assert (gone.host == "a") == (not others)
    if others:
        assert hosts.count(gone.host) == min(hosts.count(each.host) for each in others)
    alike = [each for each in leavers if each.host == gone.host]
    assert gone.num_requests == min(each.num_requests for each in alike)


def test_one_that_nobody_can_find_goes_first() -> None:
    leavers = [Leaver("d-1", "b"), Leaver("d-0", ""), Leaver("d-2", "c")]
    assert first_to_go(leavers, ["b", "c"], keep="a") == "d-0"
