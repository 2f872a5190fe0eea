"""Nodes that change roles while requests run: what requests get, and how long a change takes."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from pd.client import Client
from pd.errors import APIStatusError

ROLES = ("prefill", "decode", "mixed")
_SETTLED_S = 60.0
_POLL_S = 0.02


class RoleSoak:
    """`clients` threads ask for the same few answers again and again, and `run` changes roles.

    Every answer is compared with what the undisturbed cell said first."""

    def __init__(self, url: str, *, clients: int = 8, seed: int = 0, tokens: int = 160) -> None:
        self._client = Client(url, timeout_s=120.0)
        self._http = httpx.Client(base_url=url, timeout=120)
        self._rng = random.Random(seed)
        self._bodies = [self._body(tokens) for _ in range(clients)]
        self._expected = [self._ask(body) for body in self._bodies]
        self._done = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []
        self.refused = 0
        self.changes: Counter[str] = Counter()
        self.seconds: list[float] = []  # until nothing of the old role was left, by change

    def close(self) -> None:
        self._http.close()
        self._client.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The clients ask for as long as this lasts."""
        threads = [
            threading.Thread(target=self._keep_asking, args=(i,)) for i in range(len(self._bodies))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def run(self, changes: int, progress: Callable[[int], None] = lambda done: None) -> None:
        with self.asking():
            while sum(self.changes.values()) < changes:
                self._change()
                progress(sum(self.changes.values()))

    def _body(self, tokens: int) -> dict[str, Any]:
        rng = self._rng
        return {
            "prompt": rng.choices(range(3, 380), k=rng.randint(5, 200)),
            "max_tokens": rng.randint(tokens // 2, tokens), "temperature": 1.0,
            "seed": rng.randrange(1 << 30), "ignore_eos": True, "return_token_ids": True,
            "n": rng.choice((1, 1, 2)),
        }  # fmt: skip

    def _ask(self, body: dict[str, Any]) -> list[list[int]]:
        response = self._http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return [choice["token_ids"] for choice in response.json()["choices"]]

    def _keep_asking(self, number: int) -> None:
        while not self._done.is_set():
            try:
                if self._ask(self._bodies[number]) != self._expected[number]:
                    self.wrong.append(f"request {number} got other tokens")
            except Exception as error:
                self.wrong.append(f"request {number}: {error!r}")
            self.answers += 1

    def _change(self) -> None:
        """One that the cell can do, and its end."""
        nodes = [row for row in self._client.status()["nodes"] if row["role"] != "pool"]
        node = self._rng.choice(nodes)
        role = self._rng.choice([role for role in ROLES if role != node["role"]])
        try:
            begun = time.monotonic()
            self._client.change_role(node["id"], role)
        except APIStatusError as error:
            assert error.status == 409, error
            self.refused += 1  # the cell could not have served without it
            return
        while not self._settled(node["id"], role):
            assert time.monotonic() - begun < _SETTLED_S, f"{node['id']} is not a {role} node yet"
            time.sleep(_POLL_S)
        self.seconds.append(time.monotonic() - begun)
        self.changes[f"{node['role']} to {role}"] += 1

    def _settled(self, node_id: str, role: str) -> bool:
        (row,) = (row for row in self._client.status()["nodes"] if row["id"] == node_id)
        return row["role"] == role and row["state"] == "ready"
