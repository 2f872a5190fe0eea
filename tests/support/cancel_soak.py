"""Clients that disconnect at random points, over plain sockets, and what a server keeps of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

Stage = str
# Where a request was when its client left, as far as a client can tell.
STAGES: tuple[Stage, ...] = ("sending", "no answer yet", "streaming", "whole answer pending")
_FD_SLACK = 4  # Ray opens and closes a few of its own
_IDLE_S = 60.0
_STATUS_S = 1.0  # after which a status tells about now
_PREFIX = [7 + i % 300 for i in range(256)]  # a beginning that many prompts share


class CancelSoak:
    """`run` cancels `cancels` requests, at most `concurrency` at a time; `report` sums up."""

    def __init__(self, url: str, *, concurrency: int = 32, seed: int = 0) -> None:
        self.url = url
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._concurrency = concurrency
        self._rng = random.Random(seed)
        self._http = httpx.Client(base_url=url, timeout=120)
        self.stages: Counter[Stage] = Counter()
        self.ends: Counter[str] = Counter()
        self.answered = 0  # complete before its client would have left
        self.unexpected: list[str] = []

    def close(self) -> None:
        self._http.close()

    # -------------------------------------------------------------- load
    def run(self, cancels: int, progress: Callable[[int], None] = lambda done: None) -> None:
        self._target = sum(self.stages.values()) + cancels
        asyncio.run(self._run(progress))

    async def _run(self, progress: Callable[[int], None]) -> None:
        async def client() -> None:
            while sum(self.stages.values()) < self._target:
                await self._request()
                progress(sum(self.stages.values()))

        await asyncio.gather(*(client() for _ in range(self._concurrency)))

    async def _request(self) -> None:
        rng = self._rng
        stream = rng.random() < 0.7
        data = json.dumps(self._body(stream)).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._address[0]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode()
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            if rng.random() < 0.05:
                writer.write(head + data[: rng.randrange(len(data))])
                await writer.drain()
                await asyncio.sleep(rng.random() * 0.01)
                self.stages["sending"] += 1
                return
            writer.write(head + data)
            await writer.drain()
            self._count(stream, await self._read(reader, stream))
        finally:
            if rng.random() < 0.5:
                self.ends["reset"] += 1
                writer.transport.abort()
            else:
                self.ends["closed"] += 1
                writer.close()

    def _body(self, stream: bool) -> dict[str, Any]:
        rng = self._rng
        length = int(2 ** rng.uniform(0, 10))
        shared = rng.randrange(len(_PREFIX)) if rng.random() < 0.3 else 0
        return {
            "prompt": _PREFIX[:shared] + rng.choices(range(3, 380), k=length),
            "max_tokens": rng.choice((64, 128, 256)),
            "n": rng.choice((1, 1, 1, 2, 3)),
            "temperature": 1.0,
            "seed": rng.randrange(1 << 30),
            "ignore_eos": True,
            "stream": stream,
        }

    async def _read(self, reader: asyncio.StreamReader, stream: bool) -> bytes:
        """What came until this client has had enough: after a time, or some pieces."""
        rng, received = self._rng, b""
        if stream and rng.random() < 0.5:
            wanted, patience_s = rng.randrange(1, 40), 60.0
        else:
            wanted, patience_s = 1 << 30, rng.choice((0.0, 0.002, 0.02, 0.1, 0.4)) * rng.random()
        deadline = time.monotonic() + patience_s
        while received.count(b"data: ") < wanted:
            try:
                left_s = deadline - time.monotonic()
                piece = await asyncio.wait_for(reader.read(1 << 16), max(0.0, left_s))
            except asyncio.TimeoutError:
                break
            if not piece:
                break
            received += piece
            if _complete(received):
                break
        return received

    def _count(self, stream: bool, received: bytes) -> None:
        if received and not received.startswith(b"HTTP/1.1 200"):
            self.unexpected.append(received[:300].decode(errors="replace"))
        if _complete(received):
            self.answered += 1
        elif received:
            self.stages["streaming"] += 1
        else:
            self.stages["no answer yet" if stream else "whole answer pending"] += 1

    # -------------------------------------------------------------- state
    def usage(self) -> dict[str, int]:
        """Blocks, requests, tasks, file descriptors: what must be the same before and after."""
        status = self._status()
        gateway = status["gateway"]
        counts = {
            "requests": status["num_requests"] + gateway["running"] + gateway["waiting"],
            "gateway tasks": gateway["tasks"],
        }
        for row in status["nodes"]:
            held = row["num_blocks"] - row["free_blocks"]
            work = row["num_running"] + row["num_waiting"] + row["num_reserving"]
            if row["role"] != "pool":  # a pool is there to keep blocks
                counts[f"{row['id']} held blocks"] = held
            counts[f"{row['id']} sequences"] = work + row["waiting_tokens"]
        for name, pid in self.pids().items():
            process = psutil.Process(pid)
            counts[f"{name} fds"] = process.num_fds()
            counts[f"{name} threads"] = process.num_threads()
        return counts

    def pids(self) -> dict[str, int]:
        """Processes of the cell on this host."""
        status = self._status()
        named = {row["id"]: row["pid"] for row in status["nodes"]}
        named["gateway"] = status["gateway"]["pid"]
        return {name: pid for name, pid in named.items() if os.path.exists(f"/proc/{pid}")}

    def memory_mib(self) -> dict[str, int]:
        """Resident memory of each process."""
        return {
            name: psutil.Process(pid).memory_info().rss >> 20 for name, pid in self.pids().items()
        }

    def wait_idle(self, before: dict[str, int] | None = None) -> dict[str, int]:
        """Until nothing is held, and no process has more than it had `before`.

        AssertionError that lists the differences, if that does not come about.
        """
        time.sleep(_STATUS_S)
        deadline = time.monotonic() + _IDLE_S
        while True:
            usage = self.usage()
            excess = [
                f"{key}: {count}" + (f", was {before.get(key)}" if before else "")
                for key, count in usage.items()
                if count > _allowed(key, before)
            ]
            if not excess:
                return usage
            assert time.monotonic() < deadline, f"left behind: {'; '.join(excess)}"
            time.sleep(0.2)

    def serve_one(self) -> list[int]:
        """A request that must succeed; its tokens."""
        body = {
            "prompt": [5, 6, 7], "max_tokens": 32, "temperature": 1.0, "seed": 1,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        response = self._http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        tokens: list[int] = response.json()["choices"][0]["token_ids"]
        return tokens

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._http.get("/v1/status").json()
        return status


def _allowed(key: str, before: dict[str, int] | None) -> float:
    if key.endswith(("blocks", "sequences", "requests")):
        return 0
    if before is None:
        return float("inf")
    return before.get(key, 0) + (_FD_SLACK if key.endswith(("fds", "threads")) else 0)


def _complete(received: bytes) -> bool:
    """Whether an answer has come in full: the last chunk, or all of the announced length."""
    if b"transfer-encoding: chunked" in received[:400].lower():
        return received.endswith(b"0\r\n\r\n")
    head, separator, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if separator and line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False
