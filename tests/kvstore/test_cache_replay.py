"""The cache replay: its optimum is one, and it runs on traces and says what it lacks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "bench_cache_replay.py"


def best_by_trying_everything(prompts: list[list[int]], capacity: int) -> int:
    """After each prompt keep any set of blocks that were there or came with it."""
    most: dict[frozenset[int], int] = {frozenset(): 0}
    for prompt in prompts:
        after: dict[frozenset[int], int] = {}
        for kept, hits in most.items():
            count = next((i for i, block in enumerate(prompt) if block not in kept), len(prompt))
            there = kept | set(prompt)
            for keep in combinations(sorted(there), min(capacity, len(there))):
                state = frozenset(keep)
                after[state] = max(after.get(state, -1), hits + count)
        most = after
    return max(most.values())


def test_the_optimum_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchlib.belady import ceiling, optimum

    rng = random.Random(7)
    tree = [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [5], [5, 6], [5, 6, 7], [8, 9]]
    for _ in range(40):
        prompts = [rng.choice(tree) for _ in range(8)]
        for capacity in (1, 2, 3, 4):
            assert optimum(prompts, capacity) == best_by_trying_everything(prompts, capacity)
        assert optimum(prompts, 10) == ceiling(prompts)


def test_without_traces_it_says_where_they_are(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--traces", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no conversation trace in" in done.stderr
    assert "kvcache-ai/Mooncake" in done.stderr and "--traces" in done.stderr


def test_another_trace_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    """Every stage runs, then the ceiling is found to be another one."""
    rng = random.Random(1)
    for name in ("conversation", "synthetic"):
        rows = []
        for number in range(60):
            talk = rng.randrange(10)
            ids = [talk * 100 + i for i in range(rng.randrange(1, 30))]
            rows.append({
                "timestamp": number * 1000, "input_length": 512 * len(ids), "output_length": 1,
                "hash_ids": ids,
            })  # fmt: skip
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}_trace.jsonl").write_text(text)
    command = [sys.executable, str(SCRIPT), "--quick", "--traces", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "conversation: lru" in done.stdout
    assert "it is another trace" in done.stderr
