"""What is decided about hosts before anything is placed there. Ray is what it says of its nodes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray

from pd.config import Config
from pd.errors import PDError
from pd.placement import await_hosts, pool_homes


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    there: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "nodes", lambda: list(there))
    return there


def test_pools_run_beside_nodes_unless_hosts_are_for_them(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a", CPU=1), node("b", pd_decode=1)]
    assert pool_homes({"a": "shape", "b": "shape"}) == {"a": "shape", "b": "shape"}
    nodes += [node("c", pd_pool=1), node("d", alive=False, pd_pool=1), node("e", pd_pool=1)]
    assert pool_homes({"a": "shape", "b": "shape"}) == {"c": "shape", "e": "shape"}
    assert pool_homes({}) == {}


def test_hosts_are_waited_for(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.from_dict(None, min_hosts=3)
    nodes += [node("a"), node("dead", alive=False)]
    monkeypatch.setattr(time, "sleep", lambda seconds: nodes.append(node("new")))
    told: list[str] = []
    await_hosts(config, told.append, time.monotonic() + 60)
    assert told == [f"waiting for hosts: {there} of 3 have joined Ray" for there in (1, 2)]
    assert len(nodes) == 4


def test_hosts_that_never_come_are_counted(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a")]
    with pytest.raises(PDError, match=r"1 of 2 hosts joined .* smaller cluster\.min_hosts"):
        await_hosts(Config.from_dict(None, min_hosts=2), lambda step: None, time.monotonic() - 1)
