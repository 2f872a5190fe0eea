"""Clients that ask for the same few answers again and again, whatever happens to the cell."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx


class Asking:
    """`clients` threads ask for as long as `asking` lasts. Half of them keep their connections,
    half open a new one for every request; nobody asks twice for what failed. There are `distinct`
    requests, or one for each client.

    Every answer is compared with what the undisturbed cell said first."""

    def __init__(
        self,
        url: str,
        *,
        clients: int = 8,
        seed: int = 0,
        tokens: int = 160,
        prompt: int = 200,
        distinct: int = 0,
    ) -> None:
        """Prompts have up to `prompt` tokens, and outputs half of `tokens` to all of them."""
        self.url = url
        self.rng = random.Random(seed)
        self._prompt = prompt
        self.http = httpx.Client(base_url=url, timeout=120)
        self._clients = clients
        self.bodies = [self._body(tokens) for _ in range(distinct or clients)]
        self.expected = [self._ask(self.http, body) for body in self.bodies]
        self._done = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []

    def close(self) -> None:
        self.http.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The clients ask for as long as this lasts."""
        self._done.clear()
        threads = [
            threading.Thread(target=self._keep_asking, args=(i,)) for i in range(self._clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def _body(self, tokens: int) -> dict[str, Any]:
        rng = self.rng
        return {
            "prompt": rng.choices(range(3, 380), k=rng.randint(5, self._prompt)),
            "max_tokens": rng.randint(tokens // 2, tokens), "temperature": 1.0,
            "seed": rng.randrange(1 << 30), "ignore_eos": True, "return_token_ids": True,
            "n": rng.choice((1, 1, 2)),
        }  # fmt: skip

    def _ask(self, http: httpx.Client, body: dict[str, Any]) -> list[list[int]]:
        headers = {} if http is self.http else {"connection": "close"}
        response = http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return [choice["token_ids"] for choice in response.json()["choices"]]

    def _keep_asking(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as single:
            while not self._done.is_set():
                try:
                    http = self.http if number % 2 else single
                    if self._ask(http, self.bodies[number]) != self.expected[number]:
                        self.wrong.append(f"request {number} got other tokens")
                except Exception as error:
                    self.wrong.append(f"request {number}: {error!r}")
                self.answers += 1
