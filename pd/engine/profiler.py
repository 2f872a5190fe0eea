"""Times an engine's steps for a cost model: real plans on the real KV arena."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pd.cost.load import Sample
from pd.cost.model import Link
from pd.cost.sweep import Point
from pd.types import (
    BatchPlan,
    PrefillChunk,
    Request,
    SamplingParams,
    StepResult,
    StepTime,
    Work,
)
from pd.types import Sequence as Seq

_COPIES = (1, 4, 16, 64)
_LEAST_S = 1e-6  # whatever a clock says
_MOST_RUNS, _ENOUGH_S = 5, 0.1  # of one point
_PARAMS = SamplingParams(temperature=0.0, max_tokens=1 << 20, ignore_eos=True)


class StepEngine(Protocol):
    """What is needed of `pd.engine.engine.Engine`."""

    num_blocks: int
    block_size: int

    def execute(self, plan: BatchPlan) -> StepResult: ...


class Profiler:
    """Runs points of a sweep in rounds, each in another order, so that whatever else the machine
    does hits all alike. A step's time is the median of its rounds.

    Steps only read the sequences, so the same plan can run again and again. A point that is run
    for the first time, which may compile kernels, is not timed.
    """

    def __init__(
        self,
        engine: StepEngine,
        vocab_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._clock = clock

    def run(
        self,
        points: Sequence[Point],
        rounds: int,
        progress: Callable[[int, int], None] = lambda done, of: None,
        seed: int = 0,
    ) -> list[Sample]:
        """Samples in the order of the points. `progress` is told steps done and to do."""
        plans = [self.plan(point) for point in points]
        for plan in plans:
            self._engine.execute(plan)
        times: list[list[float]] = [[] for _ in points]
        order = list(range(len(points)))
        rng = random.Random(seed)
        for done in range(rounds):
            rng.shuffle(order)
            for place, i in enumerate(order):
                start = self._clock()
                self._engine.execute(plans[i])
                times[i].append(self._clock() - start)
                progress(done * len(points) + place + 1, rounds * len(points))
        return [
            Sample(point.load, statistics.median(taken))
            for point, taken in zip(points, times, strict=True)
        ]

    def least(self, points: Sequence[Point]) -> list[StepTime]:
        """The least that each point took of two runs, or of more where they are short: the first
        may compile, any may be held up, and there is no time for medians."""
        found = []
        for point in points:
            plan = self.plan(point)
            times: list[float] = []
            while len(times) < 2 or (len(times) < _MOST_RUNS and sum(times) < _ENOUGH_S):
                start = self._clock()
                self._engine.execute(plan)
                times.append(self._clock() - start)
            found.append(point.took(max(_LEAST_S, min(times))))
        return found

    def copies(self, block_bytes: int, rounds: int) -> Link:
        """How fast the engine copies blocks within its arena."""
        sizes = [size for size in _COPIES if 2 * size <= self._engine.num_blocks]
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for done in range(rounds + 1):
            for size in sizes:
                pairs = tuple((i, size + i) for i in range(size))
                start = self._clock()
                self._engine.execute(BatchPlan(copies=pairs))
                if done:  # the first may compile
                    times[size].append(self._clock() - start)
        return Link.through(
            {size * block_bytes: statistics.median(taken) for size, taken in times.items()}
        )

    def plan(self, point: Point) -> BatchPlan:
        """The point's step, each of its sequences in blocks of its own."""
        size, free, chunks, decodes = self._engine.block_size, 0, [], []
        for number, length in enumerate(point.lengths):
            prompt = tuple((7 * i + number) % self._vocab_size for i in range(length))
            seq = Seq(Work(Request(f"profile-{number}", "", prompt, _PARAMS), (0,)), 0)
            end = free + -(-length // size)
            if end > self._engine.num_blocks:
                raise ValueError(f"{point} does not fit into {self._engine.num_blocks} blocks")
            seq.blocks = list(range(free, end))
            free = end
            if number < len(point.chunks):
                start, num_tokens = point.chunks[number]
                seq.num_computed = start
                chunks.append(PrefillChunk(seq, start, num_tokens, (seq,)))
            else:
                seq.num_computed = length - 1
                decodes.append(seq)
        return BatchPlan(tuple(chunks), tuple(decodes))
