"""Random traffic over every transport: each push comes back once, what is ok is right."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from kv_nodes import LAYOUT, Node, wait_until
from transports import TRANSPORTS

from kvstore.transport.events import Arrived, Pushed

BLOCK = LAYOUT.block_bytes


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("seed", range(3))
def test_random_traffic(transport: str, seed: int) -> None:
    random = Random(seed)
    settings = {"message_bytes": 2 * BLOCK, "window_bytes": 5 * BLOCK, "stall_timeout_s": 30.0}
    a = Node("a", [transport], epoch=1, **settings)
    b = Node("bb", [transport], epoch=2, **settings)
    a.hub.connect(b.peer)
    pages = list(range(64))
    granted: dict[int, list[int]] = {}
    jobs: Counter[tuple[int, int]] = Counter()
    sources: dict[tuple[int, int], tuple[int, ...]] = {}
    troubled: set[int] = set()
    try:
        for transfer_id in range(120):
            count = random.randint(1, 12)
            if len(pages) < count:  # let the oldest end, and use its pages again
                wait_until(lambda: back(a) == sum(jobs.values()), "pushes")
                check(a, b, sources, granted, troubled)
                for known, blocks in granted.items():
                    b.hub.forget(known)
                    pages += blocks
                granted.clear()
                random.shuffle(pages)
            granted[transfer_id] = mine = [pages.pop() for _ in range(count)]
            if random.random() < 0.9:
                b.hub.expect(transfer_id, "a", 1, mine)
            else:
                troubled.add(transfer_id)
            at = 0
            while at < count:
                size = random.randint(1, count - at)
                src = tuple(random.sample(range(64), size))
                a.push(b, transfer_id, src, mine[at : at + size], first=at)
                jobs[transfer_id, at] += 1
                sources[transfer_id, at] = src
                at += size
            mishap = random.random()
            if mishap < 0.15:
                a.hub.cancel(transfer_id)
                troubled.add(transfer_id)
            elif mishap < 0.2:
                troubled.update(granted)
                a.hub.forget_peer("bb")
                a.hub.connect(b.peer)
        wait_until(lambda: back(a) == sum(jobs.values()), "pushes")
        check(a, b, sources, granted, troubled)
        came_back = Counter(
            (event.transfer_id, event.first) for event in a.events if isinstance(event, Pushed)
        )
        assert came_back == jobs
    finally:
        a.close()
        b.close()


def back(node: Node) -> int:
    return sum(isinstance(event, Pushed) for event in node.collect())


def check(
    a: Node,
    b: Node,
    sources: dict[tuple[int, int], tuple[int, ...]],
    granted: dict[int, list[int]],
    troubled: set[int],
) -> None:
    """What was reported ok at either end is in its pages; only the troubled ones are not ok."""
    for event in a.collect():
        if event.transfer_id not in granted or not isinstance(event, Pushed):
            continue
        assert event.ok or event.transfer_id in troubled, event
        if event.ok:
            pages = granted[event.transfer_id][event.first : event.first + event.count]
            src = sources[event.transfer_id, event.first]
            np.testing.assert_array_equal(b.arena.blocks[pages], a.arena.blocks[list(src)])
    for event in b.collect():
        assert isinstance(event, Arrived) and event.ok, event
