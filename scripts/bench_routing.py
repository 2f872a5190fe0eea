#!/usr/bin/env python3
"""What routing does with shared prompts: each policy over two prefill nodes, one decode node.

    python scripts/bench_routing.py [--policies cache_aware affinity least_loaded round_robin]

Eight conversations run at once, four of them beginning with one long system prompt and four with
another. A conversation sends its next turn as soon as the last is answered. Every policy gets a
new cell with a pool, and the same conversations. Reported: prompt tokens that were computed,
found in the cache of the node that ran the prompt, and fetched from the pool or another node;
and TTFT in the cell's own clock.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchlib.cells import resolve, running, say, spec_of, use_cores
from benchlib.environment import environment
from benchlib.report import options_of, percentile, show_table, write_json

from pd.client import Client

CORES = 2
POLICIES = ("cache_aware", "affinity", "least_loaded", "round_robin")


class Conversation:
    """One of the conversations: what it has said, what it was answered, what that took."""

    def __init__(self, number: int, system: list[int], vocab: int, args: argparse.Namespace):
        rng = random.Random(1000 + number)
        self.session = f"conversation-{number}"
        self.said = list(system)
        self.questions = [
            [rng.randrange(vocab) for _ in range(args.question)] for _ in range(args.turns)
        ]
        self.answers: list[tuple[int, ...]] = []
        self.ttft_s: list[float] = []
        self._answer = args.answer

    def run(self, client: Client) -> None:
        for question in self.questions:
            self.said += question
            answer = client.generate(
                list(self.said), max_tokens=self._answer, temperature=0, ignore_eos=True,
                return_token_ids=True, session_id=self.session,
            )  # fmt: skip
            assert answer.metrics is not None
            self.ttft_s.append(answer.metrics.ttft_s)
            self.answers.append(answer.token_ids)
            self.said += answer.token_ids


def measure(policy: str, args: argparse.Namespace) -> dict[str, Any]:
    say(policy)
    config = resolve(
        model=args.model, prefill=2, decode=1, threads_per_node=1, routing=policy,
        pool_dram_gib=args.pool_gib,
    )  # fmt: skip
    vocab = spec_of(config).vocab_size
    rng = random.Random(7)
    systems = [[rng.randrange(vocab) for _ in range(args.system)] for _ in range(2)]
    conversations = [
        Conversation(i, systems[i % 2], vocab, args) for i in range(args.conversations)
    ]
    with running(config) as cluster, Client(cluster.url, timeout_s=600.0) as client:
        for i in range(2):  # both nodes have run a prompt: their speed is known
            client.generate([i + 1] * 64, max_tokens=2, temperature=0)
        before = counters(cluster.status().nodes)
        with ThreadPoolExecutor(len(conversations)) as pool:
            list(pool.map(lambda conversation: conversation.run(client), conversations))
        after = counters(cluster.status().nodes)
    row = {key: after[key] - before[key] for key in after}
    ttft = [seconds for conversation in conversations for seconds in conversation.ttft_s]
    return {
        "policy": policy,
        "computed": row["prefill_tokens"],
        "found": row["cache_hit_tokens"] - row["fetched_tokens"],
        "fetched": row["fetched_tokens"],
        "ttft_p50_s": percentile(ttft, 0.5),
        "ttft_p90_s": percentile(ttft, 0.9),
        "ttft_s": [conversation.ttft_s for conversation in conversations],
        "answers": [conversation.answers for conversation in conversations],
    }


def counters(nodes: Any) -> dict[str, int]:
    names = ("prefill_tokens", "cache_hit_tokens", "fetched_tokens")
    return {name: sum(int(node[name]) for node in nodes) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--system", type=int, default=768, help="tokens of a system prompt")
    parser.add_argument("--question", type=int, default=64)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--pool-gib", type=float, default=1.0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/routing.json"))
    args = parser.parse_args()
    use_cores(CORES)
    rows = [measure(policy, args) for policy in args.policies]
    answers = [row.pop("answers") for row in rows]
    identical = all(answer == answers[0] for answer in answers)
    show_table(
        f"{args.conversations} conversations of {args.turns} turns, two system prompts",
        ["policy", "computed", "found here", "fetched", "TTFT p50 s", "p90 s"],
        (
            [row["policy"], str(row["computed"]), str(row["found"]), str(row["fetched"]),
             f"{row['ttft_p50_s']:.3f}", f"{row['ttft_p90_s']:.3f}"]
            for row in rows
        ),
    )  # fmt: skip
    print(f"answers identical under all policies: {identical}")
    write_json(args.json, {
        "environment": environment(),
        "options": options_of(args),
        "identical": identical, "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
