"""The hard limits of one request: what a client may ask for at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`max_model_len` and `max_output_tokens` may be None: then the model's length decides."""

    max_body_bytes: int = 4 << 20
    max_model_len: int | None = None  # prompt and output together, in tokens
    max_output_tokens: int | None = None
    max_prompts: int = 64
    max_messages: int = 2048
    max_n: int = 16
    max_sequences: int = 256  # prompts times n
    max_stops: int = 16  # strings, and token ids likewise
    max_stop_length: int = 256  # characters
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_cache_salt_length: int = 256  # characters
    max_session_length: int = 256  # characters
