"""Log-probabilities in the two shapes that OpenAI's APIs give them."""

from __future__ import annotations

from typing import Any

from pd.gateway.text import TextTokenizer
from pd.types import TokenEvent

_FLOOR = -9999.0  # JSON has no infinity


def completion_logprobs(tokenizer: TextTokenizer, event: TokenEvent, offset: int) -> dict[str, Any]:
    """One token in the columns of the completions API; `offset` is in characters."""
    return {
        "tokens": [_text(tokenizer, event.token)],
        "token_logprobs": [_finite(event.logprob)],
        "top_logprobs": [
            {_text(tokenizer, token): _finite(logprob) for token, logprob in event.top}
        ],
        "text_offset": [offset],
    }


def join_columns(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of several tokens from those of one each."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [entry[name][0] for entry in entries] for name in names}


def chat_logprobs(tokenizer: TextTokenizer, event: TokenEvent) -> dict[str, Any]:
    """One token in the rows of the chat API."""
    entry = _entry(tokenizer, event.token, event.logprob)
    entry["top_logprobs"] = [_entry(tokenizer, token, logprob) for token, logprob in event.top]
    return entry


def _entry(tokenizer: TextTokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _text(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return _FLOOR if logprob is None else max(logprob, _FLOOR)
