"""An OpenAI-like server over plain ASGI that behaves as badly as a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OddServer:
    """`answer` decides by the request's number what its completion is: a status, or how the
    stream goes. Everything it was sent is in `bodies`."""

    models: Any = field(default_factory=lambda: {"data": [{"id": "odd", "max_model_len": 400}]})
    answer: Callable[[int], str] = lambda number: "fine"
    ids: bool = True  # takes token ids
    ignore_eos: bool = True  # knows the field
    step_s: float = 0.0
    first_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["path"] == "/v1/models":
            await _json(send, 200, self.models)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] != "/v1/completions":
            await _json(send, 404, {"error": {"message": "no such path"}})
            return
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        asked = json.loads(body)
        if isinstance(asked["prompt"], list) and not self.ids:
            await _json(send, 400, {"error": {"message": "the prompt must be a string"}})
            return
        if "ignore_eos" in asked and not self.ignore_eos:
            await _json(send, 422, {"error": {"message": "unknown field ignore_eos"}})
            return
        self.bodies.append(asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._complete(self.answer(len(self.bodies) - 1), asked, receive, send)
        finally:
            self.running -= 1

    async def _complete(self, how: str, asked: dict[str, Any], receive: Any, send: Any) -> None:
        if how.isdecimal():
            headers = [(b"retry-after", b"1")] if how in ("429", "503") else []
            await _json(send, int(how), {"error": {"message": f"told to {how}"}}, headers)
            return
        await send({
            "type": "http.response.start", "status": 200,
            "headers": [(b"content-type", b"text/event-stream")],
        })  # fmt: skip
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.sleep(self.first_s)
            for number in range(asked["max_tokens"]):
                if gone.done():
                    self.cancelled += 1
                    return
                if how == "breaks" and number == 1:
                    raise ConnectionError("told to break off")
                if how == "error" and number == 1:
                    await _event(send, {"error": {"message": "told to fail"}})
                    return
                if how == "garbage":
                    await _body(send, b"data: {nonsense\n\n")
                    break
                if how == "empty":
                    break
                last = number + 1 == asked["max_tokens"]
                await _event(send, _chunk("x", "length" if last and how == "fine" else None))
                await asyncio.sleep(self.step_s)
            if how == "late-finish":  # the reason in an event of its own
                await _event(send, _chunk("", "length"))
            if how != "no-usage":
                usage = {"prompt_tokens": 3, "completion_tokens": asked["max_tokens"]}
                usage["completion_tokens"] *= how != "empty"
                await _event(send, {"id": "c", "choices": [], "usage": usage})
            if how != "no-done":
                await _body(send, b"data: [DONE]\n\n")
            await _body(send, b"", more=False)
        finally:
            gone.cancel()


def _chunk(text: str, finish: str | None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": finish}]}


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _event(send: Any, data: Any) -> None:
    await _body(send, f"data: {json.dumps(data)}\n\n".encode())


async def _body(send: Any, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _json(send: Any, status: int, data: Any, headers: Any = ()) -> None:
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await _body(send, json.dumps(data).encode(), more=False)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
