"""Made-up workloads: independent requests, shared prefixes, conversations.

All are the same for the same `seed`. Ids of shared prefixes are unique within a workload.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pd.workload.arrival import Arrival, Workload
from pd.workload.lengths import Lengths

BLOCK_TOKENS = 16
_MOST_EMPTY = 1000  # sessions without a single turn


def independent(
    times: Iterator[float],
    num_requests: int,
    prompts: Lengths,
    outputs: Lengths,
    *,
    seed: int = 0,
    name: str = "independent",
) -> Workload:
    """Requests that share nothing."""
    rng = random.Random(seed)
    arrivals = [
        Arrival(time_s, prompts.draw(rng), outputs.draw(rng))
        for time_s in islice(times, num_requests)
    ]
    return Workload(name, arrivals, BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """`count` beginnings, such as system prompts, of `tokens` tokens in whole blocks. The k-th
    most popular is asked for in proportion to 1 / k^skew: 0 makes all alike."""

    count: int
    tokens: int
    skew: float = 1.0


def with_shared_prefixes(
    times: Iterator[float],
    num_requests: int,
    prompts: Lengths,
    outputs: Lengths,
    shared: SharedPrefixes,
    *,
    block_tokens: int = BLOCK_TOKENS,
    seed: int = 0,
    name: str = "shared-prefixes",
) -> Workload:
    """Requests each of which begins like some others; `prompts` is what follows."""
    rng = random.Random(seed)
    ids = _Ids()
    heads = [ids.take(shared.tokens // block_tokens) for _ in range(max(1, shared.count))]
    weights = [1 / rank**shared.skew for rank in range(1, len(heads) + 1)]
    arrivals = []
    for time_s in islice(times, num_requests):
        head = rng.choices(heads, weights)[0]
        num_prompt = len(head) * block_tokens + prompts.draw(rng)
        prefix = head + ids.take(-(-num_prompt // block_tokens) - len(head))
        arrivals.append(Arrival(time_s, num_prompt, outputs.draw(rng), prefix))
    return Workload(name, arrivals, block_tokens)


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations of `count` turns. From one turn's arrival to the next pass `think_s` seconds
    on average (exponential), and `per_token_s` for each token of the answer between them."""

    count: Lengths
    think_s: float = 10.0
    per_token_s: float = 0.05


def conversations(
    starts: Iterator[float],
    num_requests: int,
    messages: Lengths,
    outputs: Lengths,
    turns: Turns,
    shared: SharedPrefixes | None = None,
    *,
    most_tokens: int = 131_072,
    block_tokens: int = BLOCK_TOKENS,
    seed: int = 0,
    name: str = "conversations",
) -> Workload:
    """Sessions that begin at `starts`. A turn's prompt is the prompt before it, the answer to
    that, and a new message; a session ends early where that would exceed `most_tokens`. As many
    sessions are made as give `num_requests` turns; the last ones by time are left out.
    """
    rng = random.Random(seed)
    ids = _Ids()
    count = shared.count if shared else 1
    heads = [ids.take(shared.tokens // block_tokens if shared else 0) for _ in range(max(1, count))]
    weights = [1 / rank ** (shared.skew if shared else 0.0) for rank in range(1, len(heads) + 1)]
    arrivals: list[Arrival] = []
    earliest: list[float] = []  # the first `num_requests` times so far, negated: a heap
    for number, start_s in enumerate(starts):
        if len(earliest) >= num_requests and (not earliest or -earliest[0] <= start_s):
            break
        if number - len(arrivals) > _MOST_EMPTY:
            raise ValueError(f"messages are too long for prompts of at most {most_tokens} tokens")
        blocks = rng.choices(heads, weights)[0]
        num_prompt, now = len(blocks) * block_tokens, start_s
        for _ in range(turns.count.draw(rng)):
            num_prompt += messages.draw(rng)
            if num_prompt > most_tokens:
                break
            blocks += ids.take(-(-num_prompt // block_tokens) - len(blocks))
            num_output = outputs.draw(rng)
            arrivals.append(
                Arrival(now, num_prompt, num_output, blocks, session=f"session-{number}")
            )
            heapq.heappush(earliest, -now)
            if len(earliest) > num_requests:
                heapq.heappop(earliest)
            num_prompt += num_output
            now += num_output * turns.per_token_s
            now += rng.expovariate(1 / turns.think_s) if turns.think_s > 0 else 0.0
    arrivals.sort(key=lambda each: each.time_s)
    return Workload(name, arrivals[:num_requests], block_tokens)


class _Ids:
    """Block ids in turn, each given out once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> tuple[int, ...]:
        first, self._next = self._next, self._next + count
        return tuple(range(first, self._next))
