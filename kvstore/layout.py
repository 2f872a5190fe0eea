"""The shape of KV memory: what two nodes must agree on before they exchange a block."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Part of every fingerprint. Raise it when the order of dimensions inside a block changes.
_LAYOUT_VERSION = 1


@dataclass(frozen=True)
class KVLayout:
    """Block-major layout `[block, layer, k|v, kv_head, token, head_dim]`.

    One block holds `block_size` tokens of all layers, contiguous, so it is one piece to
    send, keep and read back. `model` is the fingerprint of the weights: KV made by other
    weights has the right shape and the wrong content.
    """

    dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    model: str

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ValueError(f"KV dtype {self.dtype!r} is not supported; use one of {known}")
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """(layers, 2, kv_heads, block_size, head_dim)."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of KV one token takes, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * ITEM_BYTES[self.dtype]

    @cached_property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_size

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that differ whenever any field does; every block message carries them."""
        fields = (
            _LAYOUT_VERSION, self.dtype, self.num_layers, self.num_kv_heads, self.head_dim,
            self.block_size, self.model,
        )  # fmt: skip
        return int.from_bytes(hashlib.sha256(repr(fields).encode()).digest()[:8], "little")

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens, the last of them perhaps partly."""
        return -(-num_tokens // self.block_size)
