"""POST /v1/completions"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pd.errors import RequestError
from pd.gateway import logprobs, sse, validate
from pd.gateway.generation import Choice, Generation, Prepared, with_length
from pd.gateway.limits import Limits
from pd.gateway.parse import completion_body
from pd.gateway.schema import CompletionBody
from pd.gateway.served import ServedModel
from pd.types import TokenEvent

DEFAULT_MAX_TOKENS = 16  # as OpenAI's


class Completion(Generation):
    """`choices[].text`, several prompts a request: choice p * n + i is output i of prompt p."""

    chat = False
    id_prefix = "cmpl-"
    object_name = "text_completion"

    def opening(self, chunks: sse.ChunkFormat, choice: Choice) -> bytes:
        if not self.options.echo:
            return b""
        return chunks.token(choice.number, self.echoes[choice.number // self.n])

    def logprobs_of(self, event: TokenEvent, choice: Choice) -> dict[str, Any]:
        return logprobs.completion_logprobs(self.model.tokenizer, event, choice.num_chars)

    def logprobs_body(self, entries: list[dict[str, Any]]) -> Any:
        return logprobs.join_columns(entries)

    def choice_body(self, choice: Choice, text: str) -> dict[str, Any]:
        return {"text": text}


async def prepare_completion(
    data: bytes,
    headers: Mapping[str, str],
    model: ServedModel,
    limits: Limits,
    model_len: int,
) -> Prepared:
    """A completions body to the work it asks for, or a RequestError that says what is wrong."""
    body = completion_body(data)
    model.check_name(body.model)
    validate.check_supported(body)
    options = validate.output_options(body)
    params = validate.sampling(
        body, limits, model.vocab_size, validate.completion_logprobs(body, limits)
    )
    prompts, texts = await _prompts(body, model, limits, model_len)
    if len(prompts) * params.n > limits.max_sequences:
        raise RequestError(
            f"{len(prompts)} prompts with n = {params.n} are more than the "
            f"{limits.max_sequences} outputs a request may have",
            param="n",
        )
    if options.echo:
        decode = model.tokenizer.decode
        texts = [
            decode(ids) if text is None else text for ids, text in zip(prompts, texts, strict=True)
        ]
    lengths = [
        validate.max_tokens(
            body.max_tokens, "max_tokens", DEFAULT_MAX_TOKENS, len(prompt), params.min_tokens,
            limits, model_len,
        )
        for prompt in prompts
    ]  # fmt: skip
    return Prepared(
        prompts=prompts,
        params=[with_length(params, length, body.seed) for length in lengths],
        options=options,
        slo=validate.slo(body, headers),
        priority=validate.priority(body, limits),
        cache_salt=validate.cache_salt(body, limits),
        session=validate.session(body, headers, limits),
        echoes=[text or "" for text in texts],
    )


async def _prompts(
    body: CompletionBody, model: ServedModel, limits: Limits, model_len: int
) -> tuple[list[tuple[int, ...]], list[str | None]]:
    """Token ids of every prompt, and its text where it came as text."""
    prompt = body.prompt
    if prompt is None:
        raise RequestError(
            "'prompt' is required", param="prompt", code="missing_required_parameter"
        )
    items: list[Any]
    if isinstance(prompt, str) or (prompt and all(type(item) is int for item in prompt)):
        items = [prompt]
    else:
        items = list(prompt)
    if not items:
        raise RequestError("'prompt' must not be empty", param="prompt", code="empty_prompt")
    if len(items) > limits.max_prompts:
        raise RequestError(
            f"'prompt' holds {len(items)} prompts; at most {limits.max_prompts} are accepted",
            param="prompt",
        )
    kinds = {type(item) for item in items}
    if kinds not in ({str}, {list}):
        raise RequestError(
            "'prompt' must be a string, token ids, a list of strings or a list of token id lists, "
            "not a mixture",
            param="prompt", code="invalid_type",
        )  # fmt: skip
    prompts: list[tuple[int, ...]] = []
    for item in items:
        if isinstance(item, str):
            special = body.add_special_tokens is not False
            ids = await model.encode(item, add_special_tokens=special) if item else []
        else:
            ids = item
            if len(ids) < model_len:  # a longer one is refused for its length
                validate.check_token_ids(ids, "prompt", model.vocab_size)
        if not ids:
            raise RequestError("'prompt' must not be empty", param="prompt", code="empty_prompt")
        prompts.append(tuple(ids))
    return prompts, [item if isinstance(item, str) else None for item in items]
