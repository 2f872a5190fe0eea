"""A closed loop of requests over prefill and decode workers, as public benchmarks run them.

Always `concurrency` requests, all sent at once in the beginning; each waits for the first free
prefill worker, then joins the decode worker with the fewest sequences. Lengths are uniform
between `shortest` and 1 of the nominal ones, which slowly takes the waves apart that the common
beginning makes. No scheduler is modelled beyond that: these runs are of other engines.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from dataclasses import dataclass, field

from pd.cost.load import StepLoad
from pd.cost.model import CostModel


@dataclass(frozen=True)
class Loop:
    """What is run: `at_once` prompts are prefilled together by a worker."""

    concurrency: int
    num_prompt: int
    num_output: int
    prefill_workers: int
    at_once: int
    decode_workers: int
    waves: int = 10
    shortest: float = 0.8


@dataclass(eq=False)
class _Request:
    start: float
    num_prompt: int
    num_output: int
    first: float = 0.0


@dataclass(eq=False)
class _Decoder:
    """A decode worker between two changes of its batch; `steps` counts those it has run."""

    ends: list[tuple[int, int, _Request]] = field(default_factory=list)  # a heap by last step
    context: int = 0
    steps: int = 0
    now: float = 0.0
    version: int = 0


def run(
    loop: Loop, prefill: CostModel, decode: CostModel, decode_factor: float = 1.0, seed: int = 0
) -> tuple[float, float]:
    """Mean TTFT and TPOT in seconds over all requests; decode steps take `decode_factor` times
    what their model says."""
    return _Run(loop, prefill, decode, decode_factor, random.Random(seed)).means()


class _Run:
    def __init__(
        self,
        loop: Loop,
        prefill: CostModel,
        decode: CostModel,
        decode_factor: float,
        rng: random.Random,
    ) -> None:
        self.loop, self.prefill, self.decode, self.rng = loop, prefill, decode, rng
        self.decode_factor = decode_factor
        self.to_send = loop.waves * loop.concurrency
        self.queue: deque[_Request] = deque()
        self.idle = loop.prefill_workers
        self.decoders = [_Decoder() for _ in range(loop.decode_workers)]
        # (time, order, prompts that a worker has computed) or (time, order, decoder, version)
        self.events: list[tuple[float, int, list[_Request] | None, _Decoder | None, int]] = []
        self.order = 0
        self.ttfts: list[float] = []
        self.tpots: list[float] = []

    def means(self) -> tuple[float, float]:
        for _ in range(self.loop.concurrency):
            self._send(0.0)
        self._start_prompts(0.0)
        while self.events:
            now, _, prompts, decoder, version = heapq.heappop(self.events)
            if prompts is not None:
                self.idle += 1
                for request in prompts:
                    self._join(request, now)
            elif decoder is not None and decoder.version == version:
                self._advance(decoder, now)
                self._plan(decoder)
            self._start_prompts(now)
        return statistics.mean(self.ttfts), statistics.mean(self.tpots)

    def _event(
        self, now: float, prompts: list[_Request] | None, decoder: _Decoder | None, version: int
    ) -> None:
        self.order += 1
        heapq.heappush(self.events, (now, self.order, prompts, decoder, version))

    def _send(self, now: float) -> None:
        if self.to_send:
            self.to_send -= 1
            prompt, output = (
                max(2, round(length * self.rng.uniform(self.loop.shortest, 1.0)))
                for length in (self.loop.num_prompt, self.loop.num_output)
            )
            self.queue.append(_Request(now, prompt, output))

    def _start_prompts(self, now: float) -> None:
        while self.idle and self.queue:
            self.idle -= 1
            count = min(self.loop.at_once, len(self.queue))
            prompts = [self.queue.popleft() for _ in range(count)]
            load = StepLoad()
            for request in prompts:
                load += StepLoad.chunk(request.num_prompt)
            self._event(now + self.prefill.step_s(load), prompts, None, 0)

    def _join(self, request: _Request, now: float) -> None:
        request.first = now
        self.ttfts.append(now - request.start)
        decoder = min(self.decoders, key=lambda each: len(each.ends))
        if decoder.ends:
            self._advance(decoder, now)
        else:
            decoder.now = now
        self.order += 1
        end = decoder.steps + request.num_output - 1
        heapq.heappush(decoder.ends, (end, self.order, request))
        decoder.context += request.num_prompt
        self._plan(decoder)

    def _advance(self, decoder: _Decoder, now: float) -> None:
        """Run the steps that began before `now`; the last may end after it."""
        while decoder.ends and decoder.now < now:
            until_end = decoder.ends[0][0] - decoder.steps
            seconds = self._decode_s(len(decoder.ends), decoder.context, until_end)
            steps = until_end
            if decoder.now + seconds > now + 1e-9:
                share = (now - decoder.now) / seconds
                steps = min(until_end, max(1, round(share * until_end + 0.5)))
                seconds = self._decode_s(len(decoder.ends), decoder.context, steps)
            decoder.now += seconds
            decoder.steps += steps
            decoder.context += steps * len(decoder.ends)
            self._finish(decoder)

    def _decode_s(self, num_seqs: int, context: int, num_steps: int) -> float:
        return self.decode_factor * self.decode.decode_steps_s(num_seqs, context, num_steps)

    def _finish(self, decoder: _Decoder) -> None:
        while decoder.ends and decoder.ends[0][0] <= decoder.steps:
            _, _, request = heapq.heappop(decoder.ends)
            decoder.context -= request.num_prompt + request.num_output - 1
            self.tpots.append((decoder.now - request.first) / (request.num_output - 1))
            self._send(decoder.now)

    def _plan(self, decoder: _Decoder) -> None:
        """Come back when the first of its sequences ends, unless one joins before."""
        decoder.version += 1
        if decoder.ends:
            steps = decoder.ends[0][0] - decoder.steps
            seconds = self._decode_s(len(decoder.ends), decoder.context, steps)
            self._event(decoder.now + seconds, None, decoder, decoder.version)
