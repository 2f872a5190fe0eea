"""Writing a streamed body to a client that may read slowly, or no more at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Scope, Send

# Where the server leaves, in the scope's state, what cuts the connection.
ABORT = "abort_connection"


class BodyWriter:
    """Sends pieces as they come; cuts the connection when one is not taken in time.

    The server waits with `send` while a client does not read. Closing such a connection
    politely would wait for that client too, hence the abort.
    """

    def __init__(self, scope: Scope, send: Send, timeout_s: float) -> None:
        self._send = send
        # Past the layer that counts responses, which a piece of a body does not concern.
        self._send_body: Send = getattr(send, "raw", send)
        self._timeout_s = timeout_s
        self._abort: Callable[[], Any] | None = scope.get("state", {}).get(ABORT)
        self._loop = asyncio.get_running_loop()
        self._writing_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.started = False

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._look()

    async def write(self, data: bytes) -> None:
        self._writing_since_s = self._loop.time()
        await self._send_body({"type": "http.response.body", "body": data, "more_body": True})
        self._writing_since_s = None

    async def finish(self, data: bytes) -> None:
        self._writing_since_s = self._loop.time()
        await self._send_body({"type": "http.response.body", "body": data, "more_body": False})
        self.close()

    def close(self) -> None:
        """No more will be written."""
        self._writing_since_s = None
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        since_s = self._writing_since_s
        if since_s is not None and self._loop.time() - since_s > self._timeout_s:
            if self._abort is not None:
                self._abort()
            return
        self._timer = self._loop.call_later(self._timeout_s / 4, self._look)
