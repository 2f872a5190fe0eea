"""A gateway over a fake cell, served on 127.0.0.1 from a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fake_cell import FakeCell

from pd.gateway.continuity import LinkOptions
from pd.gateway.limits import Limits
from pd.gateway.server import GatewayOptions, GatewayServer
from pd.messages import COORDINATOR
from pd.types import Peer

QUICK = LinkOptions(heartbeat_s=0.05, watch_s=0.05, gap_timeout_s=0.2, backoff_s=0.001)
LIMITS = Limits()
NAME = "tiny"


@dataclass
class Front:
    server: GatewayServer
    cell: FakeCell
    loop: asyncio.AbstractEventLoop
    http: httpx.Client
    stopping: Future[None] | None = None

    @property
    def url(self) -> str:
        return self.server.url

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A completions request that must succeed."""
        response = self.post("/v1/completions", {"prompt": "hi", "max_tokens": 64, **body})
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of every event of a stream, parsed; [DONE] as that string."""
        text = self.post(path, {**body, "stream": True}).text
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def stop(self) -> Future[None]:
        """Begin to shut down; the result comes when every stream has been told."""
        if self.stopping is None:
            self.stopping = asyncio.run_coroutine_threadsafe(self.server.shutdown(), self.loop)
        return self.stopping


def eventually(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@contextmanager
def serving(
    model_dir: Path,
    *,
    link: LinkOptions = QUICK,
    limits: Limits = LIMITS,
    joined: bool = True,
    prepare: Callable[[FakeCell], None] = lambda cell: None,
    **options: Any,
) -> Iterator[Front]:
    started: list[tuple[GatewayServer, FakeCell, asyncio.AbstractEventLoop]] = []
    failure: list[BaseException] = []

    async def main() -> None:
        cell = FakeCell()
        prepare(cell)
        settings = GatewayOptions(
            model_dir, model_name=NAME, port=0, link=link, limits=limits,
            **{"drain_s": 0.1, **options},
        )  # fmt: skip
        server = GatewayServer(settings, cell, Peer(COORDINATOR, 1))
        started.append((server, cell, asyncio.get_running_loop()))
        await server.serve()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # shown by the test, not by the thread
            failure.append(error)

    thread = threading.Thread(target=run, name="front")
    thread.start()
    eventually(lambda: started or failure)
    if failure:
        raise failure[0]
    server, cell, loop = started[0]
    with httpx.Client(base_url=server.url, timeout=30, verify=False) as http:
        front = Front(server, cell, loop, http)
        try:
            assert http.get("/health").status_code == 200
            if joined:
                eventually(lambda: server.link.readiness()[0])
            yield front
        finally:
            http.close()
            if thread.is_alive():
                front.stop().result(15)
            thread.join(15)
            assert not thread.is_alive(), "the server did not stop"
            assert not failure, failure
