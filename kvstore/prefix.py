"""Keys of the prefix cache: a SHA-256 chain over blocks of tokens.

A block's key covers every token before it, the layout its KV was made in, and a salt the
server derives for the tenant. So equal keys mean equal KV, and a tenant can neither guess
nor time another's prompts.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256

_DOMAIN = b"pd/kv-prefix/1\0"


def root_key(layout_fingerprint: int, tenant_salt: bytes) -> bytes:
    """The parent of a prompt's first block, 32 bytes."""
    return sha256(_DOMAIN + layout_fingerprint.to_bytes(8, "little") + tenant_salt).digest()


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block of `tokens` that follows the block of key `parent`, 32 bytes."""
    return sha256(parent + _token_bytes(tokens)).digest()


def block_hashes(tokens: Sequence[int], block_size: int, root: bytes) -> list[bytes]:
    """Keys of the full blocks of `tokens`; a last partial block has none."""
    data = _token_bytes(tokens)
    width = 4 * block_size
    keys: list[bytes] = []
    parent = root
    for start in range(0, len(data) - width + 1, width):
        parent = sha256(parent + data[start : start + width]).digest()
        keys.append(parent)
    return keys


def _token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian int32; OverflowError for an id that does not fit."""
    packed = array("i", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
