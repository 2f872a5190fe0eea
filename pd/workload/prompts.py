"""Tokens for a workload's prompts: made up, but the same wherever the workload says so."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from itertools import chain

from pd.workload.arrival import Arrival


def prompt_tokens(
    arrival: Arrival, block_tokens: int, vocabulary: int, salt: int = 0
) -> tuple[int, ...]:
    """`num_prompt` token ids below `vocabulary`, from nothing but the arguments.

    Equal prefix ids give equal tokens, others have nothing in common but by chance. A prompt
    without ids is like no other of another time, length or session. Another `salt` changes
    every token: a cache that has seen the workload once does not know it.
    """
    if not arrival.prefix:
        key = (
            f"alone {arrival.time_s!r} {arrival.num_prompt} {arrival.num_output} "
            f"{arrival.session} {arrival.tenant} {salt}"
        )
        return _draw(key, arrival.num_prompt, vocabulary)
    blocks = (_block(each, block_tokens, vocabulary, salt) for each in arrival.prefix)
    return tuple(chain.from_iterable(blocks))[: arrival.num_prompt]


@lru_cache(maxsize=4096)
def _block(block: int, block_tokens: int, vocabulary: int, salt: int) -> tuple[int, ...]:
    return _draw(f"block {block} {salt}", block_tokens, vocabulary)


def _draw(key: str, num_tokens: int, vocabulary: int) -> tuple[int, ...]:
    """SHAKE-128 rather than `random`: its output is the same in every version of Python."""
    noise = hashlib.shake_128(key.encode()).digest(4 * num_tokens)
    return tuple(each % vocabulary for each in struct.unpack(f"<{num_tokens}I", noise))
