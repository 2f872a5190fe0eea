"""The directory from block events: gaps, dead epochs, and who is asked to say it again."""

from __future__ import annotations

from typing import Any

import pytest
from coordinating import BLOCK_SIZE, Driver
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocklog import BlockLog
from pd.messages import BlockEvents, CellStatus, SyncBlocks, UsePool
from pd.policies.route import POLICIES
from pd.router import RouterOptions
from pd.types import Source

PROMPT = tuple(range(40))  # ten blocks


@pytest.fixture
def cell() -> Driver:
    return Driver(("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("k0", "pool"))


def leading(cell: Driver, prompt: tuple[int, ...] = PROMPT) -> dict[str, int]:
    keys = cell.keys(prompt)
    ints = [int.from_bytes(keys[i : i + 8], "little") for i in range(0, len(keys), 8)]
    found = cell.coordinator.holders.directory.lookup(ints)
    return {holder: part.blocks for holder, part in found.leading.items()}


def asked(cell: Driver) -> list[str]:
    return [to for to, _ in cell.sent(SyncBlocks)]


def test_what_holders_report_is_found(cell: Driver) -> None:
    cell.stores("p0", PROMPT[:20])
    cell.stores("k0", PROMPT[:28], tier="dram")
    assert leading(cell) == {"p0": 5, "k0": 7}
    assert asked(cell) == []


def test_a_gap_is_asked_about_once_until_everything_came_again(cell: Driver) -> None:
    cell.stores("p0", PROMPT[:8])
    cell.stores("p0", PROMPT[:20], skip=1)
    assert asked(cell) == ["p0"] and leading(cell) == {"p0": 2}
    cell.stores("p0", PROMPT[:20])
    cell.stores("p1", PROMPT[:4])
    assert asked(cell) == [] and leading(cell) == {"p0": 2, "p1": 1}
    cell.stores("p0", PROMPT[:12], reset=True)
    cell.stores("p0", PROMPT[:16])
    assert leading(cell) == {"p0": 4, "p1": 1}
    cell.stores("p0", PROMPT, skip=1)
    assert asked(cell) == ["p0"], "another gap"


def test_a_lost_request_to_sync_is_repeated(cell: Driver) -> None:
    cell.stores("p0", PROMPT, skip=3)
    assert asked(cell) == ["p0"]
    cell.tick(1.0)
    assert asked(cell) == []
    cell.tick(1.0)
    assert asked(cell) == ["p0"]
    cell.tick(2.0)
    assert asked(cell) == ["p0"]
    cell.stores("p0", PROMPT, reset=True)
    cell.tick(5.0)
    assert asked(cell) == [] and leading(cell) == {"p0": 10}


def test_a_gap_in_the_middle_of_a_sync_begins_another(cell: Driver) -> None:
    cell.stores("p0", PROMPT, skip=1)
    cell.stores("p0", PROMPT[:8], reset=True)
    cell.stores("p0", PROMPT, skip=1)
    assert asked(cell) == ["p0", "p0"]
    cell.stores("p0", PROMPT[:4], reset=True)
    assert leading(cell) == {"p0": 1}


def test_events_that_cannot_be_are_a_gap(cell: Driver) -> None:
    cell.hear("p0", BlockEvents(1, False, "node", b"seven b"))
    assert asked(cell) == ["p0"]
    cell.hear("p1", BlockEvents(1, False, "tape", b""))  # type: ignore[arg-type]
    assert asked(cell) == ["p1"]
    cell.stores("p0", PROMPT, reset=True)
    assert leading(cell) == {"p0": 10}


def test_strangers_hold_nothing(cell: Driver) -> None:
    cell.seqs["nobody"] = 0
    cell.stores("nobody", PROMPT)
    assert leading(cell) == {} and asked(cell) == []


@pytest.mark.parametrize("how", ["lost", "replaced", "silent"])
def test_the_blocks_of_a_dead_epoch_are_gone_at_once(cell: Driver, how: str) -> None:
    cell.stores("p0", PROMPT)
    cell.stores("k0", PROMPT[:8], tier="disk")
    if how == "lost":
        cell.lose("k0")
    elif how == "replaced":
        cell.join("k0", "pool")
    else:
        for _ in range(6):
            cell.now += 1.0
            for member in ("p0", "p1", "d0", "g"):
                cell.coordinator.members.heard_of(member, cell.now)
            cell.coordinator.tick(cell.now)
    assert leading(cell) == {"p0": 10}
    cell.lose("p0")
    assert leading(cell) == {}


def test_a_new_process_begins_its_own_count(cell: Driver) -> None:
    cell.stores("p0", PROMPT)
    cell.stores("p0", PROMPT[:4])
    cell.join("p0", "prefill")
    cell.stores("p0", PROMPT[:12])
    assert leading(cell) == {"p0": 3} and asked(cell) == []


def test_a_sync_asked_of_a_process_that_went_is_not_repeated(cell: Driver) -> None:
    cell.stores("p0", PROMPT, skip=1)
    cell.lose("p0")
    cell.clear()
    cell.tick(10.0)
    assert asked(cell) == []


def test_memory_of_the_dead_is_given_back_tick_by_tick(cell: Driver) -> None:
    cell.stores("p0", tuple(range(4000)))
    cell.lose("p0")
    directory = cell.coordinator.holders.directory
    assert len(directory) == 1000
    for _ in range(5):
        cell.tick(0.1)
    assert len(directory) == 0


def test_status_says_how_much_each_holder_has(cell: Driver) -> None:
    cell.stores("p0", PROMPT)
    cell.stores("k0", PROMPT[:8], tier="dram")
    cell.stores("k0", PROMPT[:12], tier="disk")
    cell.tick()
    ((_, status),) = cell.sent(CellStatus)
    rows = {row["id"]: row for row in status.nodes}
    assert {name: row["directory_blocks"] for name, row in rows.items()} == {
        "p0": 10, "p1": 0, "d0": 0, "k0": 3,
    }  # fmt: skip
    assert rows["p0"]["pool"] == "k0" and "pool" not in rows["k0"]


# ---------------------------------------------------------------- pools among the members
def test_pools_run_nothing_and_limit_nothing() -> None:
    cell = Driver(("k0", "pool"))
    cell.submit()
    assert "no node has joined yet" in cell.rejected().message
    cell.join("k1", "pool", max_model_len=0, max_num_seqs=0, num_blocks=1)
    cell.join("p0", "prefill")
    cell.join("d0", "decode")
    cell.tick()
    *_, (_, status) = cell.sent(CellStatus)
    assert status.ready and status.max_model_len == 80
    to, start = cell.placed(num_tokens=20)
    assert (to, start.decode) == ("p0", "d0")
    cell.submit("long", 100)
    assert cell.rejected().status == 400


def test_an_undelivered_pool_is_told_again(cell: Driver) -> None:
    message = UsePool("k0", cell.coordinator.members.nodes["k0"].epoch)
    cell.coordinator.on_undeliverable("p1", message)
    cell.tick()
    assert cell.sent(UsePool) == [("p1", message)]


# ---------------------------------------------------------------- where to fetch from
def test_a_prefill_node_is_told_where_blocks_lie(cell: Driver) -> None:
    nodes = cell.coordinator.members.nodes
    cell.stores("k0", PROMPT[:24], tier="dram")
    cell.stores("k0", PROMPT[:32], tier="disk")
    cell.stores("d0", PROMPT[:20])
    to, start = cell.placed(prompt=PROMPT)
    assert start.sources == (
        Source("k0", nodes["k0"].epoch, 8, 2),
        Source("d0", nodes["d0"].epoch, 5),
    )
    assert to in ("p0", "p1") and start.sources[0].num_blocks * BLOCK_SIZE < len(PROMPT)


def test_a_node_is_no_source_for_itself_nor_is_who_has_no_more(cell: Driver) -> None:
    cell.stores("p0", PROMPT[:24])
    cell.stores("p1", PROMPT[:24])
    cell.stores("k0", PROMPT[:24], tier="dram")
    _, start = cell.placed(prompt=PROMPT)
    assert start.sources == ()


def test_every_policy_says_where_to_fetch_from() -> None:
    for routing in POLICIES:
        cell = Driver(("m0", "mixed"), ("k0", "pool"), router=RouterOptions(routing=routing))
        cell.stores("k0", PROMPT, tier="dram")
        to, start = cell.placed(prompt=PROMPT)
        assert to == "m0" and [source.holder for source in start.sources] == ["k0"]


def test_only_the_best_few_are_named() -> None:
    cell = Driver(("p0", "prefill"), ("d0", "decode"), *((f"k{i}", "pool") for i in range(6)))  # type: ignore[arg-type]
    for i in range(6):
        cell.stores(f"k{i}", PROMPT[: 4 * (i + 1)], tier="dram")
    _, start = cell.placed(prompt=PROMPT)
    assert [source.holder for source in start.sources] == ["k5", "k4", "k3"]


# ---------------------------------------------------------------- whatever is lost on the way
class LossyHolder:
    """Has blocks, reports changes through a channel that loses messages, and answers syncs."""

    def __init__(self, cell: Driver, node_id: str) -> None:
        self.cell, self.node_id = cell, node_id
        self.log = BlockLog()
        self.has: set[bytes] = set()

    def change(self, number: int) -> None:
        key = number.to_bytes(8, "little") + bytes(24)
        if key in self.has:
            self.has.remove(key)
            self.log.removed(key, "node")
        else:
            self.has.add(key)
            self.log.stored(key, "node")

    def send(self, lost: bool) -> None:
        for events in self.log.drain(limit_keys=3):
            if not lost:
                self.cell.hear(self.node_id, events)

    def hear(self) -> None:
        for to, _ in self.cell.sent(SyncBlocks):
            assert to == self.node_id
            self.log.resync(("node", key) for key in sorted(self.has))

    def known(self) -> set[bytes]:
        directory = self.cell.coordinator.holders.directory
        keys = [int.from_bytes(key[:8], "little") for key in self.has]
        found = {
            key.to_bytes(8, "little") + bytes(24)
            for key in keys
            if self.node_id in directory.lookup([key]).leading
        }
        return found if directory.num_blocks(self.node_id) == len(found) else set()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("change"), st.integers(0, 15)),
            st.tuples(st.just("send"), st.booleans()),
            st.tuples(st.sampled_from(["hear", "tick"]), st.none()),
        ),
        max_size=60,
    )
)
def test_the_directory_agrees_with_a_holder_in_the_end(steps: list[tuple[str, Any]]) -> None:
    cell = Driver(("p0", "prefill"))
    holder = LossyHolder(cell, "p0")
    for kind, what in steps:
        if kind == "change":
            holder.change(what)
        elif kind == "send":
            holder.send(lost=what)
        elif kind == "hear":
            holder.hear()
        else:
            cell.tick(1.0)
    holder.change(99)  # a gap shows with the first message that is not lost
    for _ in range(12):
        holder.send(lost=False)
        cell.tick(1.0)
        holder.hear()
    while holder.log:
        holder.send(lost=False)
    assert holder.known() == holder.has
