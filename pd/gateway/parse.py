"""Bytes to a body of `schema`, or a RequestError that names the field at fault."""

from __future__ import annotations

import difflib
import re
from typing import TypeVar

import msgspec

from pd.errors import RequestError
from pd.gateway.schema import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    RoleBody,
    SLOTargets,
    StreamOptions,
)

Body = TypeVar("Body", CompletionBody, ChatBody, RoleBody)

_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$\.?(?P<at>.*)`)?$"
)
_WRONG = re.compile(r"(?P<what>.*?) - at `(?:key in )?\$\.?(?P<at>.*)`$")
_MISSING = re.compile(
    r"Object missing required field `(?P<field>.*?)`(?: - at `\$\.?(?P<at>.*)`)?$"
)
_NESTED = {"stream_options": StreamOptions, "slo": SLOTargets, "messages": ChatMessage}

_COMPLETION = msgspec.json.Decoder(CompletionBody)
_CHAT = msgspec.json.Decoder(ChatBody)
_ROLE = msgspec.json.Decoder(RoleBody)


def completion_body(data: bytes) -> CompletionBody:
    return _decode(data, _COMPLETION, CompletionBody)


def chat_body(data: bytes) -> ChatBody:
    return _decode(data, _CHAT, ChatBody)


def role_body(data: bytes) -> RoleBody:
    return _decode(data, _ROLE, RoleBody)


def _decode(data: bytes, decoder: msgspec.json.Decoder[Body], body: type[Body]) -> Body:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), body) from None
    except (ValueError, RecursionError) as error:  # malformed JSON, bad UTF-8, endless nesting
        raise RequestError(
            f"the body is not valid JSON: {error}" if data else "the body is empty: send JSON",
            code="invalid_json",
        ) from None


def _invalid(message: str, body: type[msgspec.Struct]) -> RequestError:
    if found := _UNKNOWN.match(message):
        return _unknown_field(found["field"], found["at"] or "", body)
    if found := _MISSING.match(message):
        param = f"{found['at']}.{found['field']}" if found["at"] else found["field"]
        return RequestError(
            f"'{param}' is required", param=param, code="missing_required_parameter"
        )
    if found := _WRONG.match(message):
        what = found["what"].replace("`", "").replace(" | null", "")
        return RequestError(
            f"invalid value of '{found['at']}': {what[:1].lower()}{what[1:]}",
            param=found["at"], code="invalid_type",
        )  # fmt: skip
    return RequestError(f"invalid body: {message.replace('`', '')}", code="invalid_type")


def _unknown_field(field: str, at: str, body: type[msgspec.Struct]) -> RequestError:
    owner = _NESTED.get(re.split(r"[.\[]", at)[0], body) if at else body
    near = difflib.get_close_matches(field, owner.__struct_fields__, n=1, cutoff=0.5)
    shown = field if len(field) <= 64 else field[:61] + "..."
    param = f"{at}.{shown}" if at else shown
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return RequestError(f"unknown field '{param}'{hint}", param=param, code="unknown_parameter")
