"""The way from one configuration of a running cell to another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.config import OPTIONS, Config
from pd.errors import ConfigError
from pd.rollout import Add, ChangeRole, Remove, describe, differences, plan, reader_of, resize
from pd.types import Role

COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(
    lambda c: (c[0] > 0) == (c[1] > 0) and sum(c) > 0
)


def config(prefill: int = 1, decode: int = 1, mixed: int = 0, **more: Any) -> Config:
    return Config.from_dict(None, prefill=prefill, decode=decode, mixed=mixed, **more)


def serves(nodes: dict[str, Role]) -> bool:
    roles = set(nodes.values())
    return "mixed" in roles or {"prefill", "decode"} <= roles


@given(COUNTS, COUNTS)
def test_every_step_leaves_a_cell_that_serves(
    old: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    nodes: dict[str, Role] = {}
    for role, count in zip(("prefill", "decode", "mixed"), old, strict=True):
        nodes |= {f"{role}-{i}": role for i in range(count)}  # type: ignore[misc]
    fewest = min(sum(old), sum(new))
    for step in resize(config(*new), nodes):
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
    nodes: dict[str, Role] = {"prefill-0": "prefill", "prefill-1": "prefill", "decode-0": "decode"}
    steps = resize(config(1, 3), nodes)
    assert steps == [ChangeRole("prefill-1", "decode"), Add("decode")]
    assert describe(steps) == ["1. prefill-1 becomes a decode node", "2. add a decode node"]
    assert resize(config(2, 1), nodes) == []


def test_the_last_ones_go() -> None:
    nodes: dict[str, Role] = {f"mixed-{i}": "mixed" for i in range(11)}
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


def test_what_would_take_another_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache.block_size: 16 -> 32.*pd teardown"):
        plan(config(), config(block_size=32), {"prefill-0": "prefill", "decode-0": "decode"})
