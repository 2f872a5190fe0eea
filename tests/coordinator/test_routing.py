"""Routing by what the coordinator knows: blocks held and promised, tenants, sessions, policies."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from coordinating import BLOCK_SIZE, Driver

from kvstore.prefix import KeySpace
from pd.coordinator import Coordinator
from pd.messages import Finished, Rejected, StartPrefill
from pd.outbox import Effect
from pd.policies.route import Routing
from pd.recorder import Recorder, replay
from pd.router import RouterOptions
from pd.types import Role

PROMPT = tuple(range(40))  # ten blocks
TWO = (("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"))
ROUTINGS: tuple[Routing, ...] = get_args(Routing)


def cell_of(*roles: tuple[str, Role], routing: Routing = "cache_aware", **options: Any) -> Driver:
    cell = Driver(*roles, router=RouterOptions(routing=routing, **options))
    for node_id, role in roles:
        if role != "pool":
            cell.snapshot(node_id, prefill_rate=1000.0)
    return cell


def credit(cell: Driver, node_id: str) -> int:
    return cell.coordinator.members.nodes[node_id].candidate().credit_tokens


# ---------------------------------------------------------------- blocks held and promised
def test_a_prompt_goes_where_its_blocks_are() -> None:
    for holder in ("p0", "p1"):
        cell = cell_of(*TWO)
        cell.stores(holder, PROMPT[:20])
        to, _ = cell.placed(prompt=PROMPT)
        assert to == holder
        assert credit(cell, holder) == 20, "only what is left to compute"


def test_the_same_prompt_twice_in_flight_is_computed_once() -> None:
    cell = cell_of(*TWO)
    first, _ = cell.placed("a", prompt=PROMPT)
    assert credit(cell, first) == 40
    cell.snapshot(first, prefill_rate=1000.0, num_waiting=1, waiting_tokens=40)
    again, start = cell.placed("b", prompt=PROMPT)
    other = ({"p0", "p1"} - {first}).pop()
    # The queue is as long as the prompt: no reason to compute it a second time elsewhere.
    assert again == first and credit(cell, first) == 4 and credit(cell, other) == 0
    assert start.sources == (), "what is only promised cannot be fetched"


def test_prompts_of_one_beginning_in_flight_gather_while_that_is_sooner() -> None:
    cell = cell_of(("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"))
    shared = tuple(range(32))
    placed = [
        cell.placed(f"r{i}", prompt=(*shared, *range(100 * i, 100 * i + 8)))[0] for i in range(1, 8)
    ]
    # 40 tokens to compute it all, 8 behind a queue: p0 until its queue is worth 32 tokens.
    assert placed[:2] == ["p0", "p0"] and set(placed) == {"p0", "p1"}
    assert Counter(placed).most_common()[0][1] <= 5


def test_a_promise_ends_when_the_node_has_reported_after_the_request() -> None:
    cell = cell_of(*TWO)
    first, _ = cell.placed("a", prompt=PROMPT)
    cell.hear("g", Finished("a", (0,)))
    assert cell.placed("b", prompt=PROMPT)[0] == first, "its report may be on the way"
    cell.hear("g", Finished("b", (0,)))
    for _ in range(2):
        cell.snapshot(first, prefill_rate=1000.0, waiting_tokens=30)
    # Whatever was computed there was not kept, or it would have been reported.
    assert cell.placed("c", prompt=PROMPT)[0] != first


def test_a_promise_ends_when_it_is_kept() -> None:
    cell = cell_of(*TWO)
    first, start = cell.placed("a", prompt=PROMPT)
    cell.stores(first, PROMPT)
    cell.stores(start.decode, PROMPT)
    assert len(cell.coordinator.router.promises) == 0
    removed = cell.keys(PROMPT)
    cell.stores(first, (), removed=removed)
    cell.snapshot(first, prefill_rate=1000.0, waiting_tokens=30)
    assert cell.placed("b", prompt=PROMPT)[0] != first


@pytest.mark.parametrize("end", ["lost", "undeliverable"])
def test_a_promise_ends_with_its_node(end: str) -> None:
    cell = cell_of(*TWO)
    first, start = cell.placed("a", prompt=PROMPT)
    if end == "lost":
        cell.lose(first)
        cell.join(first, "prefill")
        cell.snapshot(first, prefill_rate=1000.0, waiting_tokens=20)
        assert len(cell.coordinator.router.promises) == 1, "the decode node's"
    else:
        cell.coordinator.on_undeliverable(first, start)
        assert len(cell.coordinator.router.promises) == 0 and credit(cell, first) == 0


def test_a_sequence_decodes_where_most_of_its_prompt_lies() -> None:
    cell = cell_of(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))
    cell.stores("d1", PROMPT[:36])
    assert cell.placed("a", prompt=PROMPT)[1].decode == "d1"
    assert cell.placed("b", prompt=tuple(range(500, 540)))[1].decode == "d0"


def test_fetching_is_part_of_the_prediction() -> None:
    """p0 has the prompt and a queue; p1 has neither, but there is a pool that has it, too."""
    for pool in (True, False):
        cell = cell_of(*TWO, ("k0", "pool"))
        cell.stores("p0", PROMPT)
        if pool:
            cell.stores("k0", PROMPT, tier="dram")
        cell.snapshot("p0", prefill_rate=1000.0, waiting_tokens=25, fetch_s_per_block=0.0001)
        cell.snapshot("p1", prefill_rate=1000.0, fetch_s_per_block=0.0001)
        to, start = cell.placed(prompt=PROMPT)
        # p0 itself is a source as well: so it is p1 either way.
        assert to == "p1"
        assert [s.holder for s in start.sources] == (["k0", "p0"] if pool else ["p0"])
        assert credit(cell, "p1") < 10, "ten blocks fetched in a millisecond, four tokens computed"


def test_a_hot_prefix_is_replicated_under_load() -> None:
    roles: list[tuple[str, Role]] = [(f"p{i}", "prefill") for i in range(4)]
    cell = cell_of(*roles, ("d0", "decode"))
    for node_id, _ in roles:
        cell.snapshot(node_id, prefill_rate=1000.0, fetch_s_per_block=0.0005)
    system = tuple(range(40))
    cell.stores("p0", system)
    placed: Counter[str] = Counter()
    fetched = 0
    for number in range(40):
        own = tuple(range(1000 + 20 * number, 1020 + 20 * number))
        to, start = cell.placed(f"r{number}", prompt=(*system, *own), max_tokens=8)
        fetched += bool(start.sources)
        placed[to] += 1
    assert placed["p0"] >= 10 and len(placed) == 4, placed
    assert max(placed.values()) - min(placed.values()) <= 4, placed


# ---------------------------------------------------------------- whose blocks they are
def local_tokens(cell: Driver) -> int:
    rows = cell.coordinator.status(cell.now).nodes
    return sum(int(row.get("found_local_tokens", 0)) for row in rows)


@pytest.mark.parametrize(
    ("owner", "asker", "shared"),
    [
        ({"tenant": "a"}, {"tenant": "a"}, True),
        ({"tenant": "a"}, {"tenant": "b"}, False),
        ({"tenant": "a"}, {}, False),
        ({"tenant": "a", "salt": "x"}, {"tenant": "a", "cache_salt": "x"}, True),
        ({"tenant": "a", "salt": "x"}, {"tenant": "a"}, False),
        ({"tenant": "a", "salt": "x"}, {"tenant": "a", "cache_salt": "y"}, False),
        ({"tenant": "a", "salt": "b"}, {"tenant": "ab", "cache_salt": ""}, False),
        ({"tenant": "a", "salt": "x"}, {"tenant": "b", "cache_salt": "x"}, False),
    ],
)
def test_tenants_and_salts_never_share(
    owner: dict[str, str], asker: dict[str, str], shared: bool
) -> None:
    cell = cell_of(*TWO, key_space=KeySpace(b"secret"))
    cell.stores("p1", PROMPT, **owner)
    to, start = cell.placed("r", prompt=PROMPT, **asker)
    assert (to == "p1") == shared == (local_tokens(cell) > 0)
    # Nor does what is on its way to somebody else count.
    other, _ = cell.placed("s", prompt=PROMPT, tenant="other")
    assert local_tokens(cell) == (36 if shared else 0)
    assert start.sources == () and other is not None


def test_tenants_share_when_told_to_but_salts_still_count() -> None:
    space = KeySpace(b"secret", share_between_tenants=True)
    cell = cell_of(*TWO, key_space=space)
    cell.stores("p1", PROMPT, tenant="a")
    assert cell.placed("r", prompt=PROMPT, tenant="b")[0] == "p1"
    cell = cell_of(*TWO, key_space=space)
    cell.stores("p1", PROMPT, tenant="a")
    assert cell.placed("s", prompt=PROMPT, tenant="b", cache_salt="x")[0] == "p0"


def test_a_cell_with_another_secret_finds_nothing() -> None:
    cell = cell_of(*TWO, key_space=KeySpace(b"one"))
    theirs = cell_of(*TWO, key_space=KeySpace(b"two"))
    assert not set(blocks(cell.keys(PROMPT))) & set(blocks(theirs.keys(PROMPT)))


def blocks(packed: bytes) -> list[bytes]:
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


def test_without_a_prefix_cache_nothing_is_promised_or_looked_up() -> None:
    cell = cell_of(*TWO, prefix_cache=False)
    cell.stores("p1", PROMPT)
    to, start = cell.placed("a", prompt=PROMPT)
    assert to == "p0" and start.sources == () and credit(cell, "p0") == 40
    assert cell.placed("b", prompt=PROMPT)[0] == "p1"
    assert len(cell.coordinator.router.promises) == 0


# ---------------------------------------------------------------- policies
def test_round_robin_goes_round() -> None:
    cell = cell_of(("p0", "prefill"), ("p1", "prefill"), ("m0", "mixed"), ("d0", "decode"), routing="round_robin")  # fmt: skip  # noqa: E501
    cell.stores("p1", PROMPT)
    order = [cell.placed(f"r{i}", prompt=PROMPT)[0] for i in range(6)]
    assert order == ["m0", "p0", "p1"] * 2


def test_least_loaded_looks_at_queues_only() -> None:
    cell = cell_of(*TWO, routing="least_loaded")
    cell.stores("p1", PROMPT)
    cell.snapshot("p1", prefill_rate=1000.0, waiting_tokens=1)
    assert cell.placed(prompt=PROMPT)[0] == "p0"


def test_affinity_follows_the_session_and_else_how_prompts_begin() -> None:
    roles: list[tuple[str, Role]] = [(f"p{i}", "prefill") for i in range(8)]
    cell = cell_of(*roles, ("d0", "decode"), routing="affinity")

    def home(name: str, prompt: tuple[int, ...], **more: str) -> str:
        to, _ = cell.placed(name, prompt=prompt, **more)
        cell.hear("g", Finished(name, (0,)))
        for node_id, _ in roles:
            cell.snapshot(node_id)
        return to

    sessions = {f"s{i}": home("r", (i, i), session=f"s{i}") for i in range(24)}
    assert len(set(sessions.values())) >= 6
    for session, node_id in sessions.items():
        assert home("r", PROMPT, session=session) == node_id
    assert home("r", PROMPT, session="s1", tenant="a") != home("r", PROMPT, session="s1") or (
        home("r", PROMPT, session="s2", tenant="a") != home("r", PROMPT, session="s2")
    ), "a tenant's sessions are its own"
    beginnings = {i: home("r", (*range(i, i + 64), 7)) for i in range(0, 800, 100)}
    assert len(set(beginnings.values())) >= 3
    for i, node_id in beginnings.items():
        assert home("r", (*range(i, i + 64), 9, 9, 9)) == node_id


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_request_goes_only_where_it_fits_by_any_policy(routing: Routing) -> None:
    cell = Driver(("p0", "prefill"), ("k0", "pool"), router=RouterOptions(routing=routing))
    cell.join("p1", "prefill", num_blocks=2)
    cell.join("d1", "decode", num_blocks=3)
    cell.join("d0", "decode")
    for number in range(4):
        to, start = cell.placed(f"r{number}", num_tokens=30)
        assert (to, start.decode) == ("p0", "d0")


# ---------------------------------------------------------------- what is counted
def test_where_tokens_were_found_is_counted() -> None:
    cell = cell_of(("p0", "prefill"), ("d0", "decode"), ("k0", "pool"))
    cell.stores("p0", PROMPT[:8])
    cell.stores("k0", PROMPT[:20], tier="dram")
    cell.stores("k0", PROMPT[:28], tier="disk")
    cell.stores("d0", PROMPT[:12])
    cell.placed(prompt=PROMPT)
    (row,) = [r for r in cell.coordinator.status(0.0).nodes if r["id"] == "p0"]
    assert {key: row[key] for key in row if key.startswith(("found_", "routed_"))} == {
        "routed_tokens": 40, "found_local_tokens": 8, "found_remote_tokens": 0,
        "found_dram_tokens": 12, "found_disk_tokens": 8,
    }  # fmt: skip


# ---------------------------------------------------------------- replay
class Kept(Recorder):
    """Keeps what it was drained of."""

    kept: list[Effect]

    def drain(self) -> list[Effect]:
        effects = super().drain()
        self.__dict__.setdefault("kept", []).extend(effects)
        return effects


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_recording_replays_to_the_same_decisions(
    routing: Routing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.rec"
    monkeypatch.setattr("coordinating.Coordinator", lambda limits: Kept(limits, path))
    options = RouterOptions(routing, key_space=KeySpace(b"\x00secret\xff", True))
    cell = Driver(
        *TWO, ("d1", "decode"), ("m0", "mixed"), ("k0", "pool"), router=options,
        max_waiting_per_node=1000,
    )  # fmt: skip
    rng = random.Random(3)
    for number in range(120):
        start = rng.randrange(4)
        prompt = tuple(range(start, start + rng.randrange(1, 60)))
        holder = rng.choice(["p0", "p1", "m0", "d1"])
        match rng.randrange(6):
            case 0:
                cell.stores(holder, prompt, skip=rng.random() < 0.2)
            case 1:
                cell.stores("k0", prompt, tier=rng.choice(["dram", "disk"]), reset=True)
            case 2:
                cell.snapshot(
                    holder, prefill_rate=rng.random() * 1000, waiting_tokens=rng.randrange(99),
                    fetch_s_per_block=rng.random() / 100, last_transfer_id=number // 2,
                )  # fmt: skip
            case 3 if number % 10 == 0:
                role = cell.coordinator.members.nodes[holder].hello.role
                cell.lose(holder)
                cell.join(holder, role)
            case _:
                cell.submit(
                    f"r{number}", prompt=prompt, session=rng.choice(["", "s", "t"]),
                    tenant=rng.choice("ab"), n=rng.choice([1, 2]),
                )  # fmt: skip
        if number % 7 == 0:
            cell.tick(0.3)
    recorder = cell.coordinator
    assert isinstance(recorder, Kept)
    recorder.drain()
    recorder.close()
    starts = [e for e in recorder.kept if isinstance(getattr(e, "message", None), StartPrefill)]
    assert len(starts) > 30
    assert [each.effect for each in replay(path)] == recorder.kept


def test_interrupted_work_waits_with_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made once, however often it is tried."""
    cell = cell_of(*TWO)
    cell.lose("d0")
    cell.stores("p1", PROMPT)
    cell.submit(prompt=PROMPT[:39], attempt=1, output=(39,))
    made = []
    real = KeySpace.root
    monkeypatch.setattr(KeySpace, "root", lambda *a: made.append(1) or real(*a))
    cell.tick(5.0)
    assert not made and not cell.sent(StartPrefill) and not cell.sent(Rejected)
    cell.join("d0", "decode")
    cell.tick()
    assert [to for to, _ in cell.sent(StartPrefill)] == ["p1"]


def test_a_decision_is_quick_with_many_nodes_and_blocks() -> None:
    """No timing: what is counted is how often a prompt's blocks are looked at."""
    roles: list[tuple[str, Role]] = [(f"p{i}", "prefill") for i in range(60)]
    cell = Driver(*roles, ("d0", "decode"))
    cell.join("d1", "decode", num_blocks=4000, max_model_len=9000)
    for node_id, role in roles:
        cell.join(node_id, role, num_blocks=4000, max_model_len=9000)
    prompt = tuple(range(8000))
    calls = 0
    directory = cell.coordinator.holders.directory
    real = directory.lookup

    def lookup(keys: Any) -> Any:
        nonlocal calls
        calls += 1
        assert len(keys) == 8000 // BLOCK_SIZE
        return real(keys)

    directory.lookup = lookup  # type: ignore[method-assign]
    for node_id, _ in roles:
        cell.stores(node_id, prompt[:4000])
    cell.placed(prompt=prompt)
    assert calls == 1 and isinstance(cell.coordinator, Coordinator)
