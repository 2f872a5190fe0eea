"""What a client can get wrong, as whole HTTP requests to a running server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class BadInput:
    """One request and the status it must get."""

    name: str
    status: int
    content: bytes
    path: str = COMPLETIONS
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Verdict:
    name: str
    wanted: int
    status: int
    message: str


def _json(**body: Any) -> bytes:
    return json.dumps({"prompt": "hi", "max_tokens": 2, **body}).encode()


CASES = (
    BadInput("malformed JSON", 400, b'{"prompt": "hi", '),
    BadInput("not an object", 400, b"[1, 2]"),
    BadInput("not UTF-8", 400, b'{"prompt": "\xff\xfe"}'),
    BadInput("empty body", 400, b""),
    BadInput("wrong type", 400, _json(max_tokens="many")),
    BadInput("wrong type of prompt", 400, _json(prompt={"text": "hi"})),
    BadInput("wrong type of messages", 400, b'{"messages": "hi"}', "/v1/chat/completions"),
    BadInput("unknown field", 400, _json(max_token=3)),
    BadInput("unknown model", 404, _json(model="gpt-9")),
    BadInput("prompt too long", 400, _json(prompt=[5] * 200_000)),
    BadInput("prompt plus max_tokens too long", 400, _json(max_tokens=10**9)),
    BadInput("empty prompt", 400, _json(prompt="")),
    BadInput("no messages", 400, b'{"messages": []}', "/v1/chat/completions"),
    BadInput("n = 0", 400, _json(n=0)),
    BadInput("n = 10000", 400, _json(n=10_000)),
    BadInput("negative temperature", 400, _json(temperature=-1)),
    BadInput("temperature NaN", 400, b'{"prompt": "hi", "temperature": NaN}'),
    BadInput("top_p = 0", 400, _json(top_p=0)),
    BadInput("10 MB body", 413, _json(prompt="x" * 10_000_000)),
    BadInput("deeply nested", 400, b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    BadInput("unknown path", 404, b"{}", "/v1/nothing"),
)


def wrong_key(key: str) -> BadInput:
    return BadInput("wrong key", 401, _json(), headers={"Authorization": f"Bearer not-{key}"})


def check_all(url: str, api_key: str | None = None) -> list[Verdict]:
    """Send every case, then a good request; raises if the server does not serve that one."""
    own = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    cases = CASES if api_key is None else (*CASES, wrong_key(api_key))
    verdicts = []
    with httpx.Client(base_url=url, timeout=60, headers=own) as client:
        for case in cases:
            response = client.post(case.path, content=case.content, headers=case.headers)
            verdicts.append(
                Verdict(case.name, case.status, response.status_code, _message(response))
            )
        response = client.post(COMPLETIONS, content=_json())
        verdicts.append(Verdict("a good request", 200, response.status_code, _message(response)))
    return verdicts


def _message(response: httpx.Response) -> str:
    if response.status_code == 200:
        return ""
    message: str = response.json()["error"]["message"]
    return message


def table(verdicts: list[Verdict]) -> str:
    rows = ["| input | status | message |", "| --- | --- | --- |"]
    for verdict in verdicts:
        message = verdict.message if len(verdict.message) < 160 else verdict.message[:157] + "..."
        rows.append(f"| {verdict.name} | {verdict.status} | {message} |")
    return "\n".join(rows)
