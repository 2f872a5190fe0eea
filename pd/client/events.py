"""A token stream's bytes to deltas, whichever way they arrive. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pd.client.answers import Delta, RequestMetrics, Usage, metrics_from, usage_from
from pd.errors import StreamError


class StreamReader:
    """Fed with a response body; raises StreamError for an error event or a missing end."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False
        self.id = ""
        self.usage: Usage | None = None
        self.requests: tuple[RequestMetrics, ...] = ()

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas that these bytes complete."""
        *events, self._rest = (self._rest + data.replace(b"\r\n", b"\n")).split(b"\n\n")
        deltas: list[Delta] = []
        for event in events:
            payload = b"".join(
                line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")
            )
            if payload == b"[DONE]":
                self.done = True
            elif payload:
                deltas += self._read(payload)
        return deltas

    def end(self) -> None:
        """The body has ended; raises StreamError unless everything had come."""
        if not self.done:
            raise StreamError("the stream broke off before its end: the server went away")

    def _read(self, payload: bytes) -> list[Delta]:
        try:
            chunk = json.loads(payload)
            error = chunk.get("error")
            if error is None:
                return self._deltas(chunk)
        except (ValueError, AttributeError, KeyError, TypeError) as problem:
            raise StreamError(f"cannot read an event of the stream: {problem}") from problem
        message = error.get("message") if isinstance(error, Mapping) else error
        raise StreamError(f"the server ended the stream: {message}")

    def _deltas(self, chunk: Mapping[str, Any]) -> list[Delta]:
        self.id = chunk.get("id", self.id)
        if chunk.get("usage"):
            self.usage = usage_from(chunk["usage"])
        self.requests = metrics_from(chunk) or self.requests
        deltas: list[Delta] = []
        for choice in chunk["choices"]:
            chat = choice.get("delta")
            if chat is not None and "role" in chat and not chat.get("content"):
                continue  # announces the choice, and carries nothing of it
            text = choice["text"] if chat is None else chat.get("content") or ""
            deltas.append(
                Delta(
                    choice["index"], text, choice.get("finish_reason"),
                    tuple(choice.get("token_ids") or ()), choice.get("logprobs"),
                )
            )  # fmt: skip
        return deltas
