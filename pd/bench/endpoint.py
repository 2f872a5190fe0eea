"""The server under load: what it serves, what its requests may contain, and one body for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx

from pd.client import calls
from pd.errors import APIStatusError, ClientError
from pd.types import SLO
from pd.workload.arrival import Arrival
from pd.workload.prompts import prompt_tokens
from pd.workload.words import text_of

DEFAULT_VOCABULARY = 30_000  # of a server that does not tell: less than any model in use has
_PROBE = Arrival(0.0, 4, 2)


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. `ours` understands this project's own fields as well;
    `token_ids` tells whether prompts may be token ids, else they are text of as many words."""

    url: str
    model: str
    api_key: str | None = None
    vocabulary: int = DEFAULT_VOCABULARY
    max_model_len: int | None = None
    ours: bool = False
    token_ids: bool = True
    ignore_eos: bool = True

    def body(self, arrival: Arrival, block_tokens: int, salt: int = 0) -> bytes:
        """The request of an arrival, which differs from another salt's in every token."""
        prompt: Any = prompt_tokens(arrival, block_tokens, self.vocabulary, salt)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if self.token_ids else text_of(prompt),
            "max_tokens": arrival.num_output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.ours:
            if arrival.session:
                body["session_id"] = arrival.session
            if arrival.priority:
                body["priority"] = arrival.priority
        return json.dumps(body).encode()

    def headers(self, slo: SLO | None) -> dict[str, str]:
        """Targets go as headers, which servers that do not know them pass over."""
        headers = calls.headers(self.api_key)
        if slo is not None:
            for name, seconds in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s)):
                if seconds is not None:
                    headers[f"x-slo-{name}-ms"] = f"{seconds * 1e3:g}"
        return headers


def open_client(
    url: str, timeout_s: float, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """As many connections as there are requests: an open loop must not wait for one."""
    return httpx.AsyncClient(
        base_url=url.rstrip("/"),
        timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        transport=transport,
        trust_env=False,
        verify=not url.startswith("http://"),
    )


async def probe(
    http: httpx.AsyncClient,
    url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    vocabulary: int | None = None,
    prompts: str = "auto",
) -> Endpoint:
    """What the server at `url` is and takes, by asking for its models and two tokens.

    `prompts` is "ids", "text", or "auto" to try. ClientError says what is wrong: nobody
    listens, the key is refused, the model is unknown, the server does not complete prompts.
    """
    card = _card(await _ask(http, "GET", "/v1/models", api_key), model, url)
    endpoint = Endpoint(
        url=url,
        model=card["id"],
        api_key=api_key,
        vocabulary=vocabulary or card.get("vocab_size") or DEFAULT_VOCABULARY,
        max_model_len=card.get("max_model_len"),
        ours=card.get("owned_by") == "pd",
    )
    refusals = []
    for ids in {"ids": (True,), "text": (False,)}.get(prompts, (True, False)):
        for ignore_eos in (True, False):
            trial = replace(endpoint, token_ids=ids, ignore_eos=ignore_eos)
            try:
                await _complete(http, trial)
            except APIStatusError as error:
                if error.status not in (400, 422):
                    raise ClientError(f"{url} does not complete a short prompt: {error}") from None
                refusals.append(str(error))
            else:
                return trial
    raise ClientError(f"{url} refuses every kind of prompt: {'; '.join(dict.fromkeys(refusals))}")


async def num_running(http: httpx.AsyncClient, endpoint: Endpoint) -> int | None:
    """Requests that the server still works on; None where it does not tell."""
    if not endpoint.ours:
        return None
    gateway = (await _ask(http, "GET", "/v1/status", endpoint.api_key)).get("gateway", {})
    return int(gateway.get("running", 0)) + int(gateway.get("waiting", 0))


def _card(body: Any, model: str | None, url: str) -> Mapping[str, Any]:
    """The model to load, by name or as the only one."""
    try:
        cards = {str(card["id"]): card for card in body["data"]}
    except (KeyError, TypeError):
        raise ClientError(f"{url}/v1/models does not list models: is this an OpenAI API?") from None
    if not cards:
        raise ClientError(f"{url} serves no model")
    known = ", ".join(cards)
    if model is None:
        if len(cards) > 1:
            raise ClientError(f"{url} serves several models, name one with --model: {known}")
        return next(iter(cards.values()))
    if model not in cards:
        raise ClientError(f"{url} has no model '{model}'; it serves {known}")
    return cards[model]


async def _complete(http: httpx.AsyncClient, endpoint: Endpoint) -> None:
    """A short request that must succeed; a broken answer shows when it is read in earnest."""
    body = endpoint.body(_PROBE, 16)
    await _ask(http, "POST", calls.COMPLETIONS, endpoint.api_key, body, parse=False)


async def _ask(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    api_key: str | None,
    body: bytes | None = None,
    *,
    parse: bool = True,
) -> Any:
    try:
        response = await http.request(method, path, content=body, headers=calls.headers(api_key))
    except httpx.TransportError as error:
        raise calls.transport_error(error) from None
    if parse:
        return calls.parse(response)
    if not response.is_success:
        raise calls.status_error(response)
    return None
