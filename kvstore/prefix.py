"""Keys of the prefix cache: a SHA-256 chain over blocks of tokens.

A block's key covers every token before it, the layout its KV was made in, the tenant and the
request's own salt, under a secret of the cell. So equal keys mean equal KV, and a tenant can
neither guess nor time another's prompts.
"""

from __future__ import annotations

import hmac
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

_DOMAIN = b"pd/kv-prefix/2\0"
KEY_BYTES = 32
SHORT_KEY_BYTES = 8  # of a key, as directories know it


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Where the chains of a cell's prompts begin: nodes and coordinator have the same one.

    With `share_between_tenants` the tenant plays no part; a request's salt still does.
    """

    secret: bytes = b""
    share_between_tenants: bool = False

    @classmethod
    def of_cell(
        cls, secret: str | None, cluster_id: int, *, share_between_tenants: bool = False
    ) -> KeySpace:
        """From the cell's secret, or where it has none from its id, which is random, too.

        One-way, so that whoever sees a key space does not have the cell's secret.
        """
        material = cluster_id.to_bytes(8, "little") if secret is None else secret.encode()
        return cls(hmac.digest(material, _DOMAIN, "sha256"), share_between_tenants)

    def root(self, layout: int, tenant: str = "", cache_salt: str = "") -> bytes:
        """The parent of a prompt's first block, 32 bytes; `layout` is `KVLayout.content`."""
        return _root(self.secret, self.share_between_tenants, layout, tenant, cache_salt)

    def block_keys(self, tokens: Sequence[int], block_size: int, root: bytes) -> list[bytes]:
        """`block_hashes`; a simulator's key space knows the keys of prompts without tokens."""
        return block_hashes(tokens, block_size, root)


@lru_cache(maxsize=4096)  # hardly more pairs of tenant and salt are in use at a time
def _root(secret: bytes, shared: bool, layout: int, tenant: str, cache_salt: str) -> bytes:
    name = b"" if shared else b"tenant " + tenant.encode()
    parts = (layout.to_bytes(8, "little"), name, cache_salt.encode())
    # With their lengths, so that no two (tenant, salt) pairs read the same.
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hmac.digest(secret, _DOMAIN + text, "sha256")


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


def short_keys(keys: Sequence[bytes]) -> array[int]:
    """Keys as directories know them: the first 8 bytes of each, as unsigned integers."""
    short = array("Q", b"".join(key[:SHORT_KEY_BYTES] for key in keys))
    if sys.byteorder == "big":
        short.byteswap()
    return short


def unpack_short_keys(packed: bytes) -> array[int]:
    """Short keys that a message carries, 8 bytes each; ValueError for a part of one."""
    short = array("Q", packed)
    if sys.byteorder == "big":
        short.byteswap()
    return short


def pack_keys(keys: Iterable[bytes]) -> bytes:
    """Whole keys as messages carry them, 32 bytes each."""
    return b"".join(keys)


def unpack_keys(packed: bytes) -> list[bytes]:
    """The keys that `pack_keys` packed; what is left of a key that was cut off is none."""
    whole = len(packed) - len(packed) % KEY_BYTES
    return [packed[start : start + KEY_BYTES] for start in range(0, whole, KEY_BYTES)]


def _token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian int32; OverflowError for an id that does not fit."""
    packed = array("i", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
