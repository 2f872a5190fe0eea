"""Named failures of a whole cell, each of a kind that users of such systems have met. Whatever
happened, clients get exactly their tokens and nothing stays held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cell.cell import TIME_STEP_S, Cell, Faults
from cell.checks import check_done, check_pages
from cell.workload import TOPOLOGIES, make_request, stage_of

from pd.node.core import NodeLimits
from pd.types import Role

PAIR, PAIRS = TOPOLOGIES["p+d"], TOPOLOGIES["2p+2d"]
LONG = tuple(range(30))
SEEDS = range(4)


def run_until(cell: Cell, reached: Callable[[], bool]) -> None:
    cell.settle(until=reached, limit=5000)
    check_pages(cell)


def ends_well(cell: Cell) -> None:
    """Everything ends, and the cell serves whoever comes next."""
    cell.settle()
    check_done(cell)
    cell.submit(make_request("next", (9, 8, 7)))
    cell.settle()
    check_done(cell)


def busy_cell(seed: int) -> Cell:
    """A cell whose decode node has no room for `LONG` until what runs there has ended."""
    cell = Cell(PAIR, num_blocks=12, seed=seed)
    cell.submit(make_request("other", tuple(range(100, 113)), max_tokens=30))
    run_until(cell, lambda: stage_of(cell, "other") == "decode")
    return cell


def num_tokens(cell: Cell, request_id: str = "r") -> int:
    return cell.gateway.records[request_id].num_output


def pass_time(cell: Cell, seconds: float) -> None:
    for _ in range(round(seconds / TIME_STEP_S)):
        cell.act("time", None)
        cell.steps(20)
        check_pages(cell)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "stage",
    ["on the way", "waiting for room", "prefill", "prefill step", "transfer", "decode",
     "decode step"],
)  # fmt: skip
@pytest.mark.parametrize("n", [1, 3])
def test_cancelled_at_every_stage(stage: str, n: int, seed: int) -> None:
    cell = busy_cell(seed)
    cell.submit(make_request("r", LONG, n=n, max_tokens=10))
    run_until(cell, lambda: stage_of(cell, "r") == stage)
    cell.cancel("r")
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", ["waiting for room", "prefill", "transfer", "decode"])
def test_one_of_several_outputs_ends_at_every_stage(stage: str, seed: int) -> None:
    cell = busy_cell(seed)
    cell.submit(make_request("r", LONG, n=3, max_tokens=10))
    run_until(cell, lambda: stage_of(cell, "r") == stage)
    cell.gateway.stop("r", 0)
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("stage", ["prefill", "transfer", "decode"])
@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_a_node_is_lost(victim: Role, stage: str, noticed: bool, seed: int) -> None:
    cell = Cell(PAIRS, seed=seed)
    for number in range(4):
        cell.submit(make_request(f"r{number}", (*LONG, number), n=2, max_tokens=12))
    run_until(cell, lambda: stage_of(cell, "r0") == stage)
    candidates = [n for n, node in cell.nodes.items() if node.core.role == victim]
    node_id = next((n for n in candidates if not cell.nodes[n].idle), candidates[0])
    cell.kill_node(node_id, noticed=noticed)
    cell.steps(30)
    cell.start_node(node_id)
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_nodes_of_a_hand_off_are_lost(seed: int) -> None:
    cell = Cell(PAIR, seed=seed)
    cell.submit(make_request("r", LONG, n=2, max_tokens=12))
    run_until(cell, lambda: num_tokens(cell) >= 3)
    cell.kill_node("p0")
    cell.kill_node("d0")
    cell.steps(100)
    assert cell.coordinator._parked, "it waits for nodes to come back"
    cell.start_node("d0")
    cell.steps(100)
    cell.start_node("p0")
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("delivered", [True, False])
def test_the_prefill_node_is_lost_around_its_first_token(delivered: bool, seed: int) -> None:
    """Before the gateway had it or after, with the rest of the sequence in decode."""
    cell = Cell(PAIR, seed=seed)
    prefill = cell.nodes["p0"].address

    def tokens_wait() -> bool:
        return any(
            channel.sender == prefill and channel.receiver == cell.gateway.address
            for channel in cell.network.channels
        )

    cell.submit(make_request("r", LONG, max_tokens=12))
    run_until(cell, tokens_wait)
    if delivered:
        run_until(cell, lambda: num_tokens(cell) >= 1)
    else:
        for channel in list(cell.network.channels):
            if channel.sender == prefill and channel.receiver == cell.gateway.address:
                del cell.network.channels[channel]
    cell.kill_node("p0")
    cell.start_node("p0")
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_sender_wakes_up_before_it_is_ended(seed: int) -> None:
    """SIGSTOP in the middle of a copy: until the process is dead its pages are nobody else's,
    because when it goes on, so does the copy."""
    cell = Cell(PAIR, seed=seed)
    cell.submit(make_request("r", LONG, max_tokens=12))
    run_until(cell, lambda: any(copy.begun for copy in cell.network.copies))
    cell.freeze("p0")
    while not cell.kills:
        cell.act("time", None)
        for action in [a for a in cell.actions() if a[0] not in ("time", "kill")]:
            if action in cell.actions():
                cell.act(*action)
        check_pages(cell)
    assert cell.nodes["d0"].core.decode.handoffs, "the pages are still held"
    cell.thaw("p0")
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_decode_node_is_replaced(seed: int) -> None:
    cell = Cell(PAIRS, seed=seed)
    for number in range(3):
        cell.submit(make_request(f"r{number}", (*LONG, number), max_tokens=12))
    run_until(cell, lambda: num_tokens(cell, "r0") >= 3)
    node_id = next(n for n in ("d0", "d1") if cell.nodes[n].core.decode.scheduler.running)
    cell.freeze(node_id)
    ends_well(cell)
    assert cell.counts["kills"] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_is_frozen_for_less_than_its_timeout_loses_nothing(seed: int) -> None:
    cell = Cell(PAIR, seed=seed)
    cell.submit(make_request("r", LONG, max_tokens=12))
    run_until(cell, lambda: num_tokens(cell) >= 2)
    cell.freeze("d0")
    pass_time(cell, 1.0)
    cell.thaw("d0")
    ends_well(cell)
    assert cell.counts["kills"] == 0 and cell.gateway.interruptions == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "faults", [Faults(drop=0.4), Faults(fail=0.3), Faults(damage=0.3), Faults(refuse=0.2)],
    ids=["messages dropped", "pushes fail", "blocks damaged", "orders refused"],
)  # fmt: skip
def test_an_unreliable_network(faults: Faults, seed: int) -> None:
    cell = Cell(PAIRS, faults=faults, seed=seed)
    for number in range(6):
        cell.submit(make_request(f"r{number}", (*LONG[:14], number), n=2, max_tokens=6))
        cell.gateway.records[f"r{number}"].max_fruitless = 1000
    cell.settle()
    check_done(cell)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("topology", ["p+d", "2m"])
def test_preempted_sequences_resume_where_they_were(topology: str, seed: int) -> None:
    limits = NodeLimits(max_num_batched_tokens=16, max_num_seqs=8, watermark=0.0, lease_s=2.0)
    cell = Cell(TOPOLOGIES[topology], num_blocks=10, block_size=2, limits=limits, seed=seed)
    for number in range(8):
        cell.submit(make_request(f"r{number}", (number, 2, 3), n=2, max_tokens=12))
    cell.settle()
    check_done(cell)
    assert sum(n.core.decode.scheduler.preemptions for n in cell.nodes.values()) > 0
    assert cell.gateway.interruptions > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gateway_that_is_lost_leaves_nothing_running(seed: int) -> None:
    cell = Cell(PAIR, seed=seed)
    for number in range(4):
        cell.submit(make_request(f"r{number}", (*LONG, number), n=2, max_tokens=30))
    cell.steps(100 + 50 * seed)
    cell.kill_gateway()
    ends_well(cell)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prompt_seen_before_is_neither_computed_nor_sent_again(seed: int) -> None:
    cell = Cell(PAIR, seed=seed)
    cell.submit(make_request("first", LONG, max_tokens=4))
    cell.settle()
    cell.submit(make_request("again", LONG, max_tokens=4))
    cell.settle()
    check_done(cell)
    prefill = cell.nodes["p0"].core.snapshot(cell.now)
    assert prefill.cache_hit_tokens == 28  # all full blocks of 30 tokens
    assert prefill.num_transfers > 0
