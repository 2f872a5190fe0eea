"""`Client`: blocking calls, for scripts and threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import httpx

from pd.client import calls
from pd.client.answers import Completion, Delta, RequestMetrics, Usage
from pd.client.calls import Messages, Prompt, Timeouts, View
from pd.client.events import StreamReader
from pd.errors import ClientError


class Stream(Iterator[Delta]):
    """Deltas as they come. Closing it early, or leaving its `with`, cancels the request.

    `usage` and `requests` (metrics, one per prompt) are there once it has ended. Raises
    StreamError if it ends in any other way than completely.
    """

    def __init__(self, response: httpx.Response, deadline: calls.Deadline) -> None:
        self._response = response
        self._deadline = deadline
        self._chunks = response.iter_bytes()
        self._reader = StreamReader()
        self._ready: list[Delta] = []

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    @property
    def requests(self) -> tuple[RequestMetrics, ...]:
        return self._reader.requests

    def __next__(self) -> Delta:
        while not self._ready:
            if self._reader.done:
                self.close()
                raise StopIteration
            try:
                self._deadline.check(time.monotonic())
                chunk = next(self._chunks, None)
                if chunk is None:
                    self._reader.end()
                else:
                    self._ready = self._reader.feed(chunk)[::-1]
            except httpx.TransportError as error:
                self.close()
                raise calls.transport_error(error, streaming=True) from error
            except ClientError:
                self.close()
                raise
        return self._ready.pop()

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """Talks to one gateway. Safe to share between threads.

        with Client("http://127.0.0.1:8000") as client:
            print(client.generate("Once upon a time", max_tokens=32).text)

    Sampling parameters are those of the HTTP API, given by name; so are `model`, `session_id`
    (requests of one are served where its KV lies) and `cache_salt` (only requests of one share
    cached KV), which can be given for all calls here. `timeout_s` bounds a whole call, `timeouts`
    its parts. Raises `pd.errors.ClientError`
    and what is below it. `max_retries` applies to connections refused and to 429 and 503, whose
    Retry-After is honoured; never once a token has arrived.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        model: str | None = None,
        session_id: str | None = None,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._defaults = calls.given(model=model, session_id=session_id, cache_salt=cache_salt)
        self._timeouts = timeouts = timeouts.within(timeout_s)
        self._retries = calls.Retries(max_retries)
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers=calls.headers(api_key),
            timeout=timeouts.httpx(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
            trust_env=False,
            # Loading certificates takes longer than a request: only where they are needed.
            verify=not base_url.startswith("http://"),
        )

    def generate(self, prompt: Prompt, **params: Any) -> Completion:
        """The whole answer to a prompt, to token ids, or to a list of either."""
        body = calls.completion_body(prompt, self._defaults, params)
        return self._whole(calls.COMPLETIONS, body)

    def chat(self, messages: Messages, **params: Any) -> Completion:
        """The whole answer to a conversation, or to one message of a user."""
        return self._whole(calls.CHAT, calls.chat_body(messages, self._defaults, params))

    def stream(self, prompt: Prompt, **params: Any) -> Stream:
        """As `generate`, token by token. Returns when the first is there."""
        body = calls.completion_body(prompt, self._defaults, {**params, "stream": True})
        return self._stream(calls.COMPLETIONS, body)

    def stream_chat(self, messages: Messages, **params: Any) -> Stream:
        """As `chat`, token by token. Returns when the first is there."""
        body = calls.chat_body(messages, self._defaults, {**params, "stream": True})
        return self._stream(calls.CHAT, body)

    def models(self) -> list[str]:
        """The names that requests may give as `model`."""
        return [card["id"] for card in self._ask("GET", "/v1/models")["data"]]

    def status(self) -> dict[str, Any]:
        """The cell: readiness, nodes, running requests."""
        status: dict[str, Any] = self._ask("GET", "/v1/status")
        return status

    def watch(self, view: View, **query: float) -> dict[str, Any]:
        """What a gateway remembers of late: "history" (samples over time, `since` a time),
        "requests/recent" or "decisions" (at most `limit`). Needs the server's own key."""
        seen: dict[str, Any] = self._ask("GET", calls.watch(view, query))
        return seen

    def change_role(self, node_id: str, role: str, *, migrate: bool = True) -> None:
        """Make a node a "prefill", "decode" or "mixed" node. What it was doing for its old role
        goes on elsewhere, or with `migrate` False ends there first."""
        self._ask("POST", *calls.role(node_id, role, migrate))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _whole(self, path: str, body: bytes) -> Completion:
        response, deadline = self._send("POST", path, body)
        try:
            data = b"".join(self._checked(response, deadline))
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            response.close()
        return calls.read_completion(data)

    def _checked(self, response: httpx.Response, deadline: calls.Deadline) -> Iterator[bytes]:
        for chunk in response.iter_bytes():
            deadline.check(time.monotonic())
            yield chunk

    def _stream(self, path: str, body: bytes) -> Stream:
        return Stream(*self._send("POST", path, body))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of the answer."""
        response, _ = self._send(method, path, body)
        try:
            response.read()
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            response.close()
        return calls.parse(response)

    def _send(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[httpx.Response, calls.Deadline]:
        """A successful response whose body is still to be read."""
        deadline = calls.Deadline.after(time.monotonic(), self._timeouts.total_s)
        attempt = 0
        while True:
            deadline.check(time.monotonic())
            request = self._http.build_request(method, path, content=body)
            try:
                response = self._http.send(request, stream=True)
                if response.is_success:
                    return response, deadline
                try:
                    response.read()
                finally:
                    response.close()
                wait_s = self._retries.wait_s(attempt, response)
                failure: ClientError = calls.status_error(response)
            except httpx.TransportError as error:
                wait_s = self._retries.wait_s(attempt, error)
                failure = calls.transport_error(error)
            if wait_s is None or time.monotonic() + wait_s >= deadline.at_s:
                raise failure
            time.sleep(wait_s)
            attempt += 1
