"""What `pd kv` makes of a server's status."""

from __future__ import annotations

from typing import Any

from pd.cli.kv import sources, tiers
from pd.types import NodeSnapshot


def node(role: Any, **values: int) -> dict[str, Any]:
    from dataclasses import asdict

    row = asdict(NodeSnapshot(f"{role}-0", role, 1, num_blocks=100, **values))
    return {**row, "id": f"{role}-0", "block_size": 16}


CELL = [
    node("prefill", prefill_tokens=1000, cache_hit_tokens=640, fetched_tokens=480),
    node("decode", served_blocks=10),
    node("pool", served_blocks=20, served_disk_blocks=5, num_disk_blocks=50, disk_blocks=25),
]


def test_every_token_of_a_prompt_has_one_source() -> None:
    found = sources(CELL)
    assert found == {
        "computed": 1000, "own cache": 160, "pool memory": 240, "pool disk": 80, "other nodes": 160,
    }  # fmt: skip
    assert sum(found.values()) == 1000 + 640


def test_a_server_that_did_nothing_yet() -> None:
    assert sum(sources([node("mixed")]).values()) == 0
    assert sources([])["computed"] == 0


def test_tiers_and_how_full_they_are() -> None:
    rows = list(tiers(CELL))
    assert [(row["id"], row["tier"]) for row in rows] == [
        ("prefill-0", "node"), ("decode-0", "node"), ("pool-0", "memory"), ("pool-0", "disk"),
    ]  # fmt: skip
    assert (rows[3]["tokens"], rows[3]["capacity"], rows[3]["given"]) == (400, 800, 80)
