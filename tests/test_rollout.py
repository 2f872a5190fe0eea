"""The way from one configuration of a running cell to another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pd.config import OPTIONS, Config
from pd.rollout import (
    Add,
    ChangeRole,
    Remove,
    Replace,
    Running,
    Swap,
    describe,
    differences,
    plan,
    reader_of,
    resize,
)
from pd.types import Role

COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(
    lambda c: (c[0] > 0) == (c[1] > 0) and sum(c) > 0
)


def config(prefill: int = 1, decode: int = 1, mixed: int = 0, **more: Any) -> Config:
    return Config.from_dict(None, prefill=prefill, decode=decode, mixed=mixed, **more)


def serves(nodes: dict[str, Role]) -> bool:
    roles = set(nodes.values())
    return "mixed" in roles or {"prefill", "decode"} <= roles


@settings(max_examples=400)
@given(COUNTS, COUNTS)
@example((0, 0, 1), (1, 1, 0))
def test_every_step_leaves_a_cell_that_serves(
    old: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    nodes: dict[str, Role] = {}
    for role, count in zip(("prefill", "decode", "mixed"), old, strict=True):
        nodes |= {f"{role}-{i}": role for i in range(count)}  # type: ignore[misc]
    fewest = min(sum(old), sum(new))
    for step in resize(config(*new), {**nodes, "gateway-0": "gateway"}):
        match step:
            case ChangeRole(node_id, role):
                nodes[node_id] = role
            case Add(kind):
                nodes[f"new-{len(nodes)}"] = kind  # type: ignore[assignment]
            case Remove(node_id):
                del nodes[node_id]
        assert serves(nodes) and len(nodes) >= fewest
    roles = list(nodes.values())
    assert tuple(roles.count(role) for role in ("prefill", "decode", "mixed")) == new


def test_a_role_is_changed_before_a_process_is_started() -> None:
    nodes = {"prefill-0": "prefill", "prefill-1": "prefill", "decode-0": "decode"}
    nodes["gateway-0"] = "gateway"
    steps = resize(config(1, 3), nodes)
    assert steps == [ChangeRole("prefill-1", "decode"), Add("decode")]
    assert describe(steps) == ["1. prefill-1 becomes a decode node", "2. add a decode node"]
    assert resize(config(2, 1), nodes) == []


def test_the_last_ones_go() -> None:
    nodes = {f"mixed-{i}": "mixed" for i in range(11)} | {"gateway-0": "gateway"}
    assert resize(config(0, 0, 9), nodes) == [Remove("mixed-10"), Remove("mixed-9")]


def test_every_option_has_a_reader() -> None:
    assert {reader_of(key) for key in OPTIONS} == {
        "supervisor", "node", "pool", "gateway", "cell"
    }  # fmt: skip


def test_differences_show_no_secret() -> None:
    new = config(decode=2, api_key="s3cret", block_size=32, start_timeout_s=60)
    assert [each.text for each in differences(config(api_key="old"), new)] == [
        "cache.block_size: 16 -> 32", "cluster.decode: 1 -> 2", "cluster.start_timeout_s: 600.0 -> "
        "60.0", "gateway.api_key: changed",
    ]  # fmt: skip


def members(of: Config, **kinds: str) -> dict[str, Running]:
    return {id_.replace("_", "-"): Running(kind, of) for id_, kind in kinds.items()}


CELL = {"prefill_0": "prefill", "decode_0": "decode", "pool_0": "pool", "gateway_0": "gateway"}


@pytest.mark.parametrize(
    "change", [{"block_size": 32}, {"model": "other"}, {"port": 1}, {"pool_dram_gib": 0.0}]
)
def test_what_a_cell_has_to_agree_on_takes_another_cell(change: dict[str, Any]) -> None:
    old = config()
    assert plan(old, config(decode=3, **change), members(old, **CELL)) == [Swap()]


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({"kv_cache_gib": 2.0}, ["prefill-0", "decode-0"]),
        ({"pool_dram_gib": 2.0}, ["pool-0"]),
        ({"max_n": 2}, ["gateway-0"]),
        ({"retire_s": 2.0, "node_drain_s": 1.0}, []),
    ],
)
def test_processes_that_read_an_option_are_replaced(
    change: dict[str, Any], replaced: list[str]
) -> None:
    old = config()
    steps = plan(old, config(**change), members(old, **CELL))
    assert steps == [Replace(id_) for id_ in replaced]


def test_what_was_replaced_before_is_not_again() -> None:
    """After a rollout that failed half-way."""
    old, new = config(), config(kv_cache_gib=2.0)
    running = members(old, **CELL) | members(new, prefill_0="prefill")
    assert plan(new, new, running) == [Replace("decode-0")]


def test_all_that_stays_is_rolled() -> None:
    old = config(decode=2)
    running = members(old, **CELL, decode_1="decode")
    assert plan(old, config(gateways=2), running, roll=True) == [
        Add("gateway"), Remove("decode-1"), Replace("pool-0"), Replace("prefill-0"),
        Replace("decode-0"), Replace("gateway-0"), Replace("coordinator"),
    ]  # fmt: skip


def test_nodes_that_came_with_the_load_stay_within_their_bounds() -> None:
    nodes = {"prefill-0": "prefill", "gateway-0": "gateway"}
    nodes |= {f"decode-{i}": "decode" for i in range(3)}
    assert resize(config(max_decode_nodes=4), nodes) == []
    assert resize(config(max_decode_nodes=2), nodes) == [Remove("decode-2")]
    assert resize(config(decode=4, max_decode_nodes=8), nodes) == [Add("decode")]
    assert resize(config(max_prefill_nodes=4), nodes) == [Remove("decode-2"), Remove("decode-1")]


def test_bounds_change_without_a_process() -> None:
    old, new = config(), config(max_decode_nodes=2, scale_up_s=1.0, ask_for_hosts=False)
    assert plan(old, new, members(old, **CELL)) == []
    assert len(differences(old, new)) == 3
