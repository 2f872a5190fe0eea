"""The OpenAPI description of the HTTP front, which `/openapi.json` serves.

Bodies are described by the structs that decode them (`schema`), narrowed to the values that are
accepted (`accepted`); answers by `openapi_answers`. A test compares it with the routes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import msgspec

from pd.gateway.accepted import HARMLESS, HARMLESS_IN_MESSAGE, ROLES, Bounds, bounds_of
from pd.gateway.limits import Limits
from pd.gateway.openapi_answers import ANSWERS
from pd.gateway.schema import ChatBody, CompletionBody, RoleBody

Json = dict[str, Any]

PAGE = "/dashboard"
# What it is made of, and of which media type: the files of the package's folder `dashboard`.
PAGE_FILES: Mapping[str, str] = {
    "style.css": "text/css",
    **{f"{name}.js": "text/javascript" for name in ("app", "cell", "charts", "format", "requests")},
}

_REF = "#/components/schemas/{name}"
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"
# What every path may answer besides: it is asked about first, or went wrong in the end.
_GUARDED = (401, 405)
_ERRORS: Mapping[int, str] = {
    400: "Malformed, out of range, or longer than the model serves",
    401: "Wrong or missing API key",
    403: "Not for a tenant's key",
    404: "No such model",
    405: "Another method",
    409: "The cell refuses the change",
    413: "The body is too large",
    415: "The body is encoded in a way that is not supported",
    429: "Too much is waiting, a target would be missed, or the tenant is over its rate",
    500: "The cell could not finish what it accepted",
    503: "The cell cannot serve now",
    504: "No node went on with it for a long time",
}
_RETRY = {
    "retry-after": {"description": "Seconds to wait", "schema": {"type": "string"}},
    "retry-after-ms": {"description": "The same, exactly", "schema": {"type": "string"}},
}


@dataclass(frozen=True)
class Operation:
    """One method of one path. `answer` names a schema of `ANSWERS`, or is a media type."""

    summary: str
    answer: str
    body: type[msgspec.Struct] | None = None
    errors: Sequence[int] = ()
    streams: bool = False
    open: bool = False  # asks for no key
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)  # its parameters
    query: Mapping[str, str] = field(default_factory=dict)  # numbers, all of them


_HINTS = {
    "x-session-id": "What the request belongs to, where the body has no session_id",
    "x-slo-ttft-ms": "Target for the first token, in milliseconds, where the body has none",
    "x-slo-tpot-ms": "Target for every further token, in milliseconds",
}
_LIMIT = {"limit": "So many of the newest"}
_GENERATION = (400, 404, 413, 415, 429, 500, 503, 504)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue a prompt", "Completion", CompletionBody, _GENERATION, streams=True, headers=_HINTS
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation", "ChatCompletion", ChatBody, _GENERATION, streams=True,
        headers=_HINTS,
    ),
    ("GET", "/v1/models"): Operation("The model that is served", "Models"),
    ("GET", "/v1/models/{name}"): Operation(
        "One model", "Model", errors=(404,), path={"name": "The model's name"}
    ),
    ("GET", "/v1/status"): Operation("The cell: nodes, roles, queues, blocks", "Status"),
    ("POST", "/v1/nodes/{node_id}/role"): Operation(
        "Give a node another role", "Role", RoleBody, (400, 403, 409, 503),
        path={"node_id": "The node's id, as /v1/status shows it"},
    ),
    ("GET", "/health"): Operation("The gateway's process answers", "Health", open=True),
    ("GET", "/ready"): Operation("Requests are served now", "Ready", errors=(503,), open=True),
    ("GET", "/metrics"): Operation("Metrics in Prometheus' text format", _TEXT, open=True),
    ("GET", "/openapi.json"): Operation("This description", "Description"),
    ("GET", "/v1/history"): Operation(
        "Samples of the last half hour", "History", errors=(400, 403),
        query={"since": "Unix time: only samples that are later"},
    ),
    ("GET", "/v1/requests/recent"): Operation(
        "Requests that run or have ended, with their timelines", "RecentRequests",
        errors=(400, 403), query=_LIMIT,
    ),
    ("GET", "/v1/decisions"): Operation(
        "What was decided in the cell, and why", "Decisions", errors=(400, 403), query=_LIMIT
    ),
    ("GET", PAGE): Operation("The live page: no data, it asks for the key", "text/html", open=True),
    **{
        ("GET", f"{PAGE}/{name}"): Operation("A part of the live page", kind, open=True)
        for name, kind in PAGE_FILES.items()
    },
}  # fmt: skip

# The paths that need no key: probes and scrapers have none, nor has a browser that opens the page,
# and nothing there tells about a request. Everything else needs one, whether a route was described
# here or not.
OPEN_PATHS = frozenset(path for (_, path), each in OPERATIONS.items() if each.open)


def description(limits: Limits, *, keyed: bool) -> Json:
    """The whole document, as OpenAPI 3.1 wants it. `keyed` says whether keys are asked for."""
    bodies = [each.body for each in OPERATIONS.values() if each.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REF)
    for name, schema in schemas.items():
        _narrow(name, schema, limits)
    paths: dict[str, Json] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(operation, keyed=keyed)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pd",
            "version": metadata.version("pd-serve"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "OpenAI's completions and chat API, and what operators look at.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, **copy.deepcopy(ANSWERS)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, *, keyed: bool) -> Json:
    made: Json = {"summary": operation.summary, "responses": _responses(operation, keyed=keyed)}
    if keyed:
        made["security"] = [] if operation.open else [{"key": []}]
    parameters = [
        {"name": name, "in": where, "required": where == "path", "description": text,
         "schema": _MILLISECONDS if name.endswith("-ms") else {"type": "string", "minLength": 1}}
        for where, group in (("path", operation.path), ("header", operation.headers))
        for name, text in group.items()
    ]  # fmt: skip
    parameters += [
        {"name": name, "in": "query", "required": False, "description": text,
         "schema": {"type": "number", "minimum": 0}}
        for name, text in operation.query.items()
    ]  # fmt: skip
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": _REF.format(name=operation.body.__name__)}
        made["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return made


def _responses(operation: Operation, *, keyed: bool) -> Json:
    if operation.answer in ANSWERS:
        content: Json = {_JSON: {"schema": {"$ref": _REF.format(name=operation.answer)}}}
    else:
        content = {operation.answer: {"schema": {"type": "string"}}}
    if operation.streams:
        content[_EVENTS] = {}  # one schema would be taken for that of each event's fields
    responses: Json = {"200": {"description": "Done", "content": content}}
    guarded = [status for status in _GUARDED if status != 401 or (keyed and not operation.open)]
    for status in sorted({*operation.errors, *guarded}):
        responses[str(status)] = {
            "description": _ERRORS[status],
            "content": {_JSON: {"schema": {"$ref": _REF.format(name="Error")}}},
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
    return responses


# ---------------------------------------------------------------------- bodies
def _narrow(name: str, schema: Json, limits: Limits) -> None:
    """Tell of a struct's fields what their types do not say."""
    properties: dict[str, Json] = schema.get("properties", {})
    harmless = HARMLESS_IN_MESSAGE if name == "ChatMessage" else HARMLESS
    bounds = bounds_of(limits)
    for key, each in properties.items():
        if key in harmless:
            each["enum"] = list(harmless[key])
        elif key in bounds and not (name == "ChatBody" and key == "logprobs"):
            numbers = _of_type(each, "object")["additionalProperties"] if key == "logit_bias" else (
                _of_type(each, "integer", "number")
            )  # fmt: skip
            numbers.update(_limits_of(bounds[key]))
    for key, longest in (
        ("cache_salt", limits.max_cache_salt_length), ("session_id", limits.max_session_length)
    ):  # fmt: skip
        if key in properties:
            _of_type(properties[key], "string").update(minLength=1, maxLength=longest)
    if "stop" in properties:
        stop = {"minLength": 1, "maxLength": limits.max_stop_length}
        _of_type(properties["stop"], "string").update(stop)
        stops = _of_type(properties["stop"], "array")
        stops["items"].update(stop)
        stops["maxItems"] = limits.max_stops
    if "messages" in properties:
        properties["messages"].update(minItems=1, maxItems=limits.max_messages)
    if name == "CompletionBody":
        # Without one there is nothing to do, and OpenAI's own default is of no use either.
        schema["required"] = [*schema.get("required", ()), "prompt"]
        properties["prompt"] = _prompt(limits)
    if name == "ChatMessage":
        properties["role"]["enum"] = list(ROLES)
        schema["required"] = ["role", "content"]
        properties["content"] = {
            "anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]
        }
    if name == "SLOTargets":
        for each in properties.values():
            _of_type(each, "number")["exclusiveMinimum"] = 0


_MILLISECONDS = {"type": "number", "exclusiveMinimum": 0}
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}


def _prompt(limits: Limits) -> Json:
    text: Json = {"type": "string", "minLength": 1}
    ids: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    several = {"minItems": 1, "maxItems": limits.max_prompts}
    return {
        "anyOf": [
            text, ids,
            {"type": "array", "items": text, **several},
            {"type": "array", "items": ids, **several},
        ]
    }  # fmt: skip


def _of_type(schema: Json, *kinds: str) -> Json:
    """The branch of a schema that has one of these types."""
    return next(each for each in schema.get("anyOf", [schema]) if each.get("type") in kinds)


def _limits_of(bounds: Bounds) -> Json:
    low = "exclusiveMinimum" if bounds.open_below else "minimum"
    return {low: bounds.low, "maximum": bounds.high}
