"""The W3C trace context that a client sends: https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Which trace a request belongs to. `span_id` is the client's span, empty where none is known;
    `sampled` says whether the client records its own."""

    trace_id: str
    span_id: str = ""
    sampled: bool = True

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> TraceContext | None:
        """What the header `traceparent` says; None where it is missing or malformed, in which case
        the standard has it ignored."""
        found = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
        if found is None:
            return None
        version, trace_id, span_id, flags, rest = found.groups()
        if version == "ff" or (version == "00" and rest):
            return None
        if not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))

    @classmethod
    def new(cls) -> TraceContext:
        """A trace that begins here."""
        return cls(secrets.token_hex(16))
