"""The shape of KV memory: what two nodes must know of each other to exchange blocks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from pd.errors import TransferError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}

# Each row of a quantised block, one token's head, ends with the factor of its values.
SCALE_BYTES = {"int8": 4, "fp8": 4}

# Part of every fingerprint. Raise it when the order of dimensions inside a block changes.
_LAYOUT_VERSION = 1

_MAX_DESCRIPTION = 4096


@dataclass(frozen=True)
class KVLayout:
    """Block-major layout `[block, layer, k|v, kv_head, token, row]`.

    One block holds `block_size` tokens of all layers, contiguous, so it is one piece to
    send, keep and read back. A row is the `head_dim` values of one token and head; in a
    quantised dtype (int8, or fp8, which is e4m3) a float32 factor follows them. `model` is the
    fingerprint of the weights: KV made by other weights has the right shape and the wrong content.

    A rank of a tensor-parallel node has `num_kv_heads` of the model's `total_kv_heads`, from
    `kv_head_start` on. A total of 0 means that these are all: see `all_kv_heads`.
    """

    dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    model: str
    kv_head_start: int = 0
    total_kv_heads: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ValueError(f"KV dtype {self.dtype!r} is not supported; use one of {known}")
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.kv_head_start <= self.all_kv_heads - self.num_kv_heads:
            raise ValueError(
                f"kv heads {self.kv_head_start} to {self.kv_heads.stop - 1} are not among the "
                f"model's {self.all_kv_heads}"
            )
        if self.all_kv_heads == self.num_kv_heads:  # one way to say it, so that equal is equal
            object.__setattr__(self, "total_kv_heads", 0)

    @property
    def kv_heads(self) -> range:
        """The heads of the model that blocks of this layout hold."""
        return range(self.kv_head_start, self.kv_head_start + self.num_kv_heads)

    @property
    def all_kv_heads(self) -> int:
        """The number of kv heads of the model, here or on other ranks."""
        return self.total_kv_heads or self.num_kv_heads

    @property
    def quantised(self) -> bool:
        return self.dtype in SCALE_BYTES

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """(layers, 2, kv_heads, block_size, head_dim)."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one token's values of one head of one layer's keys, or values."""
        return self.head_dim * ITEM_BYTES[self.dtype] + SCALE_BYTES.get(self.dtype, 0)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of KV one token takes, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.row_bytes

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
        if self.total_kv_heads:
            return _hash((*fields, self.kv_head_start, self.total_kv_heads))
        return _hash(fields)

    @cached_property
    def content(self) -> int:
        """64 bits that are equal for layouts of the same KV, whatever their dtype and heads.

        Blocks of layouts with equal `content` convert into each other (kvstore.convert)."""
        return _hash(
            (_LAYOUT_VERSION, "content", self.num_layers, self.all_kv_heads, self.head_dim,
             self.block_size, self.model)
        )  # fmt: skip

    def part(self, dtype: str, kv_head_start: int, num_kv_heads: int) -> KVLayout:
        """The same KV in another dtype, of some heads only. ValueError if there are no such."""
        return replace(
            self, dtype=dtype, kv_head_start=kv_head_start, num_kv_heads=num_kv_heads,
            total_kv_heads=self.all_kv_heads,
        )  # fmt: skip

    def describe(self) -> str:
        """This layout as text, for peers to `parse`."""
        return json.dumps(
            [self.dtype, self.num_layers, self.num_kv_heads, self.head_dim, self.block_size,
             self.model, self.kv_head_start, self.total_kv_heads]
        )  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> KVLayout:
        """What `describe` said. TransferError if it is no description."""
        try:
            if len(text) > _MAX_DESCRIPTION:
                raise ValueError(f"{len(text)} characters")
            dtype, layers, heads, dim, size, model, start, total = json.loads(text)
            numbers = (layers, heads, dim, size, start, total)
            # bool is an int to Python, and no number of anything
            if any(type(number) is not int or not 0 <= number < 2**31 for number in numbers):
                raise ValueError("a number is not one")
            if not isinstance(dtype, str) or not isinstance(model, str):
                raise ValueError("a name is not text")
            return cls(dtype, layers, heads, dim, size, model, start, total)
        except (ValueError, TypeError, RecursionError) as error:
            raise TransferError(f"a KV layout that cannot be read: {error}") from None

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens, the last of them perhaps partly."""
        return -(-num_tokens // self.block_size)


def _hash(fields: tuple[object, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(fields).encode()).digest()[:8], "little")
