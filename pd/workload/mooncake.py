"""Mooncake's published traces (kvcache-ai/Mooncake, FAST25-release/traces).

A line of JSON a request: `timestamp` in ms, `input_length` and `output_length` in tokens, and
`hash_ids`, one for every 512 tokens of the prompt, each naming a block and all before it.
"""

from __future__ import annotations

import random
from pathlib import Path

from pd.workload.arrival import Arrival, Workload
from pd.workload.rows import MOST_TOKENS, Row, json_rows

SOURCE = "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces"
BLOCK_TOKENS = 512
_SLOT_S = 3.0


def load_mooncake(path: Path, *, spread: bool = True, seed: int = 0) -> Workload:
    """The trace of `path`, a .jsonl or .jsonl.gz file. WorkloadError names a bad line.

    The conversation trace's clock ticks every 3 s, and ten requests share a tick. `spread`
    draws each one's time uniformly between its tick and the next different one, 3 s later at
    most, without changing the order; the same seed gives the same times.
    """
    rows = [_arrival(row) for row in json_rows(path)]
    rows.sort(key=lambda each: each[0])
    times = [time_s for time_s, _, _, _ in rows]
    if spread:
        times = spread_ties(times, _SLOT_S, random.Random(seed))
    arrivals = [
        Arrival(time_s, num_prompt, num_output, prefix)
        for time_s, (_, num_prompt, num_output, prefix) in zip(times, rows, strict=True)
    ]
    return Workload(path.name.split(".")[0], arrivals, BLOCK_TOKENS)


def spread_ties(times: list[float], most_s: float, rng: random.Random) -> list[float]:
    """Ascending times; those that were equal are apart, before the next that was different."""
    spread: list[float] = []
    start = 0
    while start < len(times):
        end = start
        while end < len(times) and times[end] == times[start]:
            end += 1
        if end - start == 1:
            spread.append(times[start])
        else:
            width = min(most_s, times[end] - times[start]) if end < len(times) else most_s
            spread += sorted(times[start] + width * rng.random() for _ in range(end - start))
        start = end
    return spread


def _arrival(row: Row) -> tuple[float, int, int, tuple[int, ...]]:
    num_prompt = row.count("input_length", least=1)
    ids = row["hash_ids"]
    if not isinstance(ids, list) or not all(type(each) is int for each in ids):
        raise row.error("'hash_ids' must be a list of whole numbers")
    expected = -(-num_prompt // BLOCK_TOKENS)
    if len(ids) != expected:
        raise row.error(
            f"{len(ids)} 'hash_ids' for {num_prompt} tokens; blocks of {BLOCK_TOKENS} "
            f"would be {expected}"
        )
    num_output = max(1, row.count("output_length", most=MOST_TOKENS))
    return row.number("timestamp") / 1e3, num_prompt, num_output, tuple(ids)
