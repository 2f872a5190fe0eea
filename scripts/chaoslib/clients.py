"""Clients that ask all the time and remember what became of every request."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

import httpx
from asking import Asking
from live_cell import Streamed

from chaoslib.verdict import Answer, Got, judge

ANSWER_S = 150.0  # after which a request counts as hung
_AGAIN_S = 0.5  # after what was not answered
_STREAMED = 0.75  # of the requests


class Clients(Asking):
    """`answers_given` of requests drawn from the `distinct` ones whose answers are known."""

    def __init__(self, url: str, *, clients: int, distinct: int, seed: int, tokens: int) -> None:
        super().__init__(url, clients=clients, seed=seed, tokens=tokens, distinct=distinct)
        self.answers_given: list[Answer] = []
        self._seed = seed
        self._lock = threading.Lock()
        self._zero = time.monotonic()

    def now_s(self) -> float:
        """Of the clock of all answers."""
        return time.monotonic() - self._zero

    def _keep_asking(self, number: int) -> None:
        """One client: it keeps its connection, or opens one for every request."""
        rng = random.Random(self._seed * 1000 + number)
        headers = {} if number % 2 else {"connection": "close"}
        with httpx.Client(base_url=self.url, timeout=ANSWER_S, headers=headers) as http:
            while not self._done.is_set():
                answer = self._request(http, rng)
                with self._lock:
                    self.answers += 1
                    self.answers_given.append(answer)
                if answer.end != "identical":
                    print(f"    at {answer.ended_s:.0f} s {answer.end}: {answer.told}", flush=True)
                    time.sleep(_AGAIN_S)

    def _request(self, http: httpx.Client, rng: random.Random) -> Answer:
        """One request, asked again as long as it is refused, after the time that it is told."""
        number, begun, refusals = rng.randrange(len(self.bodies)), self.now_s(), 0
        streamed = rng.random() < _STREAMED
        while True:
            seen, got = self._ask_once(http, number, streamed, begun)
            end, told = judge(got, self.expected[number])
            if end != "refused" or self.now_s() - begun > ANSWER_S:
                break
            refusals += 1
            time.sleep(got.retry_after_s or 0.0)
        rows = seen.metrics.get("requests") or [{}]
        return Answer(
            number, begun, self.now_s(), end, told,
            ttft_s=seen.arrivals[0] - self._zero - begun if seen.arrivals else None,
            longest_gap_s=seen.longest_gap_s, refusals=refusals,
            resumed=end == "identical" and any(row.get("attempts", 1) > 1 for row in rows),
        )  # fmt: skip

    def _ask_once(
        self, http: httpx.Client, number: int, streamed: bool, begun: float
    ) -> tuple[Streamed, Got]:
        body = {**self.bodies[number], "include_pd_metrics": True, "stream": streamed}
        seen, got = Streamed(body), Got()
        try:
            self._read(http, body, seen, got, begun)
        except httpx.TimeoutException:
            got.hung, got.broken = True, f"nothing came for {ANSWER_S:g} s"
        except (httpx.HTTPError, ValueError) as error:
            got.broken = type(error).__name__
        last = max(seen.tokens, default=-1)
        got.tokens = [seen.tokens.get(index, []) for index in range(last + 1)]
        got.errors += seen.errors
        got.done = got.done or seen.done
        return seen, got

    def _read(
        self, http: httpx.Client, body: dict[str, Any], seen: Streamed, got: Got, begun: float
    ) -> None:
        with http.stream("POST", "/v1/completions", json=body) as response:
            got.status = response.status_code
            if response.status_code != 200:
                after = response.headers.get("retry-after", "")
                got.retry_after_s = float(after) if after else None
                got.errors.append(json.loads(response.read())["error"]["message"])
            elif not body["stream"]:
                answer = json.loads(response.read())
                for choice in answer["choices"]:
                    seen.tokens[choice["index"]] = choice["token_ids"]
                seen.metrics.update(answer.get("pd") or {})
                got.done = True
            else:
                for line in response.iter_lines():
                    seen.take(line)
                    if self.now_s() - begun > ANSWER_S:
                        got.hung, got.broken = True, f"it had not ended after {ANSWER_S:g} s"
                        return
