"""The load of an interference benchmark, as a process that takes as little CPU as it can.

    python -m benchlib.streams < job.json > result.json

It shares the cores with what it measures, so it is one loop over raw sockets that counts
events in what it reads and parses nothing. A fixed number of streams decodes all the time, a
new one in place of each that ends; first nothing else happens (`idle`), then long prompts
arrive at a fixed rate (`load`). Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import random
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from benchlib.processes import CpuMeter

_EVENT = b'data: {"id"'
_WARM_TOKENS = 10  # of every stream, before anything is measured
_DRAIN_S = 60.0  # that prompts still unanswered after the last phase are waited for


@dataclass(frozen=True)
class Job:
    """Sizes in tokens, times in seconds. `root` is the process whose tree's CPU is metered."""

    host: str
    port: int
    vocab_size: int
    root: int
    names: dict[int, str] = field(default_factory=dict)
    streams: int = 8
    stream_prompt: int = 16
    stream_tokens: int = 512
    prompt: int = 1024
    prompt_tokens: int = 4
    every_s: float = 6.0
    idle_s: float = 10.0
    load_s: float = 60.0  # 0 for no prompts at all
    staggered: bool = True  # streams of all ages, as if they had run for long
    seed: int = 0


@dataclass
class Phase:
    """What was seen in a stretch of time: gaps between tokens, and what first tokens took."""

    seconds: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    # From each prompt to the next; without the gap after a stream's first token, which has other
    # causes: the stream's hand-off.
    longest_s: list[float] = field(default_factory=list)
    stream_ttft_s: list[float] = field(default_factory=list)
    prompt_ttft_s: list[float] = field(default_factory=list)
    unanswered: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)


class Answer:
    """One request and the socket on which its events come."""

    def __init__(self, job: Job, prompt: list[int], max_tokens: int, slot: int | None) -> None:
        body = json.dumps({
            "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True,
        }).encode()  # fmt: skip
        self.slot = slot  # of a stream; None for a prompt
        self.tokens = 0
        self.done = False
        self.socket = socket.create_connection((job.host, job.port))
        self.sent_s = self.last_s = time.monotonic()
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        self.socket.setblocking(False)
        self._accepted = False
        self._tail = b""

    def read(self) -> int:
        """Tokens that have come; sets `done` with the last of them."""
        data = self.socket.recv(1 << 16)
        if not self._accepted and not data.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {data[:500].decode(errors='replace')!r}")
        self._accepted = True
        if not data or b"event: error" in data:
            raise SystemExit(f"a stream broke off after {self.tokens} tokens: {data[-500:]!r}")
        data = self._tail + data
        end = data.rfind(b"\n") + 1
        self._tail = data[end:]
        self.done = data.find(b"[DONE]", 0, end) >= 0
        return data.count(_EVENT, 0, end)


class Load:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.phase = Phase()
        self._random = random.Random(job.seed)
        self._selector = selectors.DefaultSelector()
        self._prompts: set[Answer] = set()
        self._warm = [0] * job.streams
        self._meter = CpuMeter(job.root, job.names)

    def run(self) -> dict[str, Any]:
        job = self.job
        for slot in range(job.streams):
            # Contexts of all lengths, and ends spread out.
            past = job.stream_tokens * slot // job.streams if job.staggered else 0
            self._send(job.stream_prompt + past, job.stream_tokens - past, slot)
        while min(self._warm) < _WARM_TOKENS:
            self._turn(1.0)
        if not job.load_s:
            return {"idle": dataclasses.asdict(self._measure(job.idle_s, prompts=False))}
        self._prompt()
        self._await_prompts()
        idle = self._measure(job.idle_s, prompts=False)
        load = self._measure(job.load_s, prompts=True)
        self._await_prompts()
        load.unanswered = len(self._prompts)
        return {"idle": dataclasses.asdict(idle), "load": dataclasses.asdict(load)}

    def _measure(self, seconds: float, *, prompts: bool) -> Phase:
        phase = self.phase = Phase()
        self._meter.start()
        started = time.monotonic()
        # The first one a little later, so that the phases are apart.
        next_s = started + 0.2 if prompts else float("inf")
        end_s = started + seconds
        while (now := time.monotonic()) < end_s:
            if now >= next_s:
                next_s += self.job.every_s
                phase.longest_s.append(0.0)
                self._prompt()
            self._turn(min(next_s, end_s) - time.monotonic())
        phase.seconds = time.monotonic() - started
        phase.cpu_s = self._meter.stop()
        # What still comes is not part of it, except for answers to its prompts.
        self.phase = Phase(prompt_ttft_s=phase.prompt_ttft_s)
        return phase

    def _await_prompts(self) -> None:
        deadline_s = time.monotonic() + _DRAIN_S
        while self._prompts and time.monotonic() < deadline_s:
            self._turn(0.1)

    def _prompt(self) -> None:
        self._prompts.add(self._send(self.job.prompt, self.job.prompt_tokens, None))

    def _send(self, prompt: int, tokens: int, slot: int | None) -> Answer:
        # Never the same twice: a prompt that is cached costs no prefill.
        ids = [self._random.randrange(self.job.vocab_size) for _ in range(prompt)]
        answer = Answer(self.job, ids, tokens, slot)
        self._selector.register(answer.socket, selectors.EVENT_READ, answer)
        return answer

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            answer: Answer = key.data
            new, now = answer.read(), time.monotonic()
            if new:
                self._count(answer, new, now)
            if answer.done:
                self._selector.unregister(answer.socket)
                answer.socket.close()
                if answer.slot is None:
                    self._prompts.discard(answer)
                else:
                    self._send(self.job.stream_prompt, self.job.stream_tokens, answer.slot)

    def _count(self, answer: Answer, new: int, now: float) -> None:
        phase, passed_s = self.phase, now - answer.last_s
        if answer.slot is not None:
            self._warm[answer.slot] += new
        if not answer.tokens:
            (phase.prompt_ttft_s if answer.slot is None else phase.stream_ttft_s).append(passed_s)
        elif answer.slot is not None:
            phase.gaps_s.append(passed_s)
            if phase.longest_s and answer.tokens > 1:
                phase.longest_s[-1] = max(phase.longest_s[-1], passed_s)
        if answer.slot is not None:
            phase.gaps_s += [0.0] * (new - 1)  # came together
        answer.tokens += new
        answer.last_s = now


def main() -> None:
    job = json.load(sys.stdin)
    job["names"] = {int(pid): name for pid, name in job["names"].items()}
    json.dump(Load(Job(**job)).run(), sys.stdout)


if __name__ == "__main__":
    main()
