"""Role changes: they follow the load, keep their distance, and never swing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from balancing import cell
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.policies.balance import BalanceOptions, BalanceState, NodeLoad, balance, pressures

PURE = BalanceOptions(window_s=15.0, patience_s=10.0, cooldown_s=30.0)


def test_nodes_follow_a_load_that_moves() -> None:
    day = cell(3, 3, prefill=3.6, decode=1.2, noise=0.1, options=PURE)
    day.run(600)
    assert (day.count("prefill"), day.count("decode")) in ((4, 2), (5, 1))
    first = len(day.changes)
    assert first <= 2
    day.prefill, day.decode = 1.2, 3.6
    day.run(900)
    assert (day.count("prefill"), day.count("decode")) in ((2, 4), (1, 5))
    assert len(day.changes) - first <= 4
    assert day.state.pressures.worst < 1.0


@pytest.mark.parametrize("num_nodes", [2, 4, 8])
@pytest.mark.parametrize(("seed", "base"), [(0, 0.0), (1, 0.5)])
def test_a_load_at_the_boundary_makes_nothing_flap_for_an_hour(
    num_nodes: int, seed: int, base: float
) -> None:
    """Work that fits two ways equally badly, with noise, for every way there is to be between."""
    for number in sorted({1, num_nodes // 2, num_nodes - 1}):
        # Halfway between `number` and `number + 1` prefill nodes, at the edge of capacity.
        share = (number + 0.5) / num_nodes
        for level in (0.9, 1.2):
            hour = cell(
                number, num_nodes - number, prefill=level * num_nodes * share,
                decode=level * num_nodes * (1 - share), noise=0.15, seed=seed, base=base,
                options=PURE,
            )  # fmt: skip
            hour.run(3600)
            assert len(hour.changes) <= 2, (number, level, [c for _, c in hour.changes])
            assert not [at for at, _ in hour.changes if at > 1800]


loads = st.floats(0.0, 10.0)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), loads, loads, st.floats(0, 0.15),
    st.integers(0, 99),
)  # fmt: skip
def test_a_constant_load_comes_to_rest(
    num_prefill: int, num_decode: int, num_mixed: int, prefill: float, decode: float,
    noise: float, seed: int,
) -> None:  # fmt: skip
    if not num_mixed and not (num_prefill and num_decode):
        return
    options = BalanceOptions()
    hour = cell(
        num_prefill, num_decode, prefill, decode, num_mixed, noise=noise, seed=seed,
        options=options,
    )  # fmt: skip
    hour.run(1800)
    changed = [change.node_id for _, change in hour.changes]
    assert all(changed.count(node_id) <= 2 for node_id in changed)
    assert len([at for at, _ in hour.changes if at > 900]) <= 1
    roles = hour.roles.values()
    assert any(role != "decode" for role in roles) and any(role != "prefill" for role in roles)
    times = [at for at, _ in hour.changes]
    gaps = [later - at for at, later in itertools.pairwise(times)]
    assert all(gap >= options.cooldown_s for gap in gaps)
    assert all(change.role != "mixed" for _, change in hour.changes)


def test_minimum_counts_are_kept() -> None:
    options = replace(PURE, min_decode=2)
    day = cell(1, 4, prefill=5.0, decode=0.1, options=options)
    day.run(1200)
    assert day.count("decode") == 2 and day.count("prefill") == 3


def pressed(**more: object) -> list[NodeLoad]:
    """One prefill node that is far behind, three decode nodes with little to do."""
    busy = NodeLoad("p0", "prefill", arrived=3.0, busy=1.0, wait_s=5.0)
    idle = [
        NodeLoad(f"d{i}", "decode", step_s=0.01 * (i + 1), full=0.1 * (3 - i)) for i in range(3)
    ]
    return [busy, *idle]


def looked_at(
    nodes: list[NodeLoad], seconds: int, state: BalanceState, start: float = 0.0
) -> list[str]:
    found = [balance(nodes, state, PURE, start + i) for i in range(seconds)]
    return [each.node_id for each in found if each is not None]


def test_the_idlest_node_is_taken_once_the_pressure_has_lasted() -> None:
    state = BalanceState()
    assert looked_at(pressed(), 12, state) == []
    assert looked_at(pressed(), 20, state, 12.0) == ["d2"]


def test_a_short_peak_changes_nothing() -> None:
    state = BalanceState()
    calm = [replace(node, arrived=0.3, wait_s=0.0, busy=0.3) for node in pressed()]
    for minute in range(10):
        assert looked_at(pressed(), 4, state, 60.0 * minute) == []
        assert looked_at(calm, 56, state, 60.0 * minute + 4) == []


def test_a_change_under_way_counts_as_done_and_nothing_else_begins() -> None:
    nodes = pressed()
    assert pressures(nodes, PURE).prefill == 2.0
    nodes[3] = replace(nodes[3], target="prefill")
    nodes[0] = replace(nodes[0], arrived=1.8)
    now = pressures(nodes, PURE)
    assert now.prefill == pytest.approx(0.9) and now.decode == pytest.approx(0.8 / 2)
    assert looked_at([replace(nodes[0], arrived=9.0), *nodes[1:]], 300, BalanceState()) == []


def test_every_change_says_why() -> None:
    state = BalanceState()
    found = [balance(pressed(), state, PURE, float(i)) for i in range(40)]
    (change,) = [each for each in found if each is not None]
    assert change.then.prefill == pytest.approx(change.now.prefill / 2)
    assert f"prefill is at {change.now.prefill:.2f}" in change.reason
    assert "one more prefill node" in change.reason
    assert change.then.worst < change.now.worst


def test_nothing_to_look_at_is_nothing_to_do() -> None:
    assert balance([], BalanceState(), PURE, 0.0) is None
    alone = [NodeLoad("m0", "mixed", wait_s=9.0, busy=1.0, full=1.0)]
    assert looked_at(alone, 100, BalanceState()) == []
