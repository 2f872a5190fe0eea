#!/usr/bin/env python3
"""Conversations of several turns: what a cache of earlier turns saves, and where it lies.

    python scripts/bench_conversations.py [--conversations 10] [--turns 6]

Every turn sends all that was said before and a new question, as token ids, so the answer of one
turn is the beginning of the next exactly. Turns of all conversations take turns, one request at
a time: a conversation's next one comes after those of all the others. Settings:

    pool          a pool beside the nodes; what prefill and decode nodes made is fetched from it
    node cache    no pool and no fetching: each node's own prefix cache
    none          no cache at all

with one prefill and one decode node, and with two prefill nodes that take turns by themselves
(round robin), so that a turn never lands where the one before it was computed. Reported are
medians of TTFT over the conversations, by turn, in the cell's own clock, and whether all
settings gave the same tokens.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import median
from typing import Any

from benchlib.cells import resolve, running, say, spec_of, use_cores
from benchlib.environment import environment
from benchlib.report import options_of, show_table, write_json

from pd.client import Client

CORES = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "pool": {},
    "node cache": {"pool_dram_gib": 0.0, "fetch": False},
    "none": {"pool_dram_gib": 0.0, "prefix_cache": False},
}
CELLS: dict[str, dict[str, Any]] = {
    "1P1D": {"prefill": 1, "decode": 1},
    "2P1D": {"prefill": 2, "decode": 1, "routing": "round_robin"},
}


def measure(name: str, cell: str, args: argparse.Namespace) -> dict[str, Any]:
    """TTFT by turn and conversation, the answers, and what the nodes counted."""
    say(f"{cell}, {name}")
    options = {"pool_dram_gib": args.pool_gib, **CELLS[cell], **SETTINGS[name]}
    config = resolve(model=args.model, threads_per_node=1, **options)
    rng = random.Random(args.seed)
    vocab = spec_of(config).vocab_size
    questions = [
        [[rng.randrange(vocab) for _ in range(args.question)] for _ in range(args.turns)]
        for _ in range(args.conversations)
    ]
    said: list[list[int]] = [[] for _ in range(args.conversations)]
    ttft: list[list[float]] = []
    answers: list[list[list[int]]] = [[] for _ in range(args.conversations)]
    with running(config) as cluster, Client(cluster.url, timeout_s=600.0) as client:
        client.generate([1] * 64, max_tokens=2, temperature=0)
        for turn in range(args.turns):
            times = []
            for i in range(args.conversations):
                said[i] += questions[i][turn]
                answer = client.generate(
                    list(said[i]), max_tokens=args.answer, temperature=0, ignore_eos=True,
                    return_token_ids=True,
                )  # fmt: skip
                assert answer.metrics is not None
                times.append(answer.metrics.ttft_s)
                said[i] += answer.token_ids
                answers[i].append(list(answer.token_ids))
            ttft.append(times)
            # One more request, so that with nodes that take turns the next turn lands elsewhere.
            client.generate([1], max_tokens=1, temperature=0)
            say(f"  turn {turn + 1}: TTFT {median(times):.3f} s")
        nodes = [dict(node) for node in cluster.status().nodes]
    return {
        "cell": cell,
        "setting": name,
        "context": [(turn + 1) * args.question + turn * args.answer for turn in range(args.turns)],
        "ttft_s": [median(times) for times in ttft],
        "ttft_all_s": ttft,
        "answers": answers,
        "tokens_computed": sum(node["prefill_tokens"] for node in nodes),
        "tokens_cached": sum(node["cache_hit_tokens"] for node in nodes),
        "tokens_fetched": sum(node["fetched_tokens"] for node in nodes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--question", type=int, default=300, help="tokens of each question")
    parser.add_argument("--answer", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--pool-gib", type=float, default=2.0)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/conversations.json"))
    args = parser.parse_args()
    use_cores(CORES)
    rows = [measure(name, cell, args) for cell in args.cells for name in SETTINGS]
    answers = [row.pop("answers") for row in rows]
    identical = all(answer == answers[0] for answer in answers)
    show_table(
        f"Median TTFT (s) by turn, {args.conversations} conversations",
        ["", *(f"{n} tok" for n in rows[0]["context"]), "computed", "cached", "fetched"],
        (
            [f"{row['cell']}, {row['setting']}", *(f"{t:.3f}" for t in row["ttft_s"]),
             str(row["tokens_computed"]), str(row["tokens_cached"]), str(row["tokens_fetched"])]
            for row in rows
        ),
    )  # fmt: skip
    print(f"answers identical in all settings: {identical}")
    write_json(args.json, {
        "environment": environment(),
        "options": options_of(args),
        "identical": identical, "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
