"""A coordinator that was started anew: what it learns from hellos and from what runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinating import LAYOUT, Driver

from pd.coordinator import Coordinator, CoordinatorLimits
from pd.messages import (
    Abort,
    Admitted,
    Cancel,
    GatewayHello,
    Interrupted,
    NodeHello,
    Ongoing,
    PeerLost,
    Peers,
    Rejected,
    SetRole,
    StartPrefill,
    SyncBlocks,
    Verify,
    Welcome,
)
from pd.outbox import ANY_PROCESS, Kill
from pd.types import Peer, Role

GATEWAY, PREFILL, DECODE = Peer("g", 1), Peer("p0", 2), Peer("d0", 3)
CELL = (GATEWAY, PREFILL, DECODE)


class Restarted(Driver):
    """It knows nobody yet."""

    def __init__(self) -> None:
        super().__init__()
        limits = CoordinatorLimits(node_timeout_s=5.0, recovery_timeout_s=30.0, epoch=100)
        self.coordinator = Coordinator(limits)
        self.coordinator.tick(self.now)

    def returns(self, peer: Peer, role: Role | None = None, incarnation: int = 7) -> None:
        """A process of before says hello, and whom it knows."""
        others = tuple(each for each in CELL if each.id != peer.id)
        if role is None:
            hello = GatewayHello(peer.id, incarnation, {}, epoch=peer.epoch, peers=others)
            self.hear(peer.id, hello)
        else:
            self.hear(
                peer.id,
                NodeHello(
                    peer.id, role, incarnation, {}, LAYOUT, 20, 4, 80, 8, 0, "host",
                    epoch=peer.epoch, peers=others,
                ),
            )  # fmt: skip

    def all_return(self) -> None:
        self.returns(GATEWAY)
        self.returns(PREFILL, "prefill")
        self.returns(DECODE, "decode")

    def kills(self) -> list[Kill]:
        self.sent(Welcome)
        found = [effect for effect in self._effects if isinstance(effect, Kill)]
        self._effects = [effect for effect in self._effects if not isinstance(effect, Kill)]
        return found


@pytest.fixture
def driver() -> Restarted:
    return Restarted()


def test_members_keep_their_epochs_and_nobody_is_hung_up_on(driver: Restarted) -> None:
    driver.returns(PREFILL, "prefill")
    assert driver.sent(Welcome) == [("p0", Welcome("p0", 7, 2, 100))]
    told = driver.sent(Peers)[-1][1]
    assert {peer.id: peer.epoch for peer in told.peers} == {"g": 1, "p0": 2, "d0": 3}
    assert driver.sent(SyncBlocks) == [("p0", SyncBlocks())]
    driver.returns(GATEWAY)
    driver.returns(DECODE, "decode")
    assert not driver.coordinator.members.absent
    assert not driver.sent(PeerLost)


def test_epochs_given_from_now_on_are_later(driver: Restarted) -> None:
    driver.all_return()
    driver.clear()
    driver.join("d1", "decode")
    ((_, welcome),) = driver.sent(Welcome)
    assert welcome.epoch >= 100


def test_new_work_waits_for_nodes_that_have_yet_to_return(driver: Restarted) -> None:
    driver.returns(GATEWAY)
    driver.submit("r")
    driver.returns(PREFILL, "prefill")
    driver.tick(1.0)
    assert not driver.sent(Rejected) and not driver.sent(StartPrefill)
    driver.returns(DECODE, "decode")
    driver.tick()
    ((to, start),) = driver.sent(StartPrefill)
    assert to == "p0" and start.transfer_id > 100
    assert not driver.sent(Rejected)


def test_new_work_is_refused_once_nobody_is_left_to_return(driver: Restarted) -> None:
    driver.returns(GATEWAY)
    driver.submit("r")
    driver.tick(12.0)
    ((_, rejected),) = driver.sent(Rejected)
    assert rejected.status == 503
    assert [kill.id for kill in driver.kills()] == ["p0", "d0"]


def test_who_does_not_return_is_ended_and_lost(driver: Restarted) -> None:
    driver.returns(GATEWAY)
    driver.returns(PREFILL, "prefill")
    driver.hear("g", Ongoing(Admitted("r", (0,), 1, "p0", "d0", 2, 3)))
    driver.tick(4.0)
    assert not driver.sent(Interrupted)
    driver.tick(2.0)
    assert driver.kills() == [Kill("d0", ANY_PROCESS, "silent for 5 s")]
    ((to, interrupted),) = driver.sent(Interrupted)
    assert to == "g" and interrupted.attempt == 1 and "decode node d0" in interrupted.reason
    assert not driver.sent(PeerLost), "it may wake up and write"
    driver.tick(5.0)
    assert driver.sent(PeerLost) == [("p0", PeerLost("d0", 3))]


def test_a_process_that_took_its_place_meanwhile(driver: Restarted) -> None:
    driver.returns(GATEWAY)
    driver.returns(PREFILL, "prefill")
    driver.hear("g", Ongoing(Admitted("r", (0,), 0, "p0", "d0", 2, 3)))
    driver.join("d0", "decode")
    assert driver.sent(PeerLost)[0] == ("p0", PeerLost("d0", 3))
    ((_, interrupted),) = driver.sent(Interrupted)
    assert interrupted.request_id == "r"


def test_work_of_a_process_that_is_gone_is_interrupted_when_it_is_heard_of(
    driver: Restarted,
) -> None:
    driver.join("d0", "decode")  # before anybody who knew its predecessor
    driver.returns(PREFILL, "prefill")
    assert driver.sent(PeerLost) == [("p0", PeerLost("d0", 3))]
    driver.returns(GATEWAY)
    driver.hear("g", Ongoing(Admitted("r", (0, 1), 2, "p0", "d0", 2, 3)))
    ((_, interrupted),) = driver.sent(Interrupted)
    assert (interrupted.indices, interrupted.attempt) == ((0, 1), 2)
    assert not interrupted.unstarted_only


def test_what_runs_is_known_again(driver: Restarted) -> None:
    driver.all_return()
    driver.hear("g", Ongoing(Admitted("r", (0, 1), 1, "p0", "d0", 2, 3)))
    assert driver.num_requests == 1
    driver.clear()
    driver.hear("g", Cancel("r", (0, 1)))
    assert sorted(driver.sent(Abort)) == [
        ("d0", Abort("r", (0, 1), 1)), ("p0", Abort("r", (0, 1), 1)),
    ]  # fmt: skip
    assert driver.num_requests == 0


def test_what_its_node_could_not_be_asked_about_is_interrupted(driver: Restarted) -> None:
    driver.all_return()
    for index in (0, 1):
        driver.hear("g", Ongoing(Admitted("r", (index,), 1, "p0", "d0", 2, 3)))
    asked = [message for to, message in driver.sent(Verify) if to == "d0"]
    assert [each.admitted.indices for each in asked] == [(0,), (1,)]
    driver.clear()
    driver.coordinator.on_undeliverable("d0", asked[1])
    ((to, interrupted),) = driver.sent(Interrupted)
    assert to == "g" and (interrupted.indices, interrupted.attempt) == ((1,), 1)
    assert "d0 could not be asked" in interrupted.reason and not interrupted.unstarted_only
    driver.clear()
    driver.submit("r", attempt=2, n=2)
    driver.clear()
    driver.coordinator.on_undeliverable("d0", asked[1])
    assert not driver.sent(Interrupted), "it runs in a newer attempt"


def test_a_node_that_runs_what_nobody_knows_of_is_told_to_stop(driver: Restarted) -> None:
    driver.all_return()
    driver.clear()
    driver.hear("g", Cancel("lost", (0,), "d0", 4))
    assert driver.sent(Abort) == [("d0", Abort("lost", (0,), 4))]


@pytest.mark.parametrize("first", ["zombie", "successor"])
def test_a_process_that_was_replaced_does_not_come_back(driver: Restarted, first: str) -> None:
    """Whichever of the two says hello first, the one of the earlier epoch is ended."""
    successor = replace(DECODE, epoch=50)
    order = [(DECODE, 7), (successor, 8)]
    for peer, incarnation in order if first == "zombie" else order[::-1]:
        driver.returns(peer, "decode", incarnation)
    assert driver.coordinator.members.nodes["d0"].epoch == 50
    if first == "successor":
        assert Kill("d0", 7, "was given up before") in driver.kills()


def test_who_was_given_up_is_not_taken_back(driver: Restarted) -> None:
    driver.returns(GATEWAY)
    driver.tick(6.0)
    driver.kills()
    driver.returns(DECODE, "decode")  # it wakes up before it is ended
    assert "d0" not in driver.coordinator.members.nodes
    assert [(kill.id, kill.incarnation) for kill in driver.kills()] == [("d0", 7)]


def test_who_was_given_up_is_ended_once_and_again_when_that_did_not_help(driver: Restarted) -> None:
    """A process that hears nothing says hello often. An end for every time would pile up where it
    cannot be reached, and the last of them meet its successor."""
    driver.returns(GATEWAY)
    driver.tick(6.0)
    driver.kills()
    driver.returns(DECODE, "decode")
    driver.kills()
    for _ in range(20):
        driver.returns(DECODE, "decode")
    driver.tick(4.0)
    driver.returns(DECODE, "decode")
    assert not driver.kills()
    driver.tick(6.0)
    driver.returns(DECODE, "decode")
    assert driver.kills() == [Kill("d0", 7, "was given up before")]


def test_a_role_that_a_node_was_given_stays_with_its_name(driver: Restarted) -> None:
    driver.all_return()
    driver.returns(Peer("d1", 4), "prefill")  # it came as a decode node once
    driver.clear()
    driver.lose("d1")
    driver.join("d1", "decode")
    assert driver.sent(SetRole) == [("d1", SetRole("prefill"))]
