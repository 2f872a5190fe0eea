"""What the HTTP front answers, as JSON Schema: the second half of `openapi`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_TEXT, _WHOLE, _FLAG = ({"type": kind} for kind in ("string", "integer", "boolean"))
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_ANY: Json = {"type": "object"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    """Later versions may say more: unknown keys are for clients to pass over."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _choice(**text: Json) -> Json:
    return _object(
        {
            "index": _COUNT, **text, "logprobs": _or_null(_ANY),
            "finish_reason": {"enum": ["stop", "length"]},
        },
        {"token_ids": _list(_COUNT)},
    )  # fmt: skip


def _answer(name: str, choice: Json) -> Json:
    usage = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT))
    return _object(
        {
            "id": _TEXT, "object": {"const": name}, "created": _WHOLE, "model": _TEXT,
            "choices": {**_list(choice), "minItems": 1}, "usage": usage,
        },
        {"pd": _object({"requests": _list(_ANY)})},
    )  # fmt: skip


_MODEL = _object(
    {
        "id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT,
        "max_model_len": _COUNT, "vocab_size": _COUNT,
    }
)  # fmt: skip
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _TEXT, "refusal": {"type": "null"}})
_ERROR = _object(
    {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)}
)

_REQUEST = _object(
    {
        "request_id": _TEXT, "trace_id": _TEXT, "arrived_at": _NUMBER,
        "outcome": {"enum": ["running", "finished", "cancelled", "rejected", "failed"]},
        "attained": _or_null(_FLAG), "prompt_tokens": _COUNT, "output_tokens": _COUNT,
        "ttft_s": _or_null(_NUMBER), "tpot_s": _or_null(_NUMBER), "e2e_s": _NUMBER,
        "spans": _list(
            _object({"name": _TEXT, "start_s": _NUMBER, "end_s": _NUMBER, "where": _TEXT})
        ),
        "interruptions": _list(_object({"at_s": _NUMBER, "reason": _TEXT})),
    }
)  # fmt: skip

ANSWERS: Mapping[str, Json] = {
    "Completion": _answer("text_completion", _choice(text=_TEXT)),
    "ChatCompletion": _answer("chat.completion", _choice(message=_MESSAGE)),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _list(_MODEL)}),
    "Status": _object(
        {
            "ready": _FLAG, "reason": _TEXT, "model": _TEXT, "max_model_len": _or_null(_COUNT),
            "num_requests": _COUNT, "nodes": _list(_object({"id": _TEXT, "role": _TEXT})),
            "prefixes": _list(_ANY), "gateway": _object({"id": _TEXT, "pid": _COUNT}),
        }
    ),
    "Role": _object({"id": _TEXT, "role": {"enum": ["prefill", "decode", "mixed"]}}),
    "Health": _object({"status": {"const": "ok"}}),
    "Ready": _object({"status": {"const": "ready"}}),
    "Description": _object({"openapi": _TEXT, "info": _ANY, "paths": _ANY}),
    "History": _object(
        {
            "gateway": _TEXT, "now": _NUMBER, "interval_s": _NUMBER, "window_s": _NUMBER,
            "targets": _object({"ttft_s": _or_null(_NUMBER), "tpot_s": _or_null(_NUMBER)}),
            "gone": _list(_object({"id": _TEXT, "role": _TEXT, "since": _NUMBER})),
            "columns": {**_ANY, "additionalProperties": _list(_or_null(_NUMBER))},
        }
    ),
    "RecentRequests": _object({"running": _list(_REQUEST), "ended": _list(_REQUEST)}),
    "Decisions": _object(
        {
            "decisions": _list(
                _object(
                    {
                        "seq": _COUNT, "at": _NUMBER, "last_at": _NUMBER, "times": _COUNT,
                        "kind": _TEXT, "what": _TEXT, "reason": _TEXT, "numbers": _ANY,
                    }
                )
            )
        }
    ),
    "Error": _object({"error": _ERROR}),
}  # fmt: skip
