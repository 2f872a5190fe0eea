"""Which prefixes are asked for most: a bounded count over all prompts. Pure.

A prompt counts once for each of its beginnings of 1, 2, 4, 8, ... blocks, so that a shared
beginning of any length shows up at about its length. Kept are the most frequent ones by the
Space-Saving algorithm (Metwally et al., 2005): a count may be too high by what the prefix that
it replaced had, never too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Popular:
    """A prefix of `num_tokens` tokens in whole blocks, the last of which has this short key."""

    key: int
    num_tokens: int
    count: int


class PopularPrefixes:
    """At most `capacity` prefixes; counting a prompt costs the logarithm of its length."""

    def __init__(self, capacity: int = 256) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._counts: dict[int, Popular] = {}
        # Keys by their counts, so that one of the least count is found without a walk.
        self._by_count: dict[int, dict[int, None]] = {}
        self._least = 0

    def count(self, keys: Sequence[int], block_size: int) -> None:
        """A prompt whose full blocks have these keys was asked for."""
        num_blocks = 1
        while num_blocks <= len(keys):
            key = keys[num_blocks - 1]
            known = self._counts.get(key)
            if known is not None:
                self._take(known.count, key)
                known.count += 1
            else:
                count = 1
                if len(self._counts) == self._capacity:
                    count += self._least
                    oldest = next(iter(self._by_count[self._least]))
                    self._take(self._least, oldest)
                    del self._counts[oldest]
                else:
                    self._least = 1
                known = self._counts[key] = Popular(key, num_blocks * block_size, count)
            self._by_count.setdefault(known.count, {})[key] = None
            num_blocks *= 2

    def _take(self, count: int, key: int) -> None:
        """Take a key from those of this count; it, or another, is about to have one more."""
        alike = self._by_count[count]
        del alike[key]
        if not alike:
            del self._by_count[count]
            if count == self._least:
                self._least += 1

    def top(self, limit: int) -> list[Popular]:
        """Those asked for more than once, most saved tokens first. Of beginnings of one another
        that were asked for about as often, only the longest is worth a line; which those are is
        told by their counts alone."""
        ranked = sorted(
            (each for each in self._counts.values() if each.count > 1),
            key=lambda each: (-each.num_tokens * (each.count - 1), each.key),
        )
        shown: list[Popular] = []
        for each in ranked:
            covered = any(
                each.num_tokens < other.num_tokens and each.count == other.count for other in shown
            )
            if not covered:
                shown.append(each)
            if len(shown) == limit:
                break
        return shown
