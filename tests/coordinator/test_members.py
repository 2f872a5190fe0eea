"""Who is in the cell: epochs, replaced processes, silence, and what is believed of the dead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.member import Credit
from pd.members import Members
from pd.messages import GatewayHello, NodeHello, PeerLost, Peers, UsePool, Welcome
from pd.outbox import Outbox, Send
from pd.types import NodeSnapshot, Role

TIMEOUT_S = 5.0


class Cell:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.members = Members(self.outbox, TIMEOUT_S)
        self.members.silent(0.0)  # it has been watching from the start

    def node(
        self,
        node_id: str,
        incarnation: int = 1,
        role: Role = "mixed",
        now: float = 0.0,
        **more: Any,
    ) -> Any:
        values = {"layout": 7, "host": "host", **more}
        hello = NodeHello(
            node_id, role, incarnation, {}, values["layout"], 100, 4, 400, 8, 0, values["host"]
        )
        return self.members.node_joins(hello, now)

    def gateway(self, gateway_id: str = "g", incarnation: int = 1, now: float = 0.0) -> Any:
        return self.members.gateway_joins(GatewayHello(gateway_id, incarnation, {}), now)

    def sent(self, kind: type) -> list[tuple[str, Any]]:
        self.members.announce_joined()
        effects = [effect for effect in self.outbox.drain() if isinstance(effect, Send)]
        return [(e.to, e.message) for e in effects if isinstance(e.message, kind)]

    def alive(self, *member_ids: str, until: float, now: float = 0.0) -> None:
        """Time passes in which these are heard of."""
        while now < until:
            now += 1.0
            for member_id in member_ids:
                self.members.heard_of(member_id, now)
            assert self.members.silent(now) == []


@pytest.fixture
def cell() -> Cell:
    return Cell()


def test_every_process_gets_an_epoch_of_its_own(cell: Cell) -> None:
    cell.node("a")
    cell.gateway("g")
    cell.node("b")
    cell.node("a", incarnation=2)
    epochs = [message.epoch for _, message in cell.sent(Welcome)]
    assert epochs == sorted(set(epochs))


def test_everybody_hears_who_is_there(cell: Cell) -> None:
    cell.node("a")
    cell.gateway("g")
    latest = dict(cell.sent(Peers))
    assert latest.keys() == {"a", "g"}
    assert {peer.id: peer.epoch for peer in latest["a"].peers} == {"a": 1, "g": 2}


def test_a_repeated_hello_gets_the_same_epoch_and_loses_nobody(cell: Cell) -> None:
    cell.node("a")
    (first,) = cell.sent(Welcome)
    assert cell.node("a") is None
    effects = cell.outbox.drain()
    assert [e.message for e in effects if isinstance(e, Send)] == [first[1]]


def test_a_new_process_behind_an_id_replaces_the_old(cell: Cell) -> None:
    cell.node("a")
    cell.node("b")
    cell.sent(Peers)
    lost = cell.node("a", incarnation=2)
    assert lost is not None and lost.hello.incarnation == 1
    assert cell.members.nodes["a"].epoch == 3


def test_others_hear_of_the_loss_with_the_epoch_that_ended(cell: Cell) -> None:
    cell.node("a")
    cell.node("b")
    cell.outbox.drain()
    cell.node("a", incarnation=2)
    assert cell.sent(PeerLost) == [("b", PeerLost("a", 1))]


def test_a_late_report_of_an_earlier_process_is_ignored(cell: Cell) -> None:
    cell.node("a", incarnation=1)
    cell.node("a", incarnation=2)
    cell.outbox.drain()
    assert cell.members.remove("a", 1) is None
    assert cell.members.nodes["a"].hello.incarnation == 2 and not cell.outbox.drain()


def test_a_late_hello_of_a_dead_process_is_ignored(cell: Cell) -> None:
    cell.node("a", incarnation=1)
    cell.members.remove("a", 1)
    assert cell.node("a", incarnation=1) is None and "a" not in cell.members.nodes
    cell.node("a", incarnation=2)
    cell.outbox.drain()
    assert cell.node("a", incarnation=1) is None
    assert cell.members.nodes["a"].hello.incarnation == 2 and not cell.outbox.drain()


def test_a_death_reported_before_the_hello_was_read_is_remembered(cell: Cell) -> None:
    assert cell.members.remove("a", 1) is None
    cell.node("a", incarnation=1)
    assert "a" not in cell.members.nodes


def test_silence(cell: Cell) -> None:
    cell.node("a")
    cell.gateway("g")
    cell.alive("a", "g", until=3.0)
    cell.alive("a", now=3.0, until=7.0)
    gone = cell.members.silent(8.0)
    assert [member.id for member in gone] == ["g"]
    assert cell.members.silent(8.5) == [], "once"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.5, 1.0, 2.0]),
            st.sets(st.sampled_from("abcd")),
            st.sampled_from([None, None, "c", "d"]),
        ),
        max_size=40,
    )
)
def test_the_silent_are_those_not_heard_of_for_long_enough(
    turns: list[tuple[float, set[str], str | None]],
) -> None:
    cell, now, incarnation = Cell(), 0.0, 1
    heard = {"a": 0.0, "b": 0.0}
    cell.node("a")
    cell.gateway("b")
    for step_s, speak, joins in turns:
        now += step_s
        for member_id in speak & heard.keys():
            cell.members.heard_of(member_id, now)
            heard[member_id] = now
        if joins is not None:
            incarnation += 1
            cell.node(joins, incarnation, now=now)
            heard[joins] = now
        silent = {member_id for member_id, at in heard.items() if now - at >= TIMEOUT_S}
        assert {member.id for member in cell.members.silent(now)} == silent
        for member_id in silent:
            del heard[member_id]


def test_peers_hear_of_a_silent_process_only_when_it_is_dead(cell: Cell) -> None:
    """A process that is merely stopped may wake up and go on writing into their pages."""
    cell.node("a")
    cell.node("b")
    cell.alive("b", until=4.0)
    cell.members.heard_of("b", 5.0)
    assert [member.id for member in cell.members.silent(5.0)] == ["a"]
    assert not cell.sent(PeerLost) and "a" not in cell.members.nodes
    assert cell.members.remove("a", 1) is None, "its loss was reported already"
    assert cell.sent(PeerLost) == [("b", PeerLost("a", 1))]
    assert cell.members.remove("a", 1) is None and not cell.sent(PeerLost)


def test_a_silent_process_that_is_replaced_is_dead(cell: Cell) -> None:
    cell.node("a")
    cell.node("b")
    cell.alive("b", until=4.0)
    cell.members.heard_of("b", 5.0)
    cell.members.silent(5.0)
    cell.outbox.drain()
    assert cell.node("a", incarnation=2, now=6.0) is None
    assert cell.sent(PeerLost) == [("b", PeerLost("a", 1))]


def test_a_silent_process_that_nobody_can_end_is_taken_for_unreachable(cell: Cell) -> None:
    cell.node("a")
    cell.node("b")
    cell.alive("b", until=4.0)
    cell.members.heard_of("b", 5.0)
    cell.members.silent(5.0)
    cell.alive("b", now=5.0, until=9.0)
    assert not cell.sent(PeerLost)
    cell.alive("b", now=9.0, until=10.0)
    assert cell.sent(PeerLost) == [("b", PeerLost("a", 1))]


def test_a_gateway_that_was_only_slow_may_come_back(cell: Cell) -> None:
    cell.gateway("g")
    cell.alive(until=4.0)
    cell.members.silent(5.0)
    cell.gateway("g", now=6.0)
    assert cell.members.gateways["g"].epoch == 2


def test_a_coordinator_that_was_away_blames_nobody_for_it(cell: Cell) -> None:
    """Suspended, or stuck for long: the signs of life that came meanwhile are unread."""
    cell.node("a")
    cell.alive("a", until=2.0)
    assert cell.members.silent(500.0) == []
    cell.alive(now=500.0, until=504.0)
    assert [member.id for member in cell.members.silent(505.0)] == ["a"]


def test_signs_of_life_of_strangers_are_ignored(cell: Cell) -> None:
    cell.members.heard_of("nobody", 1.0)
    cell.members.on_snapshot("nobody", NodeSnapshot("nobody", "mixed", 1))
    assert not cell.members.nodes


def test_what_is_lacking() -> None:
    def missing(*nodes: tuple[Role, int]) -> str:
        cell = Cell()
        for number, (role, layout) in enumerate(nodes):
            cell.node(f"n{number}", role=role, layout=layout)
        return cell.members.missing()

    assert missing() == "no node has joined yet"
    assert missing(("prefill", 1)) == "no decode node is up"
    assert missing(("decode", 1)) == "no prefill node is up"
    assert missing(("prefill", 1), ("decode", 1)) == ""
    assert missing(("mixed", 1)) == ""
    assert missing(("mixed", 1), ("prefill", 2)) == ""
    assert "layout" in missing(("prefill", 1), ("decode", 2))
    assert missing(("prefill", 1), ("decode", 2), ("prefill", 2)) == ""


def test_credit_is_what_a_snapshot_does_not_show_yet(cell: Cell) -> None:
    cell.node("a")
    node = cell.members.nodes["a"]
    for transfer_id, credit in ((3, Credit(1, 100, 1)), (4, Credit(1, 50, 2)), (5, Credit(1, 7))):
        node.charge(transfer_id, credit)
    seen = node.candidate()
    assert (seen.credit_prompts, seen.credit_tokens, seen.credit_seqs) == (3, 157, 3)
    assert (seen.last_prefill, seen.last_decode) == (5, 4)
    cell.members.on_snapshot("a", NodeSnapshot("a", "mixed", 1, last_transfer_id=4))
    assert node.credit == {5: Credit(1, 7)}
    assert node.candidate().credit_tokens == 7
    node.discharge(5)
    assert node.candidate().credit_prompts == 0


# ---------------------------------------------------------------- pools
def use(cell: Cell) -> dict[str, tuple[str, int]]:
    return {to: (message.id, message.epoch) for to, message in cell.sent(UsePool)}


def test_nodes_hear_of_the_pool_on_their_host(cell: Cell) -> None:
    cell.node("a", host="x")
    cell.node("b", host="y")
    assert use(cell) == {}, "none is what they begin with"
    cell.node("k-x", role="pool", host="x")
    assert use(cell) == {"a": ("k-x", 3), "b": ("k-x", 3)}
    cell.node("k-y", role="pool", host="y")
    assert use(cell) == {"b": ("k-y", 4)}
    cell.node("c", host="y")
    assert use(cell) == {"c": ("k-y", 4)}


def test_nodes_hear_when_their_pool_is_gone_or_replaced(cell: Cell) -> None:
    cell.node("a")
    cell.node("k0", role="pool")
    use(cell)
    cell.node("k0", role="pool", incarnation=2)
    told = [(to, message.id, message.epoch) for to, message in cell.sent(UsePool)]
    assert told == [("a", "", 0), ("a", "k0", 3)]
    cell.members.remove("k0", 2)
    assert use(cell) == {"a": ("", 0)}


def test_a_new_process_of_a_node_is_told_again(cell: Cell) -> None:
    cell.node("a")
    cell.node("k0", role="pool")
    use(cell)
    cell.node("a", incarnation=2)
    assert use(cell) == {"a": ("k0", 2)}


def test_what_could_not_be_delivered_is_said_again(cell: Cell) -> None:
    cell.node("a")
    cell.node("k0", role="pool")
    use(cell)
    cell.members.tick(0.0)
    assert use(cell) == {}
    cell.members.pool_not_told("a")
    cell.members.pool_not_told("nobody")
    cell.members.tick(0.0)
    assert use(cell) == {"a": ("k0", 2)}
    cell.members.tick(0.0)
    assert use(cell) == {}


def test_a_pool_of_another_layout_is_no_use(cell: Cell) -> None:
    cell.node("a", layout=1)
    cell.node("k0", role="pool", layout=2)
    assert use(cell) == {}


def test_a_pool_serves_nothing(cell: Cell) -> None:
    cell.node("k0", role="pool")
    assert cell.members.missing() == "no node has joined yet" and not cell.members.serving
    cell.node("p0", role="prefill")
    assert cell.members.missing() == "no decode node is up"


def test_a_late_hello_of_an_earlier_process_is_no_new_process(cell: Cell) -> None:
    cell.node("d0", incarnation=7)
    assert cell.node("d0", incarnation=6) is None
    assert cell.members.nodes["d0"].incarnation == 7
    assert cell.node("d0", incarnation=8).incarnation == 7
