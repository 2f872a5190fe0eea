"""`Detokenizer`: the text of one stream, as its tokens arrive."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from pd.engine.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 4  # no UTF-8 character is longer


class Detokenizer:
    """Never emits half a character, and what it emits adds up to the full decode.

    `context` is the end of the prompt: without it, tokenizers that mark word starts drop the
    space before the first generated word. Cost is constant per token. In tokenizers with byte
    fallback, a run of bytes that is no valid UTF-8 may show fewer replacement characters than
    the full decode would; all other text is equal.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self.num_chars = 0  # emitted so far: the text offset of the next piece
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._stream: _ByteStream | _WindowStream
        if tokenizer.byte_level:
            self._stream = _ByteStream(tokenizer)
        else:
            visible = [token for token in context[-64:] if token not in self._skipped]
            self._stream = _WindowStream(tokenizer, _last_characters(tokenizer, visible))

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        return "".join(self.push_each(token_ids))

    def push_each(self, token_ids: Iterable[int]) -> list[str]:
        """Like `push`, one string per token: a character belongs to its last token."""
        pieces = ["" if token in self._skipped else self._stream.push(token) for token in token_ids]
        self.num_chars += sum(map(len, pieces))
        return pieces

    def flush(self) -> str:
        """What is still held back when the stream ends; an unfinished character as U+FFFD."""
        text = self._stream.flush()
        self.num_chars += len(text)
        return text


class _ByteStream:
    """For byte-level tokenizers: every token is some bytes, and the stream is their UTF-8."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _WindowStream:
    """For other tokenizers: decodes a short window and emits what it gained at its end.

    The window starts with the tokens emitted last, which are whole characters: half of one
    at its start would spoil what follows.
    """

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._emitted = context
        self._held: list[int] = []

    def push(self, token: int) -> str:
        self._held.append(token)
        text = self._gained()
        if text.endswith(_REPLACEMENT) and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        self._commit()
        return text

    def flush(self) -> str:
        if not self._held:
            return ""
        text = self._gained()
        self._commit()
        return text

    def _gained(self) -> str:
        before = self._decode(self._emitted)
        return self._decode(self._emitted + self._held)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def _commit(self) -> None:
        self._emitted, self._held = self._held, []


def _last_characters(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The last tokens of a prompt from one that is not a single byte on."""
    for index in range(len(tokens) - 1, -1, -1):
        if not (tokenizer.token(tokens[index]) or "").startswith("<0x"):
            return tokens[index:]
    return []
