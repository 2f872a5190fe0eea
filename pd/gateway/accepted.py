"""The values that a body's fields may have: what `validate` checks and `openapi` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pd.gateway.limits import Limits
from pd.types import MAX_SEED

_INT32 = 1 << 31
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")

# Fields that would need behaviour which is not there, and the values that need none.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "store": _NOTHING,
    "service_tier": (None, "auto", "default"),
    "use_beam_search": _NOTHING,
    "response_format": (None, {"type": "text"}),
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "structured_outputs": _NOTHING,
    "suffix": _NOTHING,
    "tools": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

# The same of a message.
HARMLESS_IN_MESSAGE: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("audio", "tool_calls", "tool_call_id", "function_call"), (None, [])
)
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Bounds:
    """low <= value <= high, or low < value where it is open below."""

    low: float
    high: float
    open_below: bool = False

    def hold(self, value: float) -> bool:
        return (self.low < value if self.open_below else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        edge = "more than" if self.open_below else "at least"
        return f"{edge} {self.low:g} and at most {self.high:g}"


@lru_cache(maxsize=8)
def bounds_of(limits: Limits) -> Mapping[str, Bounds]:
    """The range of every number, by field; of `logit_bias` that of its values."""
    max_tokens = Bounds(1, limits.max_output_tokens or _INT32)
    logprobs = Bounds(0, limits.max_logprobs)
    return {
        "n": Bounds(1, limits.max_n),
        "min_tokens": Bounds(0, _INT32),
        "max_tokens": max_tokens,
        "max_completion_tokens": max_tokens,
        "temperature": Bounds(0.0, 2.0),
        "top_k": Bounds(-1, _INT32),
        "top_p": Bounds(0.0, 1.0, open_below=True),
        "min_p": Bounds(0.0, 1.0),
        "repetition_penalty": Bounds(0.01, 100.0),
        "presence_penalty": Bounds(-2.0, 2.0),
        "frequency_penalty": Bounds(-2.0, 2.0),
        "logit_bias": Bounds(-100.0, 100.0),
        "seed": Bounds(-MAX_SEED - 1, MAX_SEED),
        "logprobs": logprobs,
        "top_logprobs": logprobs,
        "priority": Bounds(-_INT32, _INT32 - 1),
    }
