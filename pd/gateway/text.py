"""Tokens to text, one sequence at a time: detokenised, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pd.engine.detokenizer import Detokenizer
from pd.gateway.stopping import StopMatcher
from pd.types import FinishReason, SamplingParams, TokenEvent


class TextTokenizer(Protocol):
    """What the gateway needs of a tokenizer; `pd.engine.tokenizer.Tokenizer` is one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class SequenceText:
    """The visible text of one sequence, growing token by token.

    Lives as long as the client's stream, whatever happens to the sequence in the cell, so
    text kept back for a possible stop string survives a resumption.
    """

    __slots__ = ("_detokenizer", "_matcher", "_min_tokens", "_include_stop", "finish", "num_tokens")

    def __init__(
        self, detokenizer: Detokenizer, params: SamplingParams, *, include_stop: bool = False
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(params.stop, include=include_stop) if params.stop else None
        self._min_tokens = params.min_tokens
        self._include_stop = include_stop
        self.finish: FinishReason | None = None
        self.num_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it."""
        return self._matcher is not None and self._matcher.matched is not None

    def push(self, event: TokenEvent) -> str:
        """The text that this token makes visible; sets `finish` with the last.

        The token that ends a sequence (end of text, or one of stop_token_ids) has none.
        """
        self.num_tokens += 1
        finish = event.finish
        if finish == "stop" and not self._include_stop:
            text = ""
        else:
            text = self._detokenizer.push((event.token,))
        if finish is not None:
            text += self._detokenizer.flush()
            self.finish = finish
        matcher = self._matcher
        if matcher is None:
            return text
        text = matcher.push(text, armed=self.num_tokens >= self._min_tokens)
        if matcher.matched is not None:
            self.finish = "stop"
        elif finish is not None:
            text += matcher.flush()
        return text
