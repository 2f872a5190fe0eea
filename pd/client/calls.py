"""What both clients share: requests to send, answers to check, when to try again."""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx

from pd.client.answers import Completion, completion_from
from pd.errors import APIStatusError, ClientError, ConnectError, RequestTimeoutError, StreamError

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Messages = str | Sequence[Mapping[str, Any]]
View = Literal["history", "requests/recent", "decisions"]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Timeouts:
    """Seconds; None waits for ever. `idle_s` is the longest silence of the server, `total_s`
    covers a call from beginning to end, retries and all, and is checked whenever something
    arrives: a server silent at that moment is given up after `idle_s`."""

    connect_s: float | None = 5.0
    idle_s: float | None = 300.0
    total_s: float | None = None

    def within(self, total_s: float | None) -> Timeouts:
        """These, with another bound on the whole call unless it is None."""
        return self if total_s is None else replace(self, total_s=total_s)

    def httpx(self) -> httpx.Timeout:
        idle_s = self.idle_s
        if self.total_s is not None:
            idle_s = self.total_s if idle_s is None else min(idle_s, self.total_s)
        return httpx.Timeout(idle_s, connect=self.connect_s, pool=self.connect_s)


@dataclass
class Deadline:
    """When a call has to be over, on the clock that made it."""

    at_s: float = math.inf

    @classmethod
    def after(cls, now: float, total_s: float | None) -> Deadline:
        return cls(math.inf if total_s is None else now + total_s)

    def check(self, now: float) -> None:
        if now >= self.at_s:
            raise RequestTimeoutError("the call took longer than its total timeout")


@dataclass(frozen=True)
class Retries:
    """Tries again only what the server cannot have begun, or has refused for now."""

    limit: int = 2

    def wait_s(self, attempt: int, cause: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try, or None if there must be none. Attempts count from 0."""
        if attempt >= self.limit:
            return None
        backoff_s = min(0.2 * 2**attempt, 5.0)
        if isinstance(cause, httpx.Response):
            if cause.status_code not in (429, 503):
                return None
            told_s = _retry_after_s(cause)
            return min(backoff_s if told_s is None else told_s, _MAX_WAIT_S)
        # Nothing was sent: no connection came about.
        return backoff_s if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout) else None


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not None: what every request of a client has, unless it says otherwise."""
    return {key: value for key, value in fields.items() if value is not None}


def completion_body(
    prompt: Prompt, defaults: Mapping[str, Any], params: Mapping[str, Any]
) -> bytes:
    return _body({"prompt": prompt}, defaults, params)


def chat_body(messages: Messages, defaults: Mapping[str, Any], params: Mapping[str, Any]) -> bytes:
    """A plain string is one message of the user."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return _body({"messages": list(messages)}, defaults, params)


def _body(content: dict[str, Any], defaults: Mapping[str, Any], params: Mapping[str, Any]) -> bytes:
    body = {**content, "include_pd_metrics": True, **defaults, **params}
    if body.get("stream"):
        body.setdefault("stream_options", {"include_usage": True})
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ClientError(f"these parameters cannot be sent as JSON: {error}") from None


def role(node_id: str, role: str, migrate: bool) -> tuple[str, bytes]:
    """The path and the body of a change of role."""
    path = f"/v1/nodes/{urllib.parse.quote(node_id, safe='')}/role"
    return path, json.dumps({"role": role, "migrate": migrate}).encode()


def watch(view: View, query: Mapping[str, float]) -> str:
    """The path of what a gateway remembers."""
    asked = urllib.parse.urlencode(query)
    return f"/v1/{view}?{asked}" if asked else f"/v1/{view}"


def headers(api_key: str | None) -> dict[str, str]:
    key = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return {"content-type": "application/json", **key}


def read_completion(data: bytes) -> Completion:
    """From the body of a successful response."""
    try:
        return completion_from(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"cannot read the server's answer: {error!r}") from None


def parse(response: httpx.Response) -> Any:
    """The JSON of a successful response; raises APIStatusError for any other."""
    if response.is_success:
        try:
            return response.json()
        except ValueError as error:
            raise ClientError(f"the server's answer is not JSON: {error}") from None
    raise status_error(response)


def status_error(response: httpx.Response) -> APIStatusError:
    """From a response whose body was read."""
    try:
        body: Any = response.json()
        message = body["error"]["message"]
    except (ValueError, KeyError, TypeError):
        body, message = response.text, response.text[:500] or response.reason_phrase
    return APIStatusError(
        f"{response.status_code}: {message}", status=response.status_code, body=body
    )


def transport_error(error: httpx.TransportError, *, streaming: bool = False) -> ClientError:
    """httpx's exception in this project's words."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectError(f"cannot connect to {error.request.url}: {error or 'timed out'}")
    if isinstance(error, httpx.TimeoutException):
        return RequestTimeoutError("the server was silent for longer than the timeout")
    if streaming:
        return StreamError(f"the stream broke off: {error or type(error).__name__}")
    return ConnectError(
        f"the connection was lost before an answer: {error or type(error).__name__}"
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(response.headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
