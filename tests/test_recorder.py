"""Recordings of a coordinator: the same events give the same effects."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import cell.cell
import pytest
from cell.cell import Cell, Faults
from cell.workload import TOPOLOGIES, random_request

from pd import supervisor
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.errors import ConfigError, ReplayError, WireError
from pd.messages import GatewayHello
from pd.outbox import Effect
from pd.policies.admit import Overload
from pd.recorder import MAGIC, EventKind, Recorder, read, replay


class Kept(Recorder):
    """Keeps what it was drained of, to compare with a replay."""

    kept: list[Effect]

    def drain(self) -> list[Effect]:
        effects = super().drain()
        self.__dict__.setdefault("kept", []).extend(effects)
        return effects


def recorded_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 1, max_bytes: int = 1 << 30
) -> tuple[Cell, list[Effect]]:
    """A cell with kills, cancels, refused orders and a lost gateway, its coordinator recorded."""
    monkeypatch.setattr(
        cell.cell, "Coordinator", lambda limits: Kept(limits, path, max_bytes=max_bytes)
    )
    rng = random.Random(seed)
    run = Cell(TOPOLOGIES["p+d+m"], faults=Faults(refuse=0.05, drop=0.02), seed=seed)
    for number in range(20):
        run.submit(random_request(rng, f"r{number}", run))
        run.steps(30)
        if number % 5 == 1:
            run.cancel(f"r{number}")
        if number % 7 == 3:
            node_id = rng.choice(sorted(run.nodes))
            run.kill_node(node_id, noticed=number % 2 == 0)
            run.start_node(node_id)
        if number == 15:
            run.kill_gateway()
    run.settle()
    recorder = run.coordinator
    assert isinstance(recorder, Kept)
    recorder.close()
    return run, recorder.kept


def replayed(path: Path) -> list[Effect]:
    return [each.effect for each in replay(path)]


def test_a_replay_does_exactly_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.rec"
    _, effects = recorded_run(path, monkeypatch)
    assert len(effects) > 100
    assert replayed(path) == effects
    kinds = {event.kind for event in read(path) if not isinstance(event, CoordinatorLimits)}
    assert kinds == set(EventKind) - {EventKind.LIMITS}


def test_recording_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, _ = recorded_run(tmp_path / "a", monkeypatch, seed=5)
    monkeypatch.setattr(cell.cell, "Coordinator", Coordinator)
    again, _ = recorded_run(tmp_path / "b", monkeypatch, seed=5)
    assert recorded.counts == again.counts


def test_a_recording_holds_prompts_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "events.rec"
    Recorder(CoordinatorLimits(), path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_recording_that_was_cut_off_replays_up_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.rec"
    _, effects = recorded_run(path, monkeypatch)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, len(whole) // 3):
        path.write_bytes(whole[:size])
        done = replayed(path)
        assert done == effects[: len(done)]


def test_recording_ends_at_its_largest_size_and_the_cell_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.rec"
    _, effects = recorded_run(path, monkeypatch, max_bytes=20_000)
    assert path.stat().st_size <= 20_000 + len(MAGIC)
    done = replayed(path)
    assert 0 < len(done) < len(effects) and done == effects[: len(done)]


def test_a_full_disk_ends_the_recording_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(CoordinatorLimits(), "/dev/full")
    recorder.on_message("g", GatewayHello("g", 1, {}), 0.0)
    recorder.tick(0.0)
    recorder.tick(1.0)
    recorder.close()
    assert "recording ends here" in caplog.text and recorder.drain()


def test_a_coordinator_that_is_started_anew_goes_on_without_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "full" / "events.rec")
    with pytest.raises(
        ConfigError, match=r"cannot record to cluster\.record .*events\.rec: No such"
    ):
        supervisor._recorder(CoordinatorLimits(), path, again=False)
    assert supervisor._recorder(CoordinatorLimits(), path, again=True) is None
    assert "what follows is not recorded" in caplog.text


def test_files_that_are_no_recordings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.rec"
    path.write_bytes(b"something else")
    with pytest.raises(WireError, match="not a recording"):
        replayed(path)
    path.write_bytes(MAGIC)
    with pytest.raises(WireError, match="limits"):
        replayed(path)
    Recorder(CoordinatorLimits(), path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\0\0\x63" + bytes(8))
    with pytest.raises(WireError, match="kind 99"):
        replayed(path)
    path.write_bytes(whole + b"\xff\xff\xff\x7f\5" + bytes(8))
    with pytest.raises(WireError, match="damaged"):
        replayed(path)


def test_a_damaged_message_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "events.rec"
    recorder = Recorder(CoordinatorLimits(), path)
    recorder.on_message("g", GatewayHello("g", 1, {}), 0.0)
    recorder.close()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WireError, match="checksum"):
        replayed(path)


def test_a_replay_that_decides_otherwise_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.rec"
    recorded_run(path, monkeypatch)
    monkeypatch.setattr(Coordinator, "_overload", lambda self, *args: Overload("full", 1.0))
    with pytest.raises(ReplayError, match="event [0-9]+ of .*, at [0-9.]+ s: what is decided now"):
        replayed(path)
