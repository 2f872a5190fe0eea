"""The same tests of a cell of real processes and of a simulated one.

What is asserted is what the system promises, not how long anything takes: both cells have two
prefill and two decode nodes of 64 blocks, one model tiny and real, the other a table of times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from both_cells import BLOCK_SIZE, AnyCell, Ask, Fault, LiveAsk, SimAsk

from pd.types import Role

NUM_BLOCKS = 64
COUNTS: dict[Role, int] = {"prefill": 2, "decode": 2}
OPTIONS: dict[str, Any] = {
    "max_num_batched_tokens": 64, "max_waiting_per_node": 12, "watermark": 0.0,
    "pool_dram_gib": 0.0, "heartbeat_s": 0.1, "node_timeout_s": 4.0, "disaggregate": "always",
    "block_size": BLOCK_SIZE, "stand_in_s": 0.5,
}  # fmt: skip
ROLES = {f"{role}-{number}": str(role) for role in COUNTS for number in range(COUNTS[role])}
LIVE_BLOCK_BYTES = 6 * 2 * 2 * 64 * 4 * BLOCK_SIZE  # layers, k and v, heads, values, of 4 bytes


@pytest.fixture(scope="module", params=["sim", pytest.param("live", marks=pytest.mark.live)])
def cell(request: pytest.FixtureRequest) -> Iterator[AnyCell]:
    if request.param == "sim":
        yield SimAsk.start(COUNTS, NUM_BLOCKS, OPTIONS)
        return
    start: Callable[..., Any] = request.getfixturevalue("start_cell")
    gib = (NUM_BLOCKS + 0.5) * LIVE_BLOCK_BYTES / 2**30
    with start(**COUNTS, **OPTIONS, kv_cache_gib=gib) as live:
        cell = LiveAsk(live, LIVE_BLOCK_BYTES)
        await_roles(cell, ROLES)  # who came first stood in for who came last
        yield cell


def await_roles(cell: AnyCell, roles: dict[str, str]) -> None:
    """Ask for a little, again and again, so that time passes in both kinds of cell."""
    for number in range(400):
        if cell.roles() == roles:
            return
        cell.ask([Ask(prompt(20, 1000 + number), 20)])
    raise AssertionError(f"roles are {cell.roles()}, and not {roles}")


def prompt(length: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(f"{length} {seed}")
    return tuple(rng.randrange(3, 250) for _ in range(length))


def test_what_cannot_fit_is_rejected_and_the_rest_is_served(cell: AnyCell) -> None:
    long = Ask(prompt(NUM_BLOCKS * BLOCK_SIZE + 1, 1))
    answers = cell.ask([long, Ask(prompt(20, 1)), Ask(prompt(20, 2))])
    assert [answer.status for answer in answers] == ["rejected", "ok", "ok"]
    cell.settle()


def test_a_crowd_is_admitted_up_to_the_bound(cell: AnyCell) -> None:
    crowd = [Ask(prompt(600, 100 + number), 4) for number in range(40)]
    answers = cell.ask(crowd)
    assert {answer.status for answer in answers} == {"ok", "rejected"}
    assert sum(answer.status == "ok" for answer in answers) >= 12
    cell.settle()
    assert cell.ask([Ask(prompt(20, 3))])[0].status == "ok"


def test_a_hand_off_moves_the_blocks_that_are_not_there(cell: AnyCell) -> None:
    asked = prompt(100, 4)
    (first,) = cell.ask([Ask(asked, 5)])
    assert (first.status, first.num_tokens) == ("ok", 5)
    assert first.prefill.startswith("prefill-") and first.decode.startswith("decode-")
    assert first.moved_blocks == -(-100 // BLOCK_SIZE)
    (again,) = cell.ask([Ask(asked, 5)])
    assert again.moved_blocks <= first.moved_blocks
    if again.decode == first.decode:
        assert again.moved_blocks == 1, "only the last block, which is not full, was not there"
    cell.settle()


def test_prompts_that_begin_alike_go_to_the_same_node(cell: AnyCell) -> None:
    for seed in (10, 11, 12):
        begins = prompt(320, seed)
        nodes = []
        before = cell.total("cache_hit_tokens")
        for turn in range(3):
            # What has just ended still counts as work of its node until the node has reported.
            cell.settle()
            (answer,) = cell.ask([Ask((*begins, *prompt(20, 1000 * seed + turn)), 3)])
            nodes.append(answer.prefill)
        assert len(set(nodes)) == 1, nodes
        assert cell.total("cache_hit_tokens") - before >= 2 * 320
    cell.settle()


def test_a_client_that_leaves_gives_everything_back(cell: AnyCell) -> None:
    asks = [Ask(prompt(60, 20 + number), 150, leave_after=3 + 5 * number) for number in range(4)]
    answers = cell.ask([*asks, Ask(prompt(60, 30), 20)])
    assert [answer.status for answer in answers] == ["left"] * 4 + ["ok"]
    assert all(answer.num_tokens < 150 for answer in answers)
    cell.settle()


def test_preempted_requests_get_all_their_tokens(cell: AnyCell) -> None:
    before = cell.total("preemptions")
    answers = cell.ask([Ask(prompt(40, 40 + number), 260) for number in range(10)])
    assert [(answer.status, answer.num_tokens) for answer in answers] == [("ok", 260)] * 10
    assert cell.total("preemptions") > before
    assert max(answer.attempts for answer in answers) > 1
    cell.settle()


def test_a_node_changes_its_role_under_load(cell: AnyCell) -> None:
    asks = [Ask(prompt(50, 50 + number), 60) for number in range(8)]
    answers = cell.ask(asks, Fault("decode-1", 60, role="prefill"))
    assert [(answer.status, answer.num_tokens) for answer in answers] == [("ok", 60)] * 8
    assert cell.roles()["decode-1"] == "prefill"
    (answer,) = cell.ask([Ask(prompt(50, 60), 5)])
    assert answer.decode == "decode-0"
    cell.set_role("decode-1", "decode")
    cell.settle()
    assert cell.roles()["decode-1"] == "decode"


@pytest.mark.parametrize("node", ["decode-0", "prefill-1"])
def test_a_node_dies_under_load(cell: AnyCell, node: str) -> None:
    asks = [Ask(prompt(300, 70 + number), 50) for number in range(8)]
    answers = cell.ask(asks, Fault(node, 20))
    assert [(answer.status, answer.num_tokens) for answer in answers] == [("ok", 50)] * 8
    cell.settle()
    assert set(cell.roles()) == {"prefill-0", "prefill-1", "decode-0", "decode-1"}


def test_where_a_phase_is_lost_the_nodes_of_the_other_do_both(cell: AnyCell) -> None:
    cell.set_role("decode-1", "prefill")
    what = "prefill-0 becomes a mixed node"
    before = cell.num_decided(what)
    asks = [Ask(prompt(50, 80 + number), 200) for number in range(6)]
    # Whoever takes its place takes longer to begin than others do to stand in.
    answers = cell.ask(asks, Fault("decode-0", 60, hangs=True))
    assert [(answer.status, answer.num_tokens) for answer in answers] == [("ok", 200)] * 6
    assert cell.num_decided(what) == before + 1
    await_roles(cell, {**ROLES, "decode-1": "prefill"})
    cell.set_role("decode-1", "decode")
    cell.settle()


def test_the_cells_have_the_memory_that_these_tests_count_on(cell: AnyCell) -> None:
    assert cell.total("num_blocks") == 4 * NUM_BLOCKS
