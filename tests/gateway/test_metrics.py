"""Every metric is described in docs/metrics.md, and nothing else is; so with Grafana's queries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client.core import Metric

from pd.gateway.metrics import GatewayMetrics
from pd.gateway.node_metrics import NOT_SHOWN, TABLE, tiers
from pd.gateway.stream import RunningRequest, TokenStream
from pd.member import Node
from pd.messages import CellStatus, NodeHello, Started
from pd.types import SLO, NodeSnapshot, Request, Role, SamplingParams, TokenEvent

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "metrics.md"
BOARD = ROOT / "scripts" / "cluster" / "grafana" / "pd.json"


def row(node_id: str, role: Role, **fields: Any) -> dict[str, Any]:
    """A node as the coordinator describes it."""
    hello = NodeHello(node_id, role, 1, {}, 7, 100, 16, 2048, 8, 4242, "host-a")
    node = Node(hello, 3, 0.0, NodeSnapshot(node_id, role, 3, num_blocks=100, **fields))
    return {**node.describe(1.0), "directory_blocks": 5}


def metrics(nodes: int = 1) -> GatewayMetrics:
    """Those of a gateway whose cell has so many nodes of every role."""
    rows = [row(f"{role}-{i}", role) for role in get_args(Role) for i in range(nodes)]
    made = GatewayMetrics()
    made.watch(tuple, lambda: CellStatus(True, "", tuple(rows), 1), lambda: 0.5)
    return made


def ended(number: int, finish: str = "length", slo: SLO = SLO(9.0, 9.0)) -> RunningRequest:  # noqa: B008
    """A request of two tokens, a second apart, that ended."""
    request = Request(
        f"r-{number}", "g", (1, 2), SamplingParams(max_tokens=2), tenant=f"tenant-{number}",
        slo=slo, cache_salt=f"salt-{number}", session=f"session-{number}", tenant_class="default",
    )  # fmt: skip
    stream = TokenStream([request], 1.0, max_backlog=9, cancel=lambda running, indices: None)
    (running,) = stream.requests
    for position in (0, 1):
        last: Any = finish if position else None
        running.record.on_token(TokenEvent(request.request_id, 0, 0, position, 5, last))
        running.timeline.clocks[0].arrived(2.0 + position)
    running.timeline.prefilled(0.1, 0.2)
    running.timeline.end_s = 4.0
    running.outcome = "failed" if finish == "error" else None
    return running


def name_of(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def exposed() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to type and labels, of everything that a scrape shows."""
    families = metrics()._registry.collect()
    return {name_of(f): (f.type, tuple(getattr(f, "_labelnames", ()))) for f in families}


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {}
    pattern = r"^\| `(\w+)` \| (histogram|counter|gauge) \| (.*?) ?\| .+ \|$"
    for name, kind, labels in re.findall(pattern, PAGE.read_text(), re.MULTILINE):
        assert name not in found, f"{name} is described twice"
        found[name] = (kind, tuple(re.findall(r"`(\w+)`", labels)))
    return found


def test_the_page_and_the_code_agree() -> None:
    described, shown = documented(), exposed()
    assert described.keys() - shown.keys() == set(), "described, and not there"
    assert shown.keys() - described.keys() == set(), "there, and not described"
    assert described == shown


def test_every_field_of_a_node_is_a_metric_or_left_out_on_purpose() -> None:
    known = {metric.field for metric in TABLE} | NOT_SHOWN
    fields = {*row("decode-0", "decode"), *row("pool-0", "pool")}
    assert fields - known == set(), "add it to node_metrics.TABLE or NOT_SHOWN"
    assert known - fields == set(), "no node says so"
    assert not {metric.field for metric in TABLE} & NOT_SHOWN


def test_a_name_follows_the_rules() -> None:
    for name, (kind, _) in exposed().items():
        assert re.fullmatch(r"(pd|process)_[a-z0-9_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|us|s|mb|kb)$", name), f"{name}: seconds and bytes"


def series(made: GatewayMetrics) -> int:
    return sum(not line.startswith("#") for line in made.render().decode().splitlines())


def test_what_clients_send_makes_no_series() -> None:
    made = metrics()
    made.ended(ended(0))
    made.started(Started("r", (0,), 0, 4096, 1024))
    before = series(made)
    for number in range(1, 300):
        made.ended(ended(number))
        made.started(Started(f"r-{number}", (0,), 0, 4096, 1024))
    assert series(made) == before


def test_series_grow_with_the_nodes_by_a_fixed_number() -> None:
    one, two, three = (series(metrics(nodes)) for nodes in (1, 2, 3))
    assert three - two == two - one <= 4 * 45
    assert one < 700


def test_missed_targets_are_told_apart() -> None:
    made = metrics()
    made.ended(ended(1, slo=SLO(0.5, 9.0)))
    made.ended(ended(2, slo=SLO(0.5, 0.5)))
    made.ended(ended(3, slo=SLO(9.0, 9.0)))
    made.ended(ended(4, finish="error"))
    made.ended(ended(5, finish="error", slo=SLO()))
    assert made.targets_missed == {"ttft": 2, "tpot": 1, "end": 1}
    assert made.slo_missed["default"] == 3 and made.slo_attained["default"] == 1


def test_tiers_of_nodes_and_pools() -> None:
    pool = row("pool-0", "pool", num_disk_blocks=50, disk_blocks=9, cached_blocks=4,
               served_blocks=7, served_disk_blocks=3)  # fmt: skip
    found = list(tiers([row("decode-0", "decode", cached_blocks=2), pool, {"id": "bare"}]))
    assert [tuple(tier) for tier in found] == [
        ("decode-0", "node", 2, 100, 0), ("pool-0", "dram", 4, 100, 4), ("pool-0", "disk", 9, 50, 3)
    ]  # fmt: skip


def queries(board: Any) -> list[str]:
    """Every PromQL expression anywhere in a dashboard."""
    if isinstance(board, dict):
        own = [board["expr"]] if "expr" in board else []
        return own + [each for value in board.values() for each in queries(value)]
    if isinstance(board, list):
        return [each for value in board for each in queries(value)]
    return []


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(BOARD.read_text())
    return loaded


def series_names() -> set[str]:
    names = set()
    for name, (kind, _) in exposed().items():
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def test_grafana_asks_for_what_exists(board: dict[str, Any]) -> None:
    known, asked = series_names(), set()
    labels = {label for _, own in exposed().values() for label in own} | {"le", "instance"}
    for query in queries(board):
        names = set(re.findall(r"\b(?:pd|process)_\w+", query))
        assert names, query
        assert names <= known, f"{names - known} of {query}"
        asked |= names
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {each.strip() for each in group.split(",")} <= labels, query
        assert query.count("(") == query.count(")")
    nodes = {name for name in known if name.startswith("pd_kv_")}
    assert not nodes - asked, "a tier nobody looks at"


def test_alerts_and_examples_of_the_page_ask_for_what_exists() -> None:
    known = series_names() | exposed().keys()
    named = set(re.findall(r"\bpd_\w+", PAGE.read_text()))
    assert named <= known, named - known


def test_grafana_panels_do_not_overlap(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} and {taken[x, y]}"
                taken[x, y] = panel["title"]
