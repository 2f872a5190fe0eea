"""One sampled request has the same tokens in whatever surroundings it runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_cell import LiveCell, eventually

_RNG = random.Random(11)
REQUEST: dict[str, Any] = {
    "prompt": _RNG.choices(range(3, 380), k=150),
    "max_tokens": 120, "temperature": 1.0, "seed": 77, "n": 2, "ignore_eos": True,
}  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {**REQUEST, "prompt": _RNG.choices(range(3, 380), k=20 + 17 * i), "seed": i, "n": 1}
    for i in range(15)
]


@pytest.fixture(scope="module")
def expected(mixed_cell: LiveCell) -> list[list[int]]:
    """Alone on a mixed node."""
    tokens = mixed_cell.tokens(**REQUEST)
    assert [len(output) for output in tokens] == [120, 120]
    assert tokens[0] != tokens[1]
    return tokens


@pytest.fixture(scope="module")
def cramped_cell(start_cell: Callable[..., Any]) -> Iterator[LiveCell]:
    """Over TCP, and with KV for few of the sequences that run at once."""
    with start_cell(prefill=1, decode=1, transports=("zmq",), kv_cache_gib=0.008) as cell:
        yield cell


def counter(cell: LiveCell, name: str) -> int:
    cell.wait_idle()
    return cell.total(name)


def grows(cell: LiveCell, name: str, before: int) -> None:
    eventually(lambda: cell.total(name) > before)


def in_company(cell: LiveCell) -> list[list[int]]:
    return cell.together([*OTHERS[:8], REQUEST, *OTHERS[8:]])[8]


def test_mixed_node(mixed_cell: LiveCell, expected: list[list[int]]) -> None:
    hits = counter(mixed_cell, "cache_hit_tokens")
    assert mixed_cell.tokens(**REQUEST) == expected
    grows(mixed_cell, "cache_hit_tokens", hits)
    assert in_company(mixed_cell) == expected


def test_prefill_and_decode_node(pd_cell: LiveCell, expected: list[list[int]]) -> None:
    moved = counter(pd_cell, "transferred_bytes")
    assert pd_cell.tokens(**REQUEST) == expected
    grows(pd_cell, "transferred_bytes", moved)
    hits = counter(pd_cell, "cache_hit_tokens")
    assert pd_cell.tokens(**REQUEST) == expected
    grows(pd_cell, "cache_hit_tokens", hits)
    assert in_company(pd_cell) == expected


def test_over_tcp_and_preempted(cramped_cell: LiveCell, expected: list[list[int]]) -> None:
    assert cramped_cell.tokens(**REQUEST) == expected
    grows(cramped_cell, "transferred_bytes", 0)
    # In front, so that later ones are preempted for it, and last, so that it is itself.
    for bodies in ([REQUEST, *OTHERS], [*OTHERS, REQUEST]):
        before = counter(cramped_cell, "preemptions")
        outputs = cramped_cell.together(bodies)
        grows(cramped_cell, "preemptions", before)
        assert outputs[bodies.index(REQUEST)] == expected
