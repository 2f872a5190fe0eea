"""Conversations through a cell with a pool of two tiers: what is fetched gives the same tokens,
and a pool that dies costs time but nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_cell import STATUS_S, LiveCell, eventually

TURNS, QUESTION, ANSWER = 4, 50, 20
VOCABULARY = range(3, 380)
OPTIONS: dict[str, Any] = {"kv_cache_gib": 0.05, "pool_dram_gib": 0.02, "pool_disk_gib": 0.05}


@pytest.fixture(scope="module")
def cell(
    start_cell: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveCell]:
    """Two prefill nodes that take turns, so that a turn lands where its past was not computed."""
    directory = tmp_path_factory.mktemp("pool")
    with start_cell(
        prefill=2, decode=1, routing="round_robin", pool_disk_dir=str(directory), **OPTIONS
    ) as cell:
        yield cell


def questions(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(VOCABULARY, k=QUESTION) for _ in range(TURNS)]


def converse(cell: LiveCell, seed: int) -> list[list[int]]:
    """The answers to one conversation, turn by turn."""
    said: list[int] = []
    answers = []
    for question in questions(seed):
        said += question
        (answer,) = cell.tokens(prompt=said, max_tokens=ANSWER, temperature=0, ignore_eos=True)
        said += answer
        answers.append(answer)
        settle(cell)
    return answers


def settle(cell: LiveCell) -> None:
    """Until what was put is stored and the coordinator knows where."""
    eventually(lambda: not cell.why_not_idle())
    before = pool(cell)
    import time

    while True:
        time.sleep(STATUS_S)
        now = pool(cell)
        if (now["stored_blocks"], now["disk_blocks"]) == (
            before["stored_blocks"], before["disk_blocks"],
        ):  # fmt: skip
            return
        before = now


def all_known(cell: LiveCell) -> bool:
    """The coordinator has heard of everything that some node has cached."""
    rows = [row for row in cell.status()["nodes"] if row["role"] != "pool"]
    return any(row["cached_blocks"] for row in rows) and all(
        row["directory_blocks"] == row["cached_blocks"] for row in rows
    )


def pool(cell: LiveCell) -> dict[str, Any]:
    return cell.node("pool")


def fetched(cell: LiveCell) -> int:
    return cell.total("fetched_tokens")


def test_turns_are_fetched_and_nothing_changes(cell: LiveCell) -> None:
    before = fetched(cell)
    answers = converse(cell, seed=1)
    assert fetched(cell) - before >= (TURNS - 1) * QUESTION // 2
    with_cache = converse(cell, seed=1)
    assert with_cache == answers
    said = [token for pair in zip(questions(1), answers) for tokens in pair for token in tokens]
    whole = said[:-ANSWER]
    alone = cell.tokens(
        prompt=whole, max_tokens=ANSWER, temperature=0, ignore_eos=True, cache_salt="nobody's"
    )
    assert alone == [answers[-1]], "with another salt everything was computed"


def test_the_coordinator_knows_what_every_node_has(cell: LiveCell) -> None:
    converse(cell, seed=5)
    cell.wait_idle()
    eventually(lambda: all_known(cell))
    rows = [row for row in cell.status()["nodes"] if row["role"] != "pool"]
    assert len(rows) == 3 and all(row["cached_blocks"] for row in rows)


def test_nodes_fetch_from_one_another(start_cell: Callable[..., Any]) -> None:
    """Without a pool, what the other prefill node has computed is fetched from it."""
    options = {**OPTIONS, "pool_dram_gib": 0.0, "pool_disk_gib": 0.0}
    with start_cell(prefill=2, decode=1, routing="round_robin", **options) as cell:
        prompt = random.Random(6).choices(VOCABULARY, k=400)
        answers = []
        for _ in range(2):
            answers += cell.tokens(prompt=prompt, max_tokens=4, temperature=0, ignore_eos=True)
            cell.wait_idle()
            eventually(lambda: all_known(cell))
        assert answers[0] == answers[1]
        eventually(lambda: fetched(cell) >= 384 - 16)


def test_a_pool_that_keeps_int8(start_cell: Callable[..., Any], cell: LiveCell) -> None:
    """It holds nearly four times as much in the same bytes, and what it gives can be used."""
    options = {**OPTIONS, "pool_disk_gib": 0.0, "pool_dtype": "int8", "wire_dtype": "int8"}
    with start_cell(
        prefill=2, decode=1, routing="round_robin", transports=("zmq",), connections=2, **options
    ) as small:
        assert 3.5 < pool(small)["num_blocks"] / pool(cell)["num_blocks"] < 4.0
        answers = converse(small, seed=7)
        assert [len(answer) for answer in answers] == [ANSWER] * TURNS
        assert fetched(small) >= (TURNS - 1) * QUESTION // 2
        assert small.node("pool")["dropped_blocks"] == 0


def test_other_salts_share_nothing(cell: LiveCell) -> None:
    prompt = random.Random(2).choices(VOCABULARY, k=100)
    cell.tokens(prompt=prompt, max_tokens=2, temperature=0, cache_salt="a")
    settle(cell)
    hits, brought = cell.total("cache_hit_tokens"), fetched(cell)
    cell.tokens(prompt=prompt, max_tokens=2, temperature=0, cache_salt="b")
    settle(cell)
    assert (cell.total("cache_hit_tokens"), fetched(cell)) == (hits, brought)
    cell.tokens(prompt=prompt, max_tokens=2, temperature=0, cache_salt="a")
    settle(cell)
    assert cell.total("cache_hit_tokens") + fetched(cell) > hits + brought


def test_a_killed_pool_costs_time_and_its_disk_is_found_again(cell: LiveCell) -> None:
    expected = converse(cell, seed=3)
    settle(cell)
    old = pool(cell)
    assert old["disk_blocks"] > 0
    rng = random.Random(4)
    bodies = [
        {"prompt": rng.choices(VOCABULARY, k=60), "max_tokens": 200, "temperature": 1.0, "seed": i,
         "ignore_eos": True}
        for i in range(8)
    ]  # fmt: skip
    calm = cell.together(bodies)
    streams = cell.stream(
        bodies, lambda streams: all(s.num_tokens >= 20 for s in streams), cell.kill("pool")
    )
    assert [stream.errors for stream in streams] == [[]] * len(streams)
    assert [stream.output for stream in streams] == calm
    eventually(lambda: any(row["role"] == "pool" for row in cell.status()["nodes"]))
    cell.wait_idle()
    # Its first report may come after the first status that shows it.
    eventually(lambda: pool(cell)["disk_blocks"] >= old["disk_blocks"] // 2)
    new = pool(cell)
    assert new["epoch"] > old["epoch"] and new["pid"] != old["pid"]
    assert converse(cell, seed=3) == expected


def test_files_of_the_disk_tier_stay_in_their_directory(cell: LiveCell) -> None:
    directory = Path(cell.cluster.config.pool.pool_disk_dir or "")
    assert [path.name for path in directory.iterdir()] == ["pool-0"]
