"""Bodies to sampling parameters: every range checked, every refusal naming its field."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pd.errors import RequestError
from pd.gateway.accepted import HARMLESS, HARMLESS_IN_MESSAGE, ROLES, bounds_of
from pd.gateway.limits import Limits
from pd.gateway.schema import ChatBody, CompletionBody, GenerationBody
from pd.types import MAX_SEED, SLO, SamplingParams

_RESERVED_TEMPLATE_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "self"})


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the answer is to be written."""

    stream: bool
    include_usage: bool
    continuous_usage: bool
    skip_special_tokens: bool
    include_stop: bool
    token_ids: bool
    pd_metrics: bool
    echo: bool = False


def check_supported(body: GenerationBody) -> None:
    """Refuse what would need behaviour that this server does not have."""
    for field, harmless in HARMLESS.items():
        value = getattr(body, field, None)
        # By type too: JSON's 0 is not false, though Python's is.
        if not any(type(value) is type(each) and value == each for each in harmless):
            raise RequestError(
                f"'{field}' is not supported by this server: leave it out",
                param=field, code="unsupported_parameter",
            )  # fmt: skip
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError(
            "'best_of' other than n is not supported: all outputs are returned",
            param="best_of", code="unsupported_parameter",
        )  # fmt: skip


def sampling(
    body: GenerationBody, limits: Limits, vocab_size: int, logprobs: int | None
) -> SamplingParams:
    """Everything but `max_tokens`, which depends on the prompt (see `max_tokens`).

    A seed is drawn when none is given, so that a request can be resumed exactly.
    """
    top_k = _within("top_k", body.top_k, 0, limits)
    seed = body.seed
    if seed is None:
        seed = secrets.randbits(63)
    return SamplingParams(
        n=_within("n", body.n, 1, limits),
        min_tokens=_within("min_tokens", body.min_tokens, 0, limits),
        temperature=_within("temperature", body.temperature, 1.0, limits),
        top_k=min(max(top_k, 0), vocab_size),
        top_p=_within("top_p", body.top_p, 1.0, limits),
        min_p=_within("min_p", body.min_p, 0.0, limits),
        repetition_penalty=_within("repetition_penalty", body.repetition_penalty, 1.0, limits),
        presence_penalty=_within("presence_penalty", body.presence_penalty, 0.0, limits),
        frequency_penalty=_within("frequency_penalty", body.frequency_penalty, 0.0, limits),
        logit_bias=_logit_bias(body.logit_bias, limits, vocab_size),
        seed=_within("seed", seed, 0, limits) & MAX_SEED,
        logprobs=logprobs,
        stop=_stops(body.stop, limits),
        stop_token_ids=_stop_ids(body.stop_token_ids, limits, vocab_size),
        ignore_eos=bool(body.ignore_eos),
    )


def max_tokens(
    asked: int | None,
    field: str,
    default: int | None,
    num_prompt: int,
    min_tokens: int,
    limits: Limits,
    model_len: int,
) -> int:
    """How many tokens an output may have; `default` None means the rest of the context."""
    room = model_len - num_prompt
    if room < 1:
        raise RequestError(
            f"the prompt has {num_prompt} tokens; with at least one token of output that is more "
            f"than the {model_len} this model serves",
            param="messages" if default is None else "prompt", code="context_length_exceeded",
        )  # fmt: skip
    cap = limits.max_output_tokens
    if asked is None:
        number = room if default is None else min(default, room)
        number = number if cap is None else min(number, cap)
    else:
        number = _within(field, asked, 1, limits)
        if number > room:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and '{field}' asks for {number} more, but "
                f"this model serves {model_len} in all",
                param=field, code="context_length_exceeded",
            )  # fmt: skip
    if min_tokens > number:
        raise RequestError(
            f"'min_tokens' is {min_tokens}, but at most {number} tokens can be generated",
            param="min_tokens",
        )
    return number


def output_options(body: GenerationBody) -> OutputOptions:
    stream = bool(body.stream)
    options = body.stream_options
    if options is not None and not stream:
        raise RequestError("'stream_options' needs 'stream' to be true", param="stream_options")
    return OutputOptions(
        stream=stream,
        include_usage=options is not None and bool(options.include_usage),
        continuous_usage=options is not None and bool(options.continuous_usage_stats),
        skip_special_tokens=body.skip_special_tokens is not False,
        include_stop=bool(body.include_stop_str_in_output),
        token_ids=bool(body.return_token_ids),
        pd_metrics=bool(body.include_pd_metrics),
        echo=isinstance(body, CompletionBody) and bool(body.echo),
    )


def completion_logprobs(body: CompletionBody, limits: Limits) -> int | None:
    if body.logprobs is None:
        return None
    if body.echo:
        raise RequestError(
            "'logprobs' together with 'echo' is not supported: the prompt's are not computed",
            param="logprobs", code="unsupported_parameter",
        )  # fmt: skip
    return _within("logprobs", body.logprobs, 0, limits)


def chat_logprobs(body: ChatBody, limits: Limits) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise RequestError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
        return None
    return _within("top_logprobs", body.top_logprobs, 0, limits)


def slo(body: GenerationBody, headers: Mapping[str, str]) -> SLO:
    """Latency targets from the body or else from the headers, in seconds. A bad one is refused even
    where the other counts."""
    targets: dict[str, float | None] = {}
    for name in ("ttft", "tpot"):
        header = f"x-slo-{name}-ms"
        from_header = _target_s(header, _number(header, headers.get(header)))
        from_body = _target_s(f"slo.{name}_ms", getattr(body.slo, f"{name}_ms", None))
        targets[name] = from_header if from_body is None else from_body
    return SLO(ttft_s=targets["ttft"], tpot_s=targets["tpot"])


def priority(body: GenerationBody, limits: Limits) -> int | None:
    """Lower runs earlier; None leaves it to the tenant's class."""
    number: int | None = _within("priority", body.priority, None, limits)
    return number


def cache_salt(body: GenerationBody, limits: Limits) -> str:
    """Only prompts of the same salt (and tenant) share cached KV; '' is a salt, too."""
    return _name("cache_salt", body.cache_salt, limits.max_cache_salt_length)


def session(body: GenerationBody, headers: Mapping[str, str], limits: Limits) -> str:
    """What the request belongs to, from the body or else from the header; '' for nothing."""
    longest = limits.max_session_length
    from_header = _name("x-session-id", headers.get("x-session-id"), longest)
    return _name("session_id", body.session_id, longest) or from_header


def chat_messages(body: ChatBody, limits: Limits) -> list[dict[str, Any]]:
    """Messages as chat templates take them: a role and a string."""
    if not body.messages:
        raise RequestError("'messages' must hold at least one message", param="messages")
    if len(body.messages) > limits.max_messages:
        raise RequestError(
            f"'messages' holds {len(body.messages)}; at most {limits.max_messages} are accepted",
            param="messages",
        )
    plain: list[dict[str, Any]] = []
    for number, message in enumerate(body.messages):
        where = f"messages[{number}]"
        if message.role not in ROLES:
            raise RequestError(
                f"'{where}.role' must be system, developer, user or assistant",
                param=f"{where}.role",
            )
        for field, harmless in HARMLESS_IN_MESSAGE.items():
            if getattr(message, field) not in harmless:
                raise RequestError(
                    f"'{where}.{field}' is not supported by this server: leave it out",
                    param=f"{where}.{field}", code="unsupported_parameter",
                )  # fmt: skip
        entry = {
            "role": "system" if message.role == "developer" else message.role,
            "content": _content(message.content, f"{where}.content"),
        }
        plain.append(entry if message.name is None else {**entry, "name": message.name})
    return plain


def template_variables(body: ChatBody) -> dict[str, Any]:
    variables = body.chat_template_kwargs or {}
    for name in variables:
        if name in _RESERVED_TEMPLATE_NAMES or not name.isidentifier():
            raise RequestError(
                f"'chat_template_kwargs' must not set '{name}'", param="chat_template_kwargs"
            )
    return variables


def _content(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise RequestError(f"'{where}' must be a string or a list of text parts", param=where)
    texts: list[str] = []
    for number, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f'\'{where}[{number}]\' must be {{"type": "text", "text": ...}}: this model '
                "reads only text",
                param=f"{where}[{number}]",
            )
        texts.append(part["text"])
    return "".join(texts)


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop or ()))
    if len(stops) > limits.max_stops:
        raise RequestError(f"'stop' may hold at most {limits.max_stops} strings", param="stop")
    for each in stops:
        if not each:
            raise RequestError("'stop' must not hold an empty string", param="stop")
        if len(each) > limits.max_stop_length:
            raise RequestError(
                f"a 'stop' string may have at most {limits.max_stop_length} characters",
                param="stop",
            )
    return stops


def _stop_ids(ids: list[int] | None, limits: Limits, vocab_size: int) -> tuple[int, ...]:
    unique = tuple(dict.fromkeys(ids or ()))
    if len(unique) > limits.max_stops:
        raise RequestError(
            f"'stop_token_ids' may hold at most {limits.max_stops} ids", param="stop_token_ids"
        )
    check_token_ids(unique, "stop_token_ids", vocab_size)
    return unique


def _logit_bias(bias: dict[str, float] | None, limits: Limits, vocab_size: int) -> dict[int, float]:
    if not bias:
        return {}
    if len(bias) > limits.max_logit_bias:
        raise RequestError(
            f"'logit_bias' may hold at most {limits.max_logit_bias} tokens", param="logit_bias"
        )
    result: dict[int, float] = {}
    for key, value in bias.items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"'logit_bias' keys must be token ids from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        result[token] = _within("logit_bias", value, 0.0, limits)
    return result


def check_token_ids(ids: tuple[int, ...] | list[int], field: str, vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise RequestError(f"'{field}' holds a token id outside 0 to {vocab_size - 1}", param=field)


def _number(header: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise RequestError(
            f"header '{header}' must be a number of milliseconds", param=header
        ) from None


def _target_s(param: str, value_ms: float | None) -> float | None:
    if value_ms is None:
        return None
    if not (math.isfinite(value_ms) and value_ms > 0):
        raise RequestError(f"'{param}' must be more than 0 milliseconds", param=param)
    return value_ms / 1000


def _name(field: str, value: str | None, max_length: int) -> str:
    if value is None:
        return ""
    if not 0 < len(value) <= max_length:
        raise RequestError(
            f"'{field}' must have 1 to {max_length} characters, not {len(value)}",
            param=field, code="invalid_value",
        )  # fmt: skip
    return value


def _within(field: str, value: Any, default: Any, limits: Limits) -> Any:
    """`value`, or `default` for None; raises unless it is within the field's bounds."""
    if value is None:
        return default
    bounds = bounds_of(limits)[field]
    if not bounds.hold(value):
        raise RequestError(f"'{field}' must be {bounds}", param=field, code="invalid_value")
    return value
