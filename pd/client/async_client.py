"""`AsyncClient`: the same calls for coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import httpx

from pd.client import calls
from pd.client.answers import Completion, Delta, RequestMetrics, Usage
from pd.client.calls import Messages, Prompt, Timeouts, View
from pd.client.events import StreamReader
from pd.errors import ClientError


class AsyncStream(AsyncIterator[Delta]):
    """Deltas as they come. Closing it early, or leaving its `async with`, cancels the request.

    `usage` and `requests` (metrics, one per prompt) are there once it has ended. Raises
    StreamError if it ends in any other way than completely.
    """

    def __init__(self, response: httpx.Response, deadline: calls.Deadline) -> None:
        self._response = response
        self._deadline = deadline
        self._chunks = response.aiter_bytes()
        self._reader = StreamReader()
        self._ready: list[Delta] = []

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    @property
    def requests(self) -> tuple[RequestMetrics, ...]:
        return self._reader.requests

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._reader.done:
                await self.aclose()
                raise StopAsyncIteration
            try:
                self._deadline.check(time.monotonic())
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self._reader.end()
                else:
                    self._ready = self._reader.feed(chunk)[::-1]
            except httpx.TransportError as error:
                await self.aclose()
                raise calls.transport_error(error, streaming=True) from error
            except ClientError:
                await self.aclose()
                raise
        return self._ready.pop()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncClient:
    """Talks to one gateway from an event loop.

        async with AsyncClient() as client:
            async with await client.stream("Once upon a time") as stream:
                async for delta in stream:
                    print(delta.text, end="")

    Parameters, errors and retries are those of `Client`.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._defaults = calls.given(model=model, session_id=session_id, cache_salt=cache_salt)
        self._timeouts = timeouts = timeouts.within(timeout_s)
        self._retries = calls.Retries(max_retries)
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=calls.headers(api_key),
            timeout=timeouts.httpx(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
            trust_env=False,
            # Loading certificates takes longer than a request: only where they are needed.
            verify=not base_url.startswith("http://"),
        )

    async def generate(self, prompt: Prompt, **params: Any) -> Completion:
        """The whole answer to a prompt, to token ids, or to a list of either."""
        body = calls.completion_body(prompt, self._defaults, params)
        return await self._whole(calls.COMPLETIONS, body)

    async def chat(self, messages: Messages, **params: Any) -> Completion:
        """The whole answer to a conversation, or to one message of a user."""
        return await self._whole(calls.CHAT, calls.chat_body(messages, self._defaults, params))

    async def stream(self, prompt: Prompt, **params: Any) -> AsyncStream:
        """As `generate`, token by token. Returns when the first is there."""
        body = calls.completion_body(prompt, self._defaults, {**params, "stream": True})
        return AsyncStream(*await self._send("POST", calls.COMPLETIONS, body))

    async def stream_chat(self, messages: Messages, **params: Any) -> AsyncStream:
        """As `chat`, token by token. Returns when the first is there."""
        body = calls.chat_body(messages, self._defaults, {**params, "stream": True})
        return AsyncStream(*await self._send("POST", calls.CHAT, body))

    async def models(self) -> list[str]:
        """The names that requests may give as `model`."""
        return [card["id"] for card in (await self._ask("GET", "/v1/models"))["data"]]

    async def status(self) -> dict[str, Any]:
        """The cell: readiness, nodes, running requests."""
        status: dict[str, Any] = await self._ask("GET", "/v1/status")
        return status

    async def watch(self, view: View, **query: float) -> dict[str, Any]:
        """What a gateway remembers of late: see `Client.watch`."""
        seen: dict[str, Any] = await self._ask("GET", calls.watch(view, query))
        return seen

    async def change_role(self, node_id: str, role: str, *, migrate: bool = True) -> None:
        """Make a node a "prefill", "decode" or "mixed" node. What it was doing for its old role
        goes on elsewhere, or with `migrate` False ends there first."""
        await self._ask("POST", *calls.role(node_id, role, migrate))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _whole(self, path: str, body: bytes) -> Completion:
        response, deadline = await self._send("POST", path, body)
        chunks: list[bytes] = []
        try:
            async for chunk in response.aiter_bytes():
                deadline.check(time.monotonic())
                chunks.append(chunk)
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            await response.aclose()
        return calls.read_completion(b"".join(chunks))

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of the answer."""
        response, _ = await self._send(method, path, body)
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            await response.aclose()
        return calls.parse(response)

    async def _send(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[httpx.Response, calls.Deadline]:
        """A successful response whose body is still to be read."""
        deadline = calls.Deadline.after(time.monotonic(), self._timeouts.total_s)
        attempt = 0
        while True:
            deadline.check(time.monotonic())
            request = self._http.build_request(method, path, content=body)
            try:
                response = await self._http.send(request, stream=True)
                if response.is_success:
                    return response, deadline
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                wait_s = self._retries.wait_s(attempt, response)
                failure: ClientError = calls.status_error(response)
            except httpx.TransportError as error:
                wait_s = self._retries.wait_s(attempt, error)
                failure = calls.transport_error(error)
            if wait_s is None or time.monotonic() + wait_s >= deadline.at_s:
                raise failure
            await asyncio.sleep(wait_s)
            attempt += 1
