"""One response in the making: requests out, tokens in, text to the client.

What the completions and the chat API share. They differ in how a prompt is made and in the
shape of what is written, which `completions` and `chat` fill in.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Send

from pd.engine.detokenizer import Detokenizer
from pd.errors import RequestError
from pd.gateway import sse
from pd.gateway.http import error_body, send_json
from pd.gateway.link import CellLink
from pd.gateway.served import ServedModel
from pd.gateway.stream import RunningRequest, TokenStream
from pd.gateway.text import SequenceText
from pd.gateway.validate import OutputOptions
from pd.gateway.writer import BodyWriter
from pd.types import SLO, Request, SamplingParams, TokenEvent


@dataclass(frozen=True, slots=True)
class Prepared:
    """A valid request: one entry per prompt in `prompts`, `params` and `echoes`."""

    prompts: list[tuple[int, ...]]
    params: list[SamplingParams]
    options: OutputOptions
    slo: SLO
    priority: int | None
    cache_salt: str = ""
    session: str = ""
    echoes: list[str] = field(default_factory=list)
    tenant_class: str = ""
    weight: float = 1.0


class Choice:
    """One output as its client sees it."""

    __slots__ = ("number", "text", "pieces", "num_chars", "logprobs", "token_ids", "opened")

    def __init__(self, number: int, text: SequenceText) -> None:
        self.number = number
        self.text = text
        self.pieces: list[str] = []
        self.num_chars = 0
        self.logprobs: list[dict[str, Any]] = []
        self.token_ids: list[int] = []
        self.opened = False


class Generation(ABC):
    """Runs one prepared request, streamed or whole."""

    chat: bool
    id_prefix: str
    object_name: str

    def __init__(
        self, model: ServedModel, link: CellLink, prepared: Prepared, tenant: str = ""
    ) -> None:
        self.model = model
        self.options = prepared.options
        self.echoes = prepared.echoes
        self.id = self.id_prefix + secrets.token_hex(12)
        self.created = int(time.time())
        self.num_prompt_tokens = sum(map(len, prepared.prompts))
        now = link.clock()
        self.requests = [
            Request(
                request_id=f"{self.id}-{number}" if len(prepared.prompts) > 1 else self.id,
                gateway=link.id,
                prompt=prompt,
                params=params,
                eos_token_ids=model.eos_ids,
                arrival_s=now,
                tenant=tenant,
                priority=prepared.priority or 0,
                slo=prepared.slo,
                cache_salt=prepared.cache_salt,
                session=prepared.session,
                tenant_class=prepared.tenant_class,
                weight=prepared.weight,
            )
            for number, (prompt, params) in enumerate(
                zip(prepared.prompts, prepared.params, strict=True)
            )
        ]
        self.n = prepared.params[0].n
        self.with_logprobs = prepared.params[0].logprobs is not None
        self.choices = [
            self._choice(request, number * self.n + index)
            for number, request in enumerate(self.requests)
            for index in range(self.n)
        ]

    def _choice(self, request: Request, number: int) -> Choice:
        detokenizer = Detokenizer(
            self.model.tokenizer,
            context=request.prompt[-64:],
            skip_special_tokens=self.options.skip_special_tokens,
        )
        text = SequenceText(detokenizer, request.params, include_stop=self.options.include_stop)
        return Choice(number, text)

    # ------------------------------------------------------------------ shapes
    @abstractmethod
    def opening(self, chunks: sse.ChunkFormat, choice: Choice) -> bytes:
        """What is streamed before a choice's first token."""

    @abstractmethod
    def logprobs_of(self, event: TokenEvent, choice: Choice) -> dict[str, Any]:
        """One token's log-probabilities, as they are kept."""

    @abstractmethod
    def logprobs_body(self, entries: list[dict[str, Any]]) -> Any:
        """Several tokens' log-probabilities, as they are written."""

    @abstractmethod
    def choice_body(self, choice: Choice, text: str) -> dict[str, Any]:
        """A finished choice, without what all APIs share."""

    # ------------------------------------------------------------------ running
    async def whole(self, stream: TokenStream, send: Send) -> None:
        """Answer with one JSON body once all choices have finished."""
        while batch := await stream.next():
            for number, event in batch:
                choice = self.choices[number * self.n + event.index]
                if choice.text.finish is None:
                    entry = self.logprobs_of(event, choice) if self.with_logprobs else None
                    self._push(stream, number, choice, event)
                    if entry is not None:
                        choice.logprobs.append(entry)
                    choice.token_ids.append(event.token)
        body: dict[str, Any] = {
            "id": self.id,
            "object": self.object_name,
            "created": self.created,
            "model": self.model.name,
            "choices": [self._body_of(choice) for choice in self.choices],
            "usage": self.usage(),
        }
        if self.options.pd_metrics:
            body["pd"] = self.metrics(stream)
        await send_json(send, body)

    async def streamed(self, stream: TokenStream, writer: BodyWriter) -> None:
        """Answer with events, one a token. A failure before the first token is raised."""
        chunks = sse.ChunkFormat(
            response_id=self.id, created=self.created, model=self.model.name, chat=self.chat,
            num_choices=len(self.choices), include_usage=self.options.include_usage,
        )  # fmt: skip
        try:
            while batch := await stream.next():
                out = self._chunks_of(batch, stream, chunks)
                if not writer.started:
                    await writer.start(sse.HEADERS)
                await writer.write(out)
        except RequestError as error:
            if not writer.started:
                raise
            await writer.finish(sse.error_event(error_body(error)))
        else:
            usage = self.usage() if self.options.include_usage else None
            metrics = self.metrics(stream) if self.options.pd_metrics else None
            await writer.finish(chunks.last(usage, metrics) + sse.DONE)

    def _chunks_of(
        self,
        batch: Sequence[tuple[int, TokenEvent]],
        stream: TokenStream,
        chunks: sse.ChunkFormat,
    ) -> bytes:
        options = self.options
        plain = not (self.with_logprobs or options.token_ids or options.continuous_usage)
        out: list[bytes] = []
        for number, event in batch:
            choice = self.choices[number * self.n + event.index]
            text = choice.text
            if text.finish is not None:  # the cell has not heard yet of a stop string
                continue
            if not choice.opened:
                choice.opened = True
                out.append(self.opening(chunks, choice))
            entry = self.logprobs_of(event, choice) if self.with_logprobs else None
            delta = self._push(stream, number, choice, event)
            if plain and text.finish is None:
                out.append(chunks.token(choice.number, delta))
                continue
            out.append(
                chunks.chunk(
                    choice.number,
                    delta,
                    finish=text.finish,
                    logprobs=None if entry is None else self.logprobs_body([entry]),
                    token_ids=(event.token,) if options.token_ids else None,
                    usage=self.usage() if options.continuous_usage else None,
                )
            )
        return b"".join(out)

    def _push(self, stream: TokenStream, number: int, choice: Choice, event: TokenEvent) -> str:
        delta = choice.text.push(event)
        choice.num_chars += len(delta)
        if not self.options.stream:
            choice.pieces.append(delta)
        if event.finish is None and choice.text.finish is not None:
            stream.stop(number, event.index)
        return delta

    # ------------------------------------------------------------------ ends
    def _body_of(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.pieces)
        if self.options.echo:
            text = self.echoes[choice.number // self.n] + text
        body = {
            "index": choice.number,
            **self.choice_body(choice, text),
            "logprobs": self.logprobs_body(choice.logprobs) if self.with_logprobs else None,
            "finish_reason": choice.text.finish,
        }
        if self.options.token_ids:
            body["token_ids"] = choice.token_ids
        return body

    def usage(self) -> dict[str, int]:
        completion = sum(choice.text.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.num_prompt_tokens + completion,
        }

    def metrics(self, stream: TokenStream) -> dict[str, Any]:
        """The response extension `pd`: how each prompt's request went."""
        return {"requests": [_metrics_of(running) for running in stream.requests]}


def _metrics_of(running: RunningRequest) -> dict[str, Any]:
    return {
        "request_id": running.id,
        "ttft_s": running.timeline.ttft_s,
        "tpot_s": running.timeline.tpot_s,
        "e2e_s": running.timeline.end_s - running.timeline.arrival_s,
        "prefill_node": running.prefill,
        "decode_node": running.decode,
        "attempts": running.record.attempts,
        "kv_moved_bytes": running.moved_bytes,
        "kv_early_bytes": running.early_bytes,
        "handoff_wait_s": running.handoff_wait_s,
        "slo_attained": running.attained(),
        "tenant_class": running.record.request.tenant_class,
        "stages_s": running.timeline.stages,
    }


def with_length(params: SamplingParams, max_tokens: int, seed: int | None) -> SamplingParams:
    """The parameters of one prompt; a random seed (None given) is drawn for each anew."""
    if seed is None:
        return dataclasses.replace(params, max_tokens=max_tokens, seed=secrets.randbits(63))
    return dataclasses.replace(params, max_tokens=max_tokens)
