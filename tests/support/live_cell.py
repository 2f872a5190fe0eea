"""Talking to a cell of real processes: streams that are watched as they grow, status, faults."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from pd.cluster import Cluster

STATUS_S = 0.7  # how old a status may be, and a little
WAIT_S = 90.0  # for a process to be restarted, its model loaded, on a busy machine


@dataclass
class Streamed:
    """One streaming completion and what has come of it so far."""

    body: dict[str, Any]
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    @property
    def output(self) -> list[list[int]]:
        return [self.tokens[index] for index in sorted(self.tokens)]

    @property
    def longest_gap_s(self) -> float:
        pairs = zip(self.arrivals, self.arrivals[1:])
        return max((later - earlier for earlier, later in pairs), default=0.0)

    def take(self, line: str) -> None:
        """One line of the answer."""
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line[6:])
        if "error" in event:
            self.errors.append(event["error"]["message"])
            return
        self.metrics.update(event.get("pd") or {})
        for choice in event["choices"]:
            self.arrivals.append(time.monotonic())
            self.tokens.setdefault(choice["index"], []).extend(choice.get("token_ids") or ())
            if choice["finish_reason"]:
                self.finishes[choice["index"]] = choice["finish_reason"]


class LiveCell:
    """A running cell and an HTTP client of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.url = cluster.url
        self.http = httpx.Client(base_url=cluster.url, timeout=WAIT_S)

    def close(self) -> None:
        self.http.close()
        self.cluster.stop()

    # -------------------------------------------------------------- requests
    def tokens(self, **body: Any) -> list[list[int]]:
        """The token ids of a request that must succeed, one list an output."""
        response = self.http.post("/v1/completions", json={"return_token_ids": True, **body})
        assert response.status_code == 200, response.text
        return [choice["token_ids"] for choice in response.json()["choices"]]

    def together(self, bodies: Sequence[dict[str, Any]]) -> list[list[list[int]]]:
        """The same for several requests at once."""
        streams = self.stream(bodies)
        assert [stream.errors for stream in streams] == [[]] * len(streams)
        return [stream.output for stream in streams]

    def stream(
        self,
        bodies: Sequence[dict[str, Any]],
        when: Callable[[list[Streamed]], bool] = lambda streams: False,
        fault: Callable[[], None] = lambda: None,
    ) -> list[Streamed]:
        """Stream all at once, and cause the fault as soon as `when` holds."""
        streams = [Streamed(body) for body in bodies]
        faulted = asyncio.run(self._stream(streams, when, fault))
        assert faulted or not when(streams), "the streams ended before the fault"
        return streams

    async def _stream(
        self,
        streams: list[Streamed],
        when: Callable[[list[Streamed]], bool],
        fault: Callable[[], None],
    ) -> bool:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=WAIT_S, limits=limits) as client:
            running = asyncio.gather(*(_read(client, stream) for stream in streams))
            faulted = False
            while not running.done():
                if not faulted and when(streams):
                    fault()
                    faulted = True
                await asyncio.wait([running], timeout=0.01)
            await running
            return faulted

    # -------------------------------------------------------------- state
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.http.get("/v1/status").json()
        return status

    def node(self, role: str) -> dict[str, Any]:
        """The row of the one node of this role."""
        (row,) = [row for row in self.status()["nodes"] if row["role"] == role]
        return row

    def total(self, name: str) -> int:
        """A counter of all nodes together, as of the last status."""
        return sum(row[name] for row in self.status()["nodes"])

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
        """A fault: this signal for the node of this role."""
        pid = self.node(role)["pid"]
        return lambda: os.kill(pid, number)

    def why_not_idle(self) -> str:
        """What is wrong with a cell that has nothing to do; empty if nothing is."""
        try:
            status = self.status()
        except httpx.HTTPError as error:
            return f"no status: {error!r}"
        if not status["ready"]:
            return f"not ready: {status['reason']}"
        if len(status["nodes"]) != len(self.cluster.nodes):
            return f"nodes: {[row['id'] for row in status['nodes']]}"
        if status["num_requests"] or status["gateway"]["running"] or status["gateway"]["waiting"]:
            return f"requests: {status['num_requests']}, gateway: {status['gateway']}"
        for row in status["nodes"]:
            for key in ("num_running", "num_waiting", "num_reserving", "waiting_tokens"):
                if row[key]:
                    return f"{row['id']}: {key} = {row[key]}"
            if row["role"] != "pool" and row["free_blocks"] != row["num_blocks"]:
                return f"{row['id']}: {row['free_blocks']} of {row['num_blocks']} blocks free"
        return ""

    def wait_idle(self, timeout_s: float = WAIT_S) -> None:
        """Until every node is up and everything was given back."""
        time.sleep(STATUS_S)
        deadline = time.monotonic() + timeout_s
        while reason := self.why_not_idle():
            assert time.monotonic() < deadline, reason
            time.sleep(0.05)


def eventually(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait for something that other processes bring about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


async def _read(client: httpx.AsyncClient, stream: Streamed) -> None:
    body = {**stream.body, "stream": True, "return_token_ids": True, "include_pd_metrics": True}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                stream.errors.append(f"{response.status_code}: {(await response.aread()).decode()}")
                return
            async for line in response.aiter_lines():
                stream.take(line)
    except httpx.HTTPError as error:
        stream.errors.append(repr(error))


def ray_processes(name: str) -> list[psutil.Process]:
    """Descendants of this process that run a Ray actor of this class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def orphaned_segments() -> list[str]:
    """KV segments in /dev/shm whose owner is dead."""
    orphans = []
    for path in Path("/dev/shm").glob("pd-kv-*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            continue
        except (FileNotFoundError, PermissionError):
            continue
        if path.exists():
            orphans.append(path.name)
    return orphans
