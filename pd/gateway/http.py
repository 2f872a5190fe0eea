"""The few pieces of HTTP that handlers share: bodies in, JSON and errors out."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pd.errors import RejectedError, RequestError
from pd.gateway.stream import ClientGoneError

TENANT = "pd.tenant"  # key of an ASGI scope: whose request it is

_DRAIN_S = 2.0
_DRAIN_BYTES = 64 << 20


def headers_of(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def error_body(error: RequestError) -> bytes:
    """OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.kind,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_headers(error: RequestError) -> dict[str, str]:
    if isinstance(error, RejectedError):
        # Whole seconds are the standard; OpenAI's clients prefer the exact time.
        return {
            "retry-after": str(max(1, math.ceil(error.retry_after_s))),
            "retry-after-ms": str(max(1, math.ceil(error.retry_after_s * 1000))),
        }
    return {"www-authenticate": "Bearer"} if error.status == 401 else {}


async def send_bytes(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    more: bool = False,
) -> None:
    raw = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *(
            (key.encode("latin-1"), value.encode("latin-1"))
            for key, value in (headers or {}).items()
        ),
    ]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_json(send: Send, value: Any, *, status: int = 200) -> None:
    await send_bytes(send, msgspec.json.encode(value), status=status)


async def send_error(send: Send, error: RequestError, took_s: float | None = None) -> None:
    """`took_s` is how long the answer took, told under the name that OpenAI's servers have."""
    headers = error_headers(error)
    if took_s is not None:
        headers["openai-processing-ms"] = str(round(took_s * 1000))
    await send_bytes(send, error_body(error), status=error.status, headers=headers)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def operators_only(request: Request) -> None:
    """RequestError 403 for a tenant's key: what is asked for concerns everybody."""
    if request.scope[TENANT]:
        raise RequestError(
            "a tenant's key is not enough for this: use the server's own, gateway.api_key",
            code="not_allowed",
            status=403,
            kind="permission_error",
        )


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body; RequestError 413 as soon as it is known to be longer than `limit`."""
    headers = headers_of(scope)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(
            f"content-encoding '{encoding}' is not supported: send plain JSON",
            status=415, code="unsupported_encoding",
        )  # fmt: skip
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError()
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


async def refuse_body(scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
    """Answer while the body is still coming, then close.

    A client that only reads once it has sent everything would see a reset connection instead
    of the answer, so a bounded part of what it still sends is read and thrown away.
    """
    headers = {**error_headers(error), "connection": "close"}
    await send_bytes(send, error_body(error), status=error.status, headers=headers, more=True)
    if "expect" not in headers_of(scope):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drain(receive), _DRAIN_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    size = 0
    while size < _DRAIN_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"the body is larger than the limit of {limit} bytes", status=413, code="body_too_large"
    )
