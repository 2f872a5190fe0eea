"""What is done about the number of nodes that is wanted. Ray and the cell are what they say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import pd.autoscaler
from pd.autoscaler import Autoscaler
from pd.config import Config
from pd.errors import PDError
from pd.messages import CellStatus
from pd.types import Role


class FakeCell:
    """Nodes by id, with their roles and hosts; a host has room for one node."""

    def __init__(self, *roles: Role, **options: Any) -> None:
        self.config = Config.from_dict(None, max_decode_nodes=4, max_prefill_nodes=4, **options)
        self.changing = threading.RLock()
        self.wanted: dict[Role, int] = {}
        self.scales = True
        self.free_hosts: list[str] = []
        self.roles: dict[str, Role] = {}
        self.places: dict[str, str] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.added: list[list[Role]] = []
        self.removed: list[str] = []
        self.asked: list[list[Role]] = []
        for role in roles:
            self.start(role, "head")

    def start(self, role: Role, host: str) -> str:
        node_id = f"{role}-{sum(each == role for each in self.roles.values())}"
        self.roles[node_id], self.places[node_id] = role, host
        self.rows[node_id] = {"id": node_id, "role": role, "num_running": 0, "num_waiting": 0}
        return node_id

    # ------------------------------------------------------------ what the autoscaler asks
    def scale(self) -> bool:
        return self.scales

    def status(self) -> CellStatus:
        wanted = self.wanted if self.scales else {}
        return CellStatus(True, "", tuple(self.rows.values()), wanted=wanted)

    def node_roles(self) -> dict[str, Role]:
        return dict(self.roles)

    def hosts(self, timeout_s: float) -> dict[str, str]:
        return {id_: host for id_, host in self.places.items() if id_ in self.rows}

    def add_nodes(self, roles: Sequence[Role], progress: Callable[[str], None]) -> None:
        self.added.append(list(roles))
        for role in roles:
            self.start(role, self.free_hosts.pop(0))

    def remove_node(self, node_id: str, progress: Callable[[str], None]) -> None:
        self.removed.append(node_id)
        for each in (self.roles, self.places, self.rows):
            each.pop(node_id, None)

    # ------------------------------------------------------------ and what it asks Ray
    def room_for(self, config: Config, roles: Sequence[Role]) -> list[Role]:
        return list(roles)[: len(self.free_hosts)]

    def ask_for_hosts(self, config: Config, roles: Sequence[Role]) -> None:
        self.asked.append(list(roles))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[FakeCell, Autoscaler]]:
    """A cell and its autoscaler, which looks when it is told to and not by itself."""

    def watch(*roles: Role, **options: Any) -> tuple[FakeCell, Autoscaler]:
        cell = FakeCell(*roles, **options)
        monkeypatch.setattr(pd.autoscaler, "room_for", cell.room_for)
        monkeypatch.setattr(pd.autoscaler, "ask_for_hosts", cell.ask_for_hosts)
        monkeypatch.setattr(pd.autoscaler, "owner_host", lambda: "head")
        monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
        return cell, Autoscaler(cell)  # type: ignore[arg-type]

    return watch


Watched = Callable[..., tuple[FakeCell, Autoscaler]]


def test_hosts_are_asked_for_and_nodes_started_as_they_come(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode")
    autoscaler.look()
    assert (cell.added, cell.removed, cell.asked) == ([], [], [])
    cell.wanted = {"decode": 3}
    autoscaler.look()
    everything = ["prefill", "decode", "decode", "decode"]
    assert cell.asked == [everything] and cell.added == [], "what runs counts, too"
    autoscaler.look()
    assert cell.asked == [everything], "asked once"
    cell.free_hosts = ["a"]
    autoscaler.look()
    assert cell.added == [["decode"]]
    cell.free_hosts = ["b"]
    autoscaler.look()
    autoscaler.look()
    assert cell.added == [["decode"], ["decode"]]
    assert cell.asked == [everything, []], "hosts that are used stay, whatever is asked for"


def test_all_that_there_is_room_for_start_together(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode")
    cell.wanted, cell.free_hosts = {"prefill": 2, "decode": 2}, ["a", "b"]
    autoscaler.look()
    assert cell.added == [["prefill", "decode"]] and not cell.asked


def test_a_host_is_emptied_and_the_head_keeps_its_nodes(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode")
    for host in ("a", "b", "b"):
        cell.start("decode", host)
    cell.wanted = {"decode": 1}
    for _ in range(4):
        autoscaler.look()
    assert cell.removed == ["decode-1", "decode-3", "decode-2"]


def test_one_that_is_being_started_anew_is_there_and_goes_first(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode", "decode", "decode")
    cell.rows["decode-1"]["role"] = "prefill"
    cell.wanted = {"prefill": 2, "decode": 2}
    autoscaler.look()
    del cell.rows["decode-1"], cell.rows["decode-0"]
    autoscaler.look()
    assert (cell.added, cell.removed) == ([], []), "each in the role that it had"
    cell.wanted = {"prefill": 2, "decode": 1}
    autoscaler.look()
    assert cell.removed == ["decode-0"]


def test_whoever_adds_hosts_by_hand_is_not_disturbed(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode", ask_for_hosts=False)
    cell.wanted = {"decode": 2}
    autoscaler.look()
    assert cell.asked == []
    cell.free_hosts = ["a"]
    autoscaler.look()
    assert cell.added == [["decode"]] and cell.asked == []


def test_what_was_asked_for_is_withdrawn(watched: Watched) -> None:
    cell, autoscaler = watched("prefill", "decode")
    cell.wanted = {"decode": 2}
    autoscaler.look()
    cell.scales = False
    autoscaler.look()
    assert cell.asked[-1] == []
    cell.scales = True
    autoscaler.look()
    assert len(cell.asked[-1]) == 3
    autoscaler.stop()
    autoscaler._run()
    assert cell.asked[-1] == []


def test_a_change_that_fails_is_tried_again_later(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, autoscaler = watched("prefill", "decode")
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 2

    def fail(*args: Any) -> None:
        raise PDError("it does not load")

    monkeypatch.setattr(autoscaler._stopping, "wait", wait)
    monkeypatch.setattr(cell, "add_nodes", fail)
    cell.wanted, cell.free_hosts = {"decode": 2}, ["a"]
    autoscaler._run()
    assert waits == [1.0, 30.0, 30.0]
    assert "the number of nodes was not changed: it does not load" in caplog.text
    assert cell.changing.acquire(blocking=False)
