"""Admission, placement, losses and parking, one event at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinating import Driver

from pd.messages import (
    Abort,
    Admitted,
    BlockEvents,
    Cancel,
    CellStatus,
    Finished,
    GatewayHello,
    Granted,
    Heartbeat,
    Interrupted,
    PeerLost,
    Rejected,
    Reserve,
    Snapshot,
    StartPrefill,
)
from pd.outbox import Kill, Send
from pd.types import NodeSnapshot, Role


@pytest.fixture
def pair() -> Driver:
    return Driver(("p0", "prefill"), ("d0", "decode"))


# ---------------------------------------------------------------- placing
def test_work_goes_to_both_ends_of_a_hand_off(pair: Driver) -> None:
    work = pair.submit(n=2)
    ((to_decode, reserve),) = pair.sent(Reserve)
    ((to_prefill, start),) = pair.sent(StartPrefill)
    assert (to_decode, to_prefill) == ("d0", "p0")
    nodes = pair.coordinator.members.nodes
    assert reserve == Reserve(work, start.transfer_id, "p0", nodes["p0"].epoch)
    assert start == StartPrefill(work, reserve.transfer_id, "d0", nodes["d0"].epoch)
    epochs = nodes["p0"].epoch, nodes["d0"].epoch
    assert pair.sent(Admitted) == [("g", Admitted("r", (0, 1), 0, "p0", "d0", *epochs))]


def test_a_mixed_node_gets_one_order() -> None:
    driver = Driver(("m0", "mixed"))
    driver.submit()
    assert not driver.sent(Reserve)
    ((to, start),) = driver.sent(StartPrefill)
    assert to == start.decode == "m0"


def test_transfer_ids_are_never_used_twice(pair: Driver) -> None:
    for number in range(5):
        pair.submit(f"r{number}")
    ids = [start.transfer_id for _, start in pair.sent(StartPrefill)]
    assert len(set(ids)) == 5


def test_a_burst_between_snapshots_spreads() -> None:
    driver = Driver(("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode"))
    for number in range(8):
        driver.submit(f"r{number}")
    starts = driver.sent(StartPrefill)
    assert sorted(to for to, _ in starts) == ["p0"] * 4 + ["p1"] * 4
    assert sorted(start.decode for _, start in starts) == ["d0"] * 4 + ["d1"] * 4


def test_a_request_goes_only_where_it_fits() -> None:
    """Nodes of several sizes: the idle one is no use if it can never hold the sequence."""
    driver = Driver(("p0", "prefill"))
    driver.join("small", "decode", num_blocks=3)
    driver.join("busy", "decode", num_blocks=30)
    full = NodeSnapshot("busy", "decode", 3, num_running=7, num_blocks=30, free_blocks=1)
    driver.hear("busy", Snapshot(full))
    driver.submit("long", 20)
    driver.submit("short", 2, max_tokens=2)
    assert [start.decode for _, start in driver.sent(StartPrefill)] == ["busy", "small"]


def test_nodes_of_other_layouts_are_not_paired() -> None:
    driver = Driver(("p0", "prefill"))
    driver.join("d9", "decode", layout=2)
    driver.submit()
    rejected = driver.rejected()
    assert rejected.status == 503 and "layout" in rejected.message
    driver.tick()
    ((_, status),) = driver.sent(CellStatus)
    assert not status.ready and "layout" in status.reason


# ---------------------------------------------------------------- refusing
@pytest.mark.parametrize(
    ("request_args", "why"),
    [
        ({"num_tokens": 78, "max_tokens": 3}, "more than the 80 tokens a sequence may have"),
        ({"n": 9}, "decode node"),
        ({"num_tokens": 62, "max_tokens": 17, "n": 5}, "decode node"),
    ],
)
def test_what_never_fits_is_a_400(pair: Driver, request_args: dict[str, int], why: str) -> None:
    pair.submit(**request_args)  # type: ignore[arg-type]
    rejected = pair.rejected()
    assert rejected.status == 400 and why in rejected.message
    assert pair.num_requests == 0


def test_what_just_fits_is_admitted(pair: Driver) -> None:
    pair.submit("a", 77, max_tokens=3)
    pair.submit("b", 62, max_tokens=17, n=4)
    assert len(pair.sent(Admitted)) == 2


def test_a_prompt_too_long_for_every_prefill_node_is_a_400() -> None:
    driver = Driver(("d0", "decode"))
    driver.join("p0", "prefill", num_blocks=2)
    driver.submit("r", 20)
    assert "prefill node" in driver.rejected().message


@pytest.mark.parametrize("roles", [(), (("p0", "prefill"),), (("d0", "decode"),)])
def test_a_cell_that_lacks_nodes_says_503(roles: tuple[tuple[str, Role], ...]) -> None:
    driver = Driver(*roles)
    driver.submit()
    rejected = driver.rejected()
    assert rejected.status == 503 and rejected.retry_after_s > 0
    assert "not ready" in rejected.message and rejected.message.rstrip().endswith(("yet", "is up"))


def test_a_full_queue_is_a_429_that_says_when_to_come_back() -> None:
    driver = Driver(("p0", "prefill"), ("d0", "decode"), max_waiting_per_node=2)
    for number in range(3):
        driver.submit(f"r{number}")
    assert len(driver.sent(StartPrefill)) == 2
    rejected = driver.rejected()
    assert rejected.status == 429 and rejected.request_id == "r2"
    assert 1.0 <= rejected.retry_after_s <= 60.0


def test_every_node_that_computes_prompts_lets_more_wait() -> None:
    nodes = ("p0", "prefill"), ("p1", "prefill"), ("m0", "mixed"), ("d0", "decode")
    driver = Driver(*nodes, max_waiting_per_node=2)
    for number in range(8):
        driver.submit(f"r{number}")
    assert [message.request_id for _, message in driver.sent(Rejected)] == ["r6", "r7"]


def test_the_queue_is_counted_from_snapshots_and_what_they_do_not_show_yet() -> None:
    driver = Driver(("p0", "prefill"), ("d0", "decode"), max_waiting_per_node=2)
    driver.submit("a")
    driver.submit("b")
    idle = NodeSnapshot("p0", "prefill", 2, last_transfer_id=2, num_waiting=0)
    driver.hear("p0", Snapshot(replace(idle, num_waiting=1)))
    driver.submit("c")
    driver.submit("d")
    assert [message.request_id for _, message in driver.sent(Rejected)] == ["d"]
    driver.hear("p0", Snapshot(replace(idle, last_transfer_id=3)))
    driver.submit("e")
    assert not driver.sent(Rejected)


def test_work_that_has_begun_is_not_turned_away() -> None:
    driver = Driver(("p0", "prefill"), ("d0", "decode"), max_waiting_per_node=0)
    driver.submit(attempt=1, output=(5,))
    assert driver.sent(Admitted)


# ---------------------------------------------------------------- ending
def test_finished_and_cancelled_work_is_forgotten(pair: Driver) -> None:
    pair.submit("a", n=2)
    pair.submit("b")
    pair.hear("g", Finished("a", (0,)))
    assert pair.num_requests == 2
    pair.hear("g", Finished("a", (1,)))
    pair.hear("g", Cancel("b", (0,)))
    pair.hear("g", Cancel("unknown", (0,)))
    pair.hear("g", Finished("unknown", (7,)))
    assert pair.num_requests == 0


def test_a_cancel_reaches_both_nodes(pair: Driver) -> None:
    pair.submit(n=3)
    pair.hear("g", Finished("r", (1,)))
    pair.hear("g", Cancel("r", (0, 1, 2)))
    abort = Abort("r", (0, 2), 0)
    assert pair.sent(Abort) == [("d0", abort), ("p0", abort)]


def test_a_new_attempt_ends_the_one_before_it(pair: Driver) -> None:
    pair.submit(n=2)
    pair.clear()
    work = pair.submit(n=2, attempt=1)
    assert [message for _, message in pair.sent(Abort)] == [Abort("r", (0, 1), 0)] * 2
    assert [start.work for _, start in pair.sent(StartPrefill)] == [work]


def test_an_order_that_cannot_be_delivered_is_interrupted(pair: Driver) -> None:
    work = pair.submit()
    ((_, start),) = pair.sent(StartPrefill)
    pair.coordinator.on_undeliverable("p0", start)
    assert {to for to, _ in pair.sent(Abort)} == {"p0", "d0"}
    ((_, interrupted),) = pair.sent(Interrupted)
    assert interrupted.indices == work.indices and "p0" in interrupted.reason
    assert pair.num_requests == 0


def test_an_order_that_was_not_delivered_leaves_no_credit(pair: Driver) -> None:
    pair.submit()
    ((_, start),) = pair.sent(StartPrefill)
    pair.coordinator.on_undeliverable("p0", start)
    assert not pair.coordinator.members.nodes["p0"].credit


def test_messages_that_can_be_missed_may_be_undeliverable(pair: Driver) -> None:
    pair.coordinator.on_undeliverable("d0", Abort("r", (0,), 0))
    assert not pair.coordinator.drain()


def test_a_message_it_has_no_use_for_is_an_error(pair: Driver) -> None:
    with pytest.raises(TypeError, match="Granted"):
        pair.hear("p0", Granted(1, 0, ()))


# ---------------------------------------------------------------- losses
def test_a_lost_decode_node_interrupts_what_decodes_there() -> None:
    driver = Driver(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))
    driver.submit("a", n=2)
    driver.submit("b")
    driver.hear("g", Finished("a", (0,)))
    driver.lose("d0")
    assert [(m.request_id, m.indices, m.unstarted_only) for _, m in driver.sent(Interrupted)] == [
        ("a", (1,), False)
    ]


def test_a_lost_prefill_node_interrupts_what_has_not_begun(pair: Driver) -> None:
    pair.submit()
    pair.lose("p0")
    ((_, interrupted),) = pair.sent(Interrupted)
    assert interrupted.unstarted_only


def test_a_lost_mixed_node_interrupts_everything() -> None:
    driver = Driver(("m0", "mixed"))
    driver.submit()
    driver.lose("m0")
    ((_, interrupted),) = driver.sent(Interrupted)
    assert not interrupted.unstarted_only


def test_a_late_report_of_an_earlier_process_interrupts_nothing(pair: Driver) -> None:
    old = pair.coordinator.members.nodes["d0"].hello.incarnation
    pair.join("d0", "decode")
    pair.submit()
    pair.clear()
    pair.coordinator.on_process_lost("d0", old, pair.now, "was killed")
    assert not pair.sent(Interrupted) and not pair.sent(PeerLost)


def test_a_node_that_rejoins_has_lost_what_it_ran(pair: Driver) -> None:
    pair.submit()
    pair.join("d0", "decode")
    assert len(pair.sent(Interrupted)) == 1


def test_a_silent_node_is_ended_and_its_work_goes_on_elsewhere(pair: Driver) -> None:
    pair.submit()
    for _ in range(6):
        pair.now += 1.0
        pair.hear("d0", Heartbeat("d0"))
        pair.hear("g", Heartbeat("g"))
        pair.coordinator.tick(pair.now)
    effects = pair.coordinator.drain()
    (kill,) = [effect for effect in effects if isinstance(effect, Kill)]
    assert kill.id == "p0" and "silent for 5 s" in kill.reason
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    assert any(isinstance(message, Interrupted) for message in messages)
    assert not any(isinstance(message, PeerLost) for message in messages)
    pair.coordinator.on_process_lost("p0", kill.incarnation, pair.now, "was killed")
    assert pair.sent(PeerLost) and not pair.sent(Interrupted)


def test_a_lost_gateway_takes_its_requests_with_it(pair: Driver) -> None:
    pair.hear("g2", GatewayHello("g2", 1, {}))
    pair.submit("a", n=2)
    pair.submit("b", gateway="g2")
    pair.lose("d0")
    pair.submit("c", attempt=1, output=(1,))  # waits for a decode node
    pair.clear()
    pair.coordinator.on_process_lost("g", 1, pair.now, "was killed")
    assert [(to, message.request_id) for to, message in pair.sent(Abort)] == [("p0", "a")]
    assert pair.num_requests == 1


def test_a_request_that_outlived_its_gateway_is_not_taken(pair: Driver) -> None:
    pair.coordinator.on_process_lost("g", 1, pair.now, "was killed")
    pair.submit()
    assert not pair.sent(StartPrefill) and pair.num_requests == 0


# ---------------------------------------------------------------- parking
def test_interrupted_work_waits_for_a_node_to_come_back(pair: Driver) -> None:
    pair.lose("d0")
    pair.submit(attempt=1, output=(5,))
    pair.tick(20.0)
    assert not pair.sent(Rejected) and not pair.sent(StartPrefill) and pair.num_requests == 1
    pair.join("d0", "decode")
    pair.tick()
    ((_, start),) = pair.sent(StartPrefill)
    assert start.work.output == (5,) and pair.num_requests == 1


def test_waiting_for_a_node_ends_after_a_while(pair: Driver) -> None:
    pair.lose("d0")
    pair.submit(attempt=1, output=(5,))
    pair.tick(29.0)
    assert not pair.sent(Rejected)
    pair.tick(1.0)
    rejected = pair.rejected()
    assert rejected.status == 503 and "no decode node is up" in rejected.message
    assert rejected.attempt == 1 and pair.num_requests == 0


def test_waiting_work_can_be_cancelled_in_part_or_whole(pair: Driver) -> None:
    pair.lose("d0")
    pair.submit("a", n=3, attempt=1)
    pair.submit("b", n=2, attempt=1)
    pair.hear("g", Cancel("a", (1,)))
    pair.hear("g", Cancel("b", (1,)))
    pair.hear("g", Cancel("b", (0,)))
    assert pair.num_requests == 1
    pair.join("d0", "decode")
    pair.tick()
    assert [start.work.indices for _, start in pair.sent(StartPrefill)] == [(0, 2)]


def test_interrupted_work_waits_for_a_node_that_is_large_enough() -> None:
    driver = Driver(("p0", "prefill"))
    driver.join("small", "decode", num_blocks=3)
    driver.submit("r", 20, attempt=1, output=(5,))
    driver.tick(5.0)
    assert not driver.sent(Rejected) and not driver.sent(StartPrefill)
    driver.join("large", "decode")
    driver.tick()
    assert [start.decode for _, start in driver.sent(StartPrefill)] == ["large"]


# ---------------------------------------------------------------- status
def test_nodes_are_listed_in_one_order_however_they_started() -> None:
    driver = Driver(
        ("mixed-0", "mixed"), ("decode-10", "decode"), ("decode-2", "decode"),
        ("prefill-0", "prefill"),
    )  # fmt: skip
    nodes = [node["id"] for node in driver.coordinator.status(driver.now).nodes]
    assert nodes == ["prefill-0", "decode-2", "decode-10", "mixed-0"]


def test_gateways_hear_how_the_cell_is_and_at_once_when_it_changes(pair: Driver) -> None:
    pair.tick()
    ((to, status),) = pair.sent(CellStatus)
    assert to == "g" and status.ready and status.reason == "" and status.max_model_len == 80
    assert [node["id"] for node in status.nodes] == ["p0", "d0"]
    assert {"role", "epoch", "pid", "host", "state", "free_blocks"} <= status.nodes[0].keys()
    pair.tick()
    assert not pair.sent(CellStatus)
    pair.lose("d0")
    pair.tick()
    ((_, status),) = pair.sent(CellStatus)
    assert not status.ready and status.reason == "no decode node is up"


def test_popular_prefixes_and_who_has_them(pair: Driver) -> None:
    for i in range(3):
        work = pair.submit(f"r{i}", 10)
        pair.hear("g", Finished(work.request.request_id, (0,)))
    pair.submit("other", 3)  # shares no whole block with them
    (prefix,) = pair.coordinator.status(pair.now).prefixes
    assert (prefix["tokens"], prefix["requests"], prefix["holders"]) == (8, 3, "")
    key = int(str(prefix["key"]), 16).to_bytes(8, "little")
    pair.hear("p0", BlockEvents(1, False, "node", key))
    (prefix,) = pair.coordinator.status(pair.now).prefixes
    assert prefix["holders"] == "p0"
