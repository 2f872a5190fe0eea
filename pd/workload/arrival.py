"""Workloads: when requests arrive, how long they are, and what their prompts share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pd.types import SLO


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload, without its text.

    `prefix` has one id for every `Workload.block_tokens` tokens of the prompt, the last of
    which may be partial; empty where nothing is known or shared. An id names a block and all
    before it: two prompts with the same id at a place have the same tokens up to there, as far
    as both reach. `slo` is None where the request has no targets of its own.
    """

    time_s: float
    num_prompt: int
    num_output: int
    prefix: tuple[int, ...] = ()
    session: str = ""
    tenant: str = ""
    priority: int = 0
    slo: SLO | None = None


class Workload:
    """Arrivals in order of time, seconds since the workload's start. Immutable.

    ValueError for what is no workload: times that go back or are negative, lengths below 1,
    or a prefix whose ids do not cover the prompt.
    """

    __slots__ = ("name", "arrivals", "block_tokens")

    def __init__(self, name: str, arrivals: Sequence[Arrival], block_tokens: int = 512) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens must be at least 1, not {block_tokens}")
        self.name = name
        self.arrivals = tuple(arrivals)
        self.block_tokens = block_tokens
        self._check()

    def __len__(self) -> int:
        return len(self.arrivals)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)

    def __repr__(self) -> str:
        return f"Workload({self.name!r}, {len(self)} arrivals, {self.duration_s:.6g} s)"

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return self.arrivals[-1].time_s - self.arrivals[0].time_s if self.arrivals else 0.0

    @property
    def rate(self) -> float:
        """Mean arrivals a second; 0 of less than two, infinite where all come at once."""
        if len(self) < 2:
            return 0.0
        return (len(self) - 1) / self.duration_s if self.duration_s else math.inf

    @property
    def num_prompt_tokens(self) -> int:
        return sum(each.num_prompt for each in self.arrivals)

    @property
    def num_output_tokens(self) -> int:
        return sum(each.num_output for each in self.arrivals)

    def scaled(
        self, time: float = 1.0, length: float = 1.0, output: float | None = None
    ) -> Workload:
        """Times multiplied by `time` (0.5 doubles the rate), tokens of prompts by `length` and of
        outputs by `output` (None: by `length` as well), at least one each. What prompts share is
        scaled with them: blocks become smaller and keep their ids, so that the same blocks hit."""
        output = length if output is None else output
        for name, factor in (("time", time), ("length", length), ("output", output)):
            if not (factor > 0 and math.isfinite(factor)):
                raise ValueError(f"the {name} factor must be a positive number, not {factor}")
        block = max(1, round(self.block_tokens * length))

        def prompt(each: Arrival) -> int:
            if not each.prefix:
                return max(1, round(each.num_prompt * length))
            # The last block is filled to the same share as before: the number of blocks stays.
            whole, rest = divmod(each.num_prompt, self.block_tokens)
            return whole * block + -(-rest * block // self.block_tokens)

        arrivals = tuple(
            replace(
                each,
                time_s=each.time_s * time,
                num_prompt=prompt(each),
                num_output=max(1, round(each.num_output * output)),
            )
            for each in self.arrivals
        )
        return Workload(self.name, arrivals, block)

    def at_rate(self, rate: float) -> Workload:
        """The same arrivals at this many a second. ValueError without two arrivals apart."""
        if not 0 < self.rate < math.inf:
            raise ValueError(
                f"workload {self.name} has no rate to scale: it needs two arrivals at two times"
            )
        return self.scaled(time=self.rate / rate)

    def first(self, n: int) -> Workload:
        """The first `n` arrivals, or all where there are fewer."""
        return Workload(self.name, self.arrivals[: max(0, n)], self.block_tokens)

    def window(self, start_s: float, end_s: float = math.inf) -> Workload:
        """Arrivals with start_s <= time < end_s, their times counted from start_s."""
        arrivals = tuple(
            replace(each, time_s=each.time_s - start_s)
            for each in self.arrivals
            if start_s <= each.time_s < end_s
        )
        return Workload(self.name, arrivals, self.block_tokens)

    def fitting(self, tokens: int) -> Workload:
        """Without the requests of more than `tokens` tokens, prompt and output together."""
        arrivals = tuple(
            each for each in self.arrivals if each.num_prompt + each.num_output <= tokens
        )
        return Workload(self.name, arrivals, self.block_tokens)

    def _check(self) -> None:
        before = 0.0
        for number, each in enumerate(self.arrivals, 1):
            where = f"arrival {number} of workload {self.name}"
            if not before <= each.time_s < math.inf:
                raise ValueError(f"{where} is at {each.time_s} s, after one at {before} s")
            before = each.time_s
            if each.num_prompt < 1 or each.num_output < 1:
                raise ValueError(
                    f"{where} has {each.num_prompt} prompt and {each.num_output} output tokens; "
                    "both must be at least 1"
                )
            if each.prefix and len(each.prefix) != -(-each.num_prompt // self.block_tokens):
                raise ValueError(
                    f"{where} has {len(each.prefix)} prefix ids for {each.num_prompt} tokens; "
                    f"blocks are of {self.block_tokens}"
                )
