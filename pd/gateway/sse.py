"""Server-sent events of a token stream, made by joining bytes.

Everything in a chunk but the text is known beforehand, so a chunk is a prefix, one JSON
string and a suffix: about a microsecond, where building and encoding objects takes twenty.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pd.types import FinishReason

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode

# Line ends to some, though not to SSE: clients that split text into lines must not find one.
_LINE_ENDS = {char.encode(): f"\\u{ord(char):04x}".encode() for char in "\x85\u2028\u2029"}


def _text(text: str) -> bytes:
    encoded = _encode(text)
    if not text.isascii():
        for raw, escaped in _LINE_ENDS.items():
            encoded = encoded.replace(raw, escaped)
    return encoded


class ChunkFormat:
    """The chunks of one response: OpenAI's `text_completion` or `chat.completion.chunk`."""

    def __init__(
        self,
        *,
        response_id: str,
        created: int,
        model: str,
        chat: bool,
        num_choices: int,
        include_usage: bool,
    ) -> None:
        name = b"chat.completion.chunk" if chat else b"text_completion"
        self._head = (
            b'data: {"id":' + _encode(response_id) + b',"object":"' + name + b'","created":'
            + _encode(created) + b',"model":' + _encode(model) + b',"choices":['
        )  # fmt: skip
        opening = b'"delta":{"content":' if chat else b'"text":'
        self._prefixes = [
            self._head + b'{"index":%d,' % choice + opening for choice in range(num_choices)
        ]
        self._close_text = b"}" if chat else b""
        self._chat = chat
        # With usage asked for, every chunk but the last has it as null.
        self._end = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._plain = self._close_text + b',"logprobs":null,"finish_reason":null}]' + self._end

    def token(self, choice: int, text: str) -> bytes:
        """The usual chunk: one token's text and nothing else."""
        return self._prefixes[choice] + _text(text) + self._plain

    def chunk(
        self,
        choice: int,
        text: str,
        *,
        finish: FinishReason | None = None,
        logprobs: Any = None,
        token_ids: tuple[int, ...] | None = None,
        usage: Any = None,
    ) -> bytes:
        """A chunk with anything in it."""
        if self._chat and finish is not None and not text:
            start = self._head + b'{"index":%d,"delta":{}' % choice
        else:
            start = self._prefixes[choice] + _text(text) + self._close_text
        ids = b"" if token_ids is None else b',"token_ids":' + _encode(token_ids)
        end = self._end if usage is None else b',"usage":' + _encode(usage) + b"}\n\n"
        return (
            start + b',"logprobs":' + _encode(logprobs) + ids + b',"finish_reason":'
            + _encode(finish) + b"}]" + end
        )  # fmt: skip

    def role(self, choice: int) -> bytes:
        """The first chunk of a chat choice."""
        return (
            self._head + b'{"index":%d,"delta":{"role":"assistant","content":""}' % choice
            + b',"logprobs":null,"finish_reason":null}]' + self._end
        )  # fmt: skip

    def last(self, usage: Any, metrics: Any) -> bytes:
        """The chunk without choices at the end, if there is anything for it to say."""
        if usage is None and metrics is None:
            return b""
        parts = [self._head, b"]"]
        if usage is not None:
            parts += [b',"usage":', _encode(usage)]
        if metrics is not None:
            parts += [b',"pd":', _encode(metrics)]
        return b"".join((*parts, b"}\n\n"))


def error_event(body: bytes) -> bytes:
    """How a stream ends that cannot go on; no [DONE] follows."""
    return b"event: error\ndata: " + body + b"\n\n"
