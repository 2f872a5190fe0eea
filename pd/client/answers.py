"""What the client returns: plain dataclasses, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class RequestMetrics:
    """How the server served one prompt. Times in seconds; None where there is none."""

    request_id: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    prefill_node: str = ""
    decode_node: str = ""
    attempts: int = 1
    kv_moved_bytes: int | None = None  # from the prefill to the decode node
    kv_early_bytes: int | None = None  # those of them that moved while the prompt was computed
    handoff_wait_s: float | None = None  # from the prompt's end to the last block's arrival
    slo_attained: bool | None = None
    tenant_class: str = ""
    # Seconds: queue + fetch + compute are the TTFT, transfer + first_step the gap that follows.
    stages_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RequestMetrics:
        """Fields that a newer server adds are ignored."""
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})


@dataclass(frozen=True)
class Choice:
    """One output. `token_ids` only with return_token_ids, `logprobs` as the API gives them."""

    index: int
    text: str
    finish_reason: str | None
    token_ids: tuple[int, ...] = ()
    logprobs: Any = None


@dataclass(frozen=True)
class Completion:
    """A whole answer. With several prompts, choice p * n + i is output i of prompt p."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    requests: tuple[RequestMetrics, ...] = ()

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def metrics(self) -> RequestMetrics | None:
        """Of the first prompt; None if the server tells none."""
        return self.requests[0] if self.requests else None


@dataclass(frozen=True)
class Delta:
    """A piece of one output, usually a token's. `finish_reason` comes with the last."""

    index: int
    text: str
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: Any = None


def completion_from(body: Mapping[str, Any]) -> Completion:
    """Either API's response body; KeyError or TypeError if it is something else."""
    choices = [
        Choice(
            choice["index"],
            choice["message"]["content"] or "" if "message" in choice else choice["text"],
            choice["finish_reason"],
            tuple(choice.get("token_ids") or ()),
            choice.get("logprobs"),
        )
        for choice in body["choices"]
    ]
    return Completion(
        id=body["id"],
        model=body["model"],
        choices=tuple(choices),
        usage=usage_from(body.get("usage")),
        requests=metrics_from(body),
    )


def usage_from(data: Mapping[str, Any] | None) -> Usage:
    data = data or {}
    return Usage(**{key: data[key] for key in Usage.__dataclass_fields__ if key in data})


def metrics_from(body: Mapping[str, Any]) -> tuple[RequestMetrics, ...]:
    return tuple(map(RequestMetrics.from_dict, (body.get("pd") or {}).get("requests", ())))
