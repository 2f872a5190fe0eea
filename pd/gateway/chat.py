"""POST /v1/chat/completions"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pd.errors import RequestError
from pd.gateway import logprobs, sse, validate
from pd.gateway.generation import Choice, Generation, Prepared, with_length
from pd.gateway.limits import Limits
from pd.gateway.parse import chat_body
from pd.gateway.served import ServedModel
from pd.types import TokenEvent


class ChatCompletion(Generation):
    """`choices[].message`, or role and content deltas when streamed."""

    chat = True
    id_prefix = "chatcmpl-"
    object_name = "chat.completion"

    def opening(self, chunks: sse.ChunkFormat, choice: Choice) -> bytes:
        return chunks.role(choice.number)

    def logprobs_of(self, event: TokenEvent, choice: Choice) -> dict[str, Any]:
        return logprobs.chat_logprobs(self.model.tokenizer, event)

    def logprobs_body(self, entries: list[dict[str, Any]]) -> Any:
        return {"content": entries, "refusal": None}

    def choice_body(self, choice: Choice, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


async def prepare_chat(
    data: bytes,
    headers: Mapping[str, str],
    model: ServedModel,
    limits: Limits,
    model_len: int,
) -> Prepared:
    """A chat body to the work it asks for, or a RequestError that says what is wrong."""
    body = chat_body(data)
    model.check_name(body.model)
    validate.check_supported(body)
    options = validate.output_options(body)
    params = validate.sampling(body, limits, model.vocab_size, validate.chat_logprobs(body, limits))
    text = model.render(
        validate.chat_messages(body, limits),
        add_generation_prompt=body.add_generation_prompt is not False,
        **validate.template_variables(body),
    )
    prompt = tuple(await model.encode(text, add_special_tokens=False)) if text else ()
    if not prompt:
        raise RequestError("'messages' make an empty prompt", param="messages", code="empty_prompt")
    asked, field = body.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, field = body.max_tokens, "max_tokens"
    length = validate.max_tokens(
        asked, field, None, len(prompt), params.min_tokens, limits, model_len
    )
    return Prepared(
        prompts=[prompt],
        params=[with_length(params, length, body.seed)],
        options=options,
        slo=validate.slo(body, headers),
        priority=validate.priority(body, limits),
        cache_salt=validate.cache_salt(body, limits),
        session=validate.session(body, headers, limits),
    )
