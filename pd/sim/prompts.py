"""Prompts without tokens: what they share is known by ids, and their block keys follow from those.

A trace names blocks of, say, 512 tokens by ids that stand for the whole prefix up to there. Making
up 12,000 tokens for a prompt and hashing them three times, as the live system does, would take
longer than all the decisions about it. So a simulated request has a `CompactPrompt` where a real
one has a tuple of tokens, and a cell a `PrefixKeys` where a real one has a `KeySpace`; the nodes,
the router and the caches do not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any, cast, overload

from kvstore.prefix import KEY_BYTES, KeySpace, chain
from pd.types import Request

TOKEN = 0  # drawn in every step: no decision looks at what a token is
_TOKEN_MASK = 0x7FFFFFFF


class CompactPrompt(Sequence[int]):
    """`num_tokens` tokens, of which `ids` name every `id_tokens` and all before them.

    Beyond the ids' reach, and without any, the tokens are those of `own`, an id that no other
    prompt has.
    """

    __slots__ = ("num_tokens", "ids", "id_tokens", "own", "_keys")

    def __init__(self, num_tokens: int, ids: Sequence[int], id_tokens: int, own: int) -> None:
        self.num_tokens = num_tokens
        self.ids = ids
        self.id_tokens = id_tokens
        self.own = own
        self._keys: dict[tuple[int, bytes], list[bytes]] = {}

    def __len__(self) -> int:
        return self.num_tokens

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if not isinstance(at, slice):
            return self._token(range(self.num_tokens)[at])
        start, stop, step = at.indices(self.num_tokens)
        if step != 1:
            return [self._token(i) for i in range(start, stop, step)]
        tokens: list[int] = []
        while start < stop:
            end = min(stop, (start // self.id_tokens + 1) * self.id_tokens)
            tokens += [self._token(start)] * (end - start)
            start = end
        return tokens

    def _token(self, position: int) -> int:
        place = position // self.id_tokens
        return (self.ids[place] if place < len(self.ids) else self.own) & _TOKEN_MASK

    def keys(self, block_size: int, root: bytes) -> list[bytes]:
        """Keys of the full blocks; made once for all who ask."""
        known = self._keys.get((block_size, root))
        if known is None:
            known = self._keys[block_size, root] = self._make_keys(block_size, root)
        return known

    def _make_keys(self, block_size: int, root: bytes) -> list[bytes]:
        """A block's key is told by the id in whose reach it ends, and by which of those it is."""
        keys: list[bytes] = []
        ids, id_tokens = self.ids, self.id_tokens
        num_blocks = self.num_tokens // block_size
        for place, name in enumerate(ids):
            # Blocks that end in (place * id_tokens, (place + 1) * id_tokens].
            last = min(num_blocks, (place + 1) * id_tokens // block_size)
            if last > len(keys):
                keys += _named(name, root, last - len(keys))
        return keys + _named(self.own, root, num_blocks - len(keys))


def _named(name: int, root: bytes, count: int) -> list[bytes]:
    """Keys of the first `count` blocks that end in the reach of an id."""
    if count <= 0:
        return []
    stream = shake_128(root + name.to_bytes(16, "little", signed=True)).digest(KEY_BYTES * count)
    return [stream[at : at + KEY_BYTES] for at in range(0, KEY_BYTES * count, KEY_BYTES)]


class Tokens(Sequence[int]):
    """A prompt and the tokens drawn after it: what a `Sequence` appends to."""

    __slots__ = ("prompt", "num_drawn")

    def __init__(self, prompt: CompactPrompt, num_drawn: int) -> None:
        self.prompt = prompt
        self.num_drawn = num_drawn

    def __len__(self) -> int:
        return self.prompt.num_tokens + self.num_drawn

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        prompt, num_prompt = self.prompt, self.prompt.num_tokens
        if not isinstance(at, slice):
            position = range(len(self))[at]
            return prompt[position] if position < num_prompt else TOKEN
        start, stop, step = at.indices(len(self))
        if step != 1:
            return [self[i] for i in range(start, stop, step)]
        drawn = [TOKEN] * max(0, stop - max(start, num_prompt))
        return [*prompt[start:stop], *drawn] if start < num_prompt else drawn

    def append(self, token: int) -> None:
        self.num_drawn += 1

    def extend(self, tokens: Sequence[int]) -> None:
        self.num_drawn += len(tokens)

    def keys(self, block_size: int, root: bytes) -> list[bytes]:
        """The prompt's, and those of full blocks that hold drawn tokens, made as a decode node
        makes them."""
        keys = self.prompt.keys(block_size, root)
        num_blocks = len(self) // block_size
        if num_blocks == len(keys):
            return keys
        keys = list(keys)
        for start in range(len(keys) * block_size, num_blocks * block_size, block_size):
            keys.append(chain(keys[-1] if keys else root, self[start : start + block_size]))
        return keys


class PrefixKeys(KeySpace):
    """The key space of a simulated cell."""

    def block_keys(self, tokens: Sequence[int], block_size: int, root: bytes) -> list[bytes]:
        return cast(Tokens, tokens).keys(block_size, root)


@dataclass(frozen=True, slots=True)
class SimRequest(Request):
    """A request whose `prompt` is a `CompactPrompt`."""

    def tokens(self, output: tuple[int, ...] = ()) -> list[int]:
        return cast("list[int]", Tokens(cast(CompactPrompt, self.prompt), len(output)))


def as_prompt(prompt: CompactPrompt) -> Any:
    """For `Request.prompt`, whose type is that of what travels between real processes."""
    return prompt
