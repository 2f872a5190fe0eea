"""Rendezvous hashing: every key ranks all nodes, and keeps its ranking when others come and go.

After Thaler and Ravishankar, "A name-based mapping scheme for rendezvous" (1996). Of the keys
that had a node which leaves, each goes to its own next one; a node that joins takes an equal
share from every other. Nothing else moves.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

_MASK = (1 << 64) - 1


def hash64(*parts: bytes) -> int:
    """64 bits of a hash, the same in every process; no two lists of parts read the same."""
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return int.from_bytes(sha256(text).digest()[:8], "little")


def weight(key: int, node_id: str) -> int:
    """How much this key wants this node, 64 bits; the finaliser of SplitMix64."""
    mixed = key ^ _seed_of(node_id)
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return mixed ^ (mixed >> 31)


@lru_cache(maxsize=1 << 16)
def _seed_of(node_id: str) -> int:
    return hash64(node_id.encode())
