"""Numbers of nodes that follow the load, as the coordinator says them, and what led to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinating import Driver
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.coordinator import Coordinator, CoordinatorLimits
from pd.messages import SUPERVISOR, Drain, Scale, Scaling
from pd.outbox import Decided
from pd.policies.balance import BalanceOptions
from pd.policies.scale import ScaleOptions
from pd.recorder import Recorder, replay
from pd.types import Role

TARGETS = BalanceOptions(ttft_s=1.0, tpot_s=0.1)


def bounds(*roles: Role, least: int = 1, most: int = 3) -> ScaleOptions:
    return ScaleOptions(roles, least, most, pressure=0.75, up_s=3.0, down_s=10.0)


def driver(*options: ScaleOptions, roles: str = "pd", **limits: Any) -> Driver:
    """Prefill, decode and mixed nodes by their first letters."""
    names: dict[str, Role] = {"p": "prefill", "d": "decode", "m": "mixed"}
    cell = Driver(*((f"{c}{roles[:i].count(c)}", names[c]) for i, c in enumerate(roles)), **limits)
    cell.hear(SUPERVISOR, Scale(7, options, TARGETS))
    ((to, answer),) = cell.sent(Scaling)
    assert (to, answer) == (SUPERVISOR, Scaling(7))
    return cell


def wanted(cell: Driver) -> dict[str, int]:
    return dict(cell.coordinator.status(cell.now).wanted)


def watch(cell: Driver, seconds: int, **load: Any) -> list[Decided]:
    """What is decided while decode nodes report this."""
    said: list[Decided] = []
    for _ in range(seconds):
        for node in list(cell.coordinator.members.serving):
            cell.snapshot(node.id, **(load if node.hello.role == "decode" else {}))
        cell.tick(1.0)
        said += [effect for effect in cell.coordinator.drain() if isinstance(effect, Decided)]
    return said


def test_more_for_a_load_that_lasts_and_fewer_after_it() -> None:
    cell = driver(bounds("decode"))
    assert watch(cell, 2, num_running=8) == []
    assert wanted(cell) == {"decode": 1}
    (more,) = watch(cell, 5, num_running=8)
    assert more.what == "2 decode nodes instead of 1" and more.kind == "scale"
    assert "for 3 s they have had more to do than 0.75" in more.reason
    assert more.numbers == {"nodes": 1, "wanted": 2, "needed": 2, "decode_work": 1.0}
    assert watch(cell, 5, num_running=8) == [], "one that is starting counts"
    cell.join("d1", "decode")
    (more,) = watch(cell, 5, num_running=8)
    assert wanted(cell) == {"decode": 3}
    assert watch(cell, 20, num_running=8) == [], "that is the most there may be"
    said = watch(cell, 30)
    assert said[-1].what == "1 decode node instead of 3" and wanted(cell) == {"decode": 1}
    assert "at no time in 10 s" in said[-1].reason


def test_a_prompt_that_waits_is_work_for_prefill_nodes() -> None:
    cell = driver(bounds("prefill"), bounds("decode"))
    for _ in range(6):
        cell.snapshot("p0", num_waiting=9, waiting_tokens=5000, prefill_rate=1000.0)
        cell.snapshot("d0")
        cell.tick(1.0)
    assert wanted(cell) == {"prefill": 2, "decode": 1}


def test_without_bounds_numbers_stay() -> None:
    cell = driver(bounds("prefill"))
    assert watch(cell, 30, num_running=8) == [] and wanted(cell) == {"prefill": 1}
    cell = driver()
    assert watch(cell, 30, num_running=8) == [] and wanted(cell) == {}
    assert Driver(("m0", "mixed")).coordinator.status(0.0).wanted == {}


def test_nothing_is_wanted_of_a_cell_that_cannot_serve() -> None:
    cell = driver(bounds("decode"), roles="d")
    assert watch(cell, 30, num_running=8) == [] and wanted(cell) == {}


def test_bounds_can_change_and_go() -> None:
    cell = driver(bounds("decode"))
    watch(cell, 6, num_running=8)
    cell.hear(SUPERVISOR, Scale(8, (bounds("decode", least=3, most=4),), TARGETS))
    (said,) = watch(cell, 1)
    assert said.reason == "there are to be 3 to 4" and wanted(cell) == {"decode": 3}
    cell.hear(SUPERVISOR, Scale(9, (), TARGETS))
    assert watch(cell, 30, num_running=8) == [] and wanted(cell) == {}


def test_what_was_lost_is_still_wanted() -> None:
    cell = driver(bounds("decode"), roles="pdd")
    watch(cell, 2, num_running=5)
    cell.lose("d1")
    watch(cell, 2, num_running=5)
    assert wanted(cell) == {"decode": 2}
    cell.join("d1", "decode")
    watch(cell, 2, num_running=5)
    assert wanted(cell) == {"decode": 2}


def test_what_others_do_to_the_nodes_is_what_is_wanted() -> None:
    cell = driver(bounds("prefill"), bounds("decode"), roles="pdd")
    watch(cell, 2, num_running=5)
    cell.join("d2", "decode")
    watch(cell, 1, num_running=5)
    assert wanted(cell) == {"prefill": 1, "decode": 3}
    cell.hear(SUPERVISOR, Drain(1, "d0", 5.0))
    watch(cell, 1, num_running=5)
    assert wanted(cell) == {"prefill": 1, "decode": 2}
    assert not cell.coordinator.change_role("d1", "prefill", migrate=True, now=cell.now)
    watch(cell, 1, num_running=5)
    assert wanted(cell) == {"prefill": 2, "decode": 1}


def test_a_node_that_goes_since_fewer_are_wanted_is_not_counted_twice() -> None:
    cell = driver(bounds("decode"), roles="pddd")
    watch(cell, 20)
    assert wanted(cell) == {"decode": 1}
    cell.hear(SUPERVISOR, Drain(1, "d2", 5.0))
    watch(cell, 2)
    assert wanted(cell) == {"decode": 1}
    cell.lose("d2")
    watch(cell, 2)
    assert wanted(cell) == {"decode": 1}


def test_a_coordinator_that_is_started_anew_waits_for_all_it_has_heard_of() -> None:
    cell = driver(bounds("decode", least=2), roles="pd", epoch=100)
    from pd.messages import NodeHello
    from pd.types import Peer

    hello = NodeHello("d1", "decode", 9, {}, 1, 20, 4, 80, 8, 0, "host", epoch=7,
                      peers=(Peer("d2", 8, {}),))  # fmt: skip
    cell.hear("d1", hello)
    watch(cell, 1)
    assert wanted(cell) == {}, "d2 may be there"
    watch(cell, 8)
    assert wanted(cell) == {"decode": 2}, "nobody has heard of it"


def test_roles_that_follow_the_load_are_counted_together() -> None:
    cell = driver(bounds("prefill", "decode", "mixed", least=3, most=5), roles="pdd")
    (more, *_) = watch(cell, 6, num_running=8)
    assert more.what == "3 decode nodes instead of 2"
    assert wanted(cell) == {"prefill": 1, "decode": 3}


EVENTS = st.lists(
    st.sampled_from(["full", "idle", "join", "lose", "drain", "back"]), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_what_is_wanted_keeps_to_the_bounds_and_comes_to_rest(events: list[str]) -> None:
    """Whatever happens to the nodes, and with nobody who does what is wanted."""
    cell = driver(bounds("decode", most=4), roles="pd")
    names = iter(f"d{i}" for i in range(1, 99))
    lost: list[str] = []
    for event in events:
        decode = sorted(n.id for n in cell.coordinator.members.serving if n.hello.role == "decode")
        if event == "join":
            cell.join(next(names), "decode")
        elif event == "back" and lost:
            cell.join(lost.pop(), "decode")
        elif event in ("lose", "drain") and len(decode) > 1:
            if event == "drain":
                cell.hear(SUPERVISOR, Drain(1, decode[0], 1.0))
            else:
                lost.append(decode[0])
                cell.lose(decode[0])
        watch(cell, 4, num_running=8 if event == "full" else 0)
        assert 1 <= wanted(cell)["decode"] <= 4
    watch(cell, 30)
    assert wanted(cell) == {"decode": 1}


def test_a_replay_decides_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events"
    monkeypatch.setattr("coordinating.Coordinator", lambda limits: Recorder(limits, file))
    cell = driver(bounds("prefill"), bounds("decode"))
    said = [*watch(cell, 8, num_running=8), *watch(cell, 20)]
    assert len(said) == 2
    recorder: Coordinator = cell.coordinator
    assert isinstance(recorder, Recorder) and isinstance(recorder.limits, CoordinatorLimits)
    recorder.close()
    again = [each.effect for each in replay(file) if isinstance(each.effect, Decided)]
    assert again == said
