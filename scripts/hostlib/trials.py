"""Requests through a cell while something is done to its network, and what came of them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from live_cell import LiveCell, Streamed, eventually

from hostlib.texts import documentation

_EXCEPTION = re.compile(r"\w+\(")
_POLL_S = 0.05
_PROBE_S, _WHOLE_S = 90.0, 120.0


def make_bodies(seed: int, count: int, num_chars: tuple[int, int], max_tokens: int) -> list[Any]:
    """Greedy requests, no two of which begin alike, with prompts of so many characters."""
    text = documentation()
    rng = random.Random(seed)
    bodies = []
    for number in range(count):
        length = rng.randint(*num_chars)
        start = rng.randrange(len(text) - length)
        prompt = f"{seed}.{number}: {text[start : start + length]}"
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        bodies.append(body)
    return bodies


@dataclass
class Outcome:
    """What came of one trial. `problems` is empty unless something must not be so."""

    name: str
    requests: int = 0
    right: int = 0
    clear_errors: int = 0
    resumed: int = 0  # right, but not in the first attempt
    ttft_s: list[float] = field(default_factory=list)
    longest_gap_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    served_again_s: float = 0.0  # from the end of the fault to the answer of a new request
    whole_again_s: float = 0.0  # until every node was there, with nothing held
    replaced: list[str] = field(default_factory=list)  # nodes that are new processes now
    link: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Trial:
    """One trial of a cell: `bodies` in rounds of `at_once`, with `expected` known."""

    def __init__(
        self, name: str, cell: LiveCell, bodies: Sequence[Any], expected: Sequence[list[int]]
    ) -> None:
        self.outcome = Outcome(name)
        self.cell = cell
        self._rounds = list(zip(bodies[:-1], expected[:-1]))
        self._probe, self._probe_expected = bodies[-1], expected[-1]
        self._epochs = self._epochs_now()

    def run(
        self,
        at_once: int,
        when: Callable[[list[Streamed]], bool] = lambda streams: False,
        fault: Callable[[], None] = lambda: None,
    ) -> None:
        """All but the last request, so many at once; the fault comes in the first round."""
        for start in range(0, len(self._rounds), at_once):
            taken = self._rounds[start : start + at_once]
            first = start == 0
            streams = self.cell.stream(
                [body for body, _ in taken],
                when if first else lambda streams: False,
                fault if first else lambda: None,
            )
            for stream, (_, expected) in zip(streams, taken):
                self._judge(stream, expected)

    def recover(self) -> None:
        """After the fault: the last request must be answered, and everything given back."""
        started = time.monotonic()
        while True:
            (stream,) = self.cell.stream([self._probe])
            if not stream.errors and stream.done:
                break
            if time.monotonic() - started > _PROBE_S:
                self.outcome.problems.append(f"not served again: {stream.errors}")
                return
            time.sleep(_POLL_S)
        self.outcome.served_again_s = time.monotonic() - started
        if stream.output != [self._probe_expected]:
            self.outcome.problems.append("the next request got wrong tokens")
        try:
            eventually(lambda: not self.cell.why_not_idle(), _WHOLE_S)
        except AssertionError:
            self.outcome.problems.append(f"not idle: {self.cell.why_not_idle()}")
        self.outcome.whole_again_s = time.monotonic() - started
        now = self._epochs_now()
        self.outcome.replaced = sorted(
            n for n, epoch in now.items() if self._epochs.get(n) != epoch
        )

    def _judge(self, stream: Streamed, expected: list[int]) -> None:
        outcome = self.outcome
        outcome.requests += 1
        got = stream.output[0] if stream.tokens else []
        if stream.errors:
            outcome.errors += stream.errors
            # What the HTTP client raises by itself says that nobody told it anything.
            clear = len(stream.errors) == 1 and not _EXCEPTION.match(stream.errors[0])
            if not clear or got != expected[: len(got)]:
                outcome.problems.append(f"after {len(got)} tokens: {stream.errors}")
            else:
                outcome.clear_errors += 1
        elif not stream.done or got != expected:
            same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), len(got))
            outcome.problems.append(
                f"{len(got)} of {len(expected)} tokens, the first {same} of them right"
            )
        else:
            outcome.right += 1
            (metrics,) = stream.metrics["requests"]
            outcome.resumed += metrics["attempts"] > 1
            outcome.ttft_s.append(metrics["ttft_s"])
        outcome.longest_gap_s = max(outcome.longest_gap_s, stream.longest_gap_s)

    def _epochs_now(self) -> dict[str, int]:
        return {row["id"]: row["epoch"] for row in self.cell.status()["nodes"]}
