"""Counting popular prefixes in bounded memory."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.popular import PopularPrefixes

SIZE = 16


def key(name: str, i: int) -> int:
    return int.from_bytes(f"{name}{i}".encode(), "little")


def keys(name: str, count: int) -> list[int]:
    """A chain: keys of one name share every beginning."""
    return [key(name, i) for i in range(count)]


def test_a_shared_beginning_shows_at_about_its_length() -> None:
    popular = PopularPrefixes()
    for i in range(10):
        popular.count([*keys("system", 70), *keys(f"user{i}", 30)], SIZE)
    (only,) = popular.top(5)
    assert (only.key, only.num_tokens, only.count) == (key("system", 63), 64 * SIZE, 10)


def test_what_was_asked_for_once_is_not_popular() -> None:
    popular = PopularPrefixes()
    popular.count(keys("a", 8), SIZE)
    assert popular.top(5) == []
    popular.count([], SIZE)
    assert popular.top(5) == []


def test_most_saved_work_comes_first() -> None:
    popular = PopularPrefixes()
    for _ in range(3):
        popular.count(keys("long", 64), 1)
    for _ in range(9):
        popular.count(keys("short", 4), 1)
    assert [(p.num_tokens, p.count) for p in popular.top(2)] == [(64, 3), (4, 9)]


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=200),
    st.integers(min_value=1, max_value=12),
)
def test_counts_are_never_too_low_and_memory_is_bounded(names: list[str], capacity: int) -> None:
    popular = PopularPrefixes(capacity)
    for name in names:
        popular.count(keys(name, 1), SIZE)
    true = Counter(names)
    found = {each.key: each.count for each in popular.top(100)}
    assert len(popular._counts) <= capacity
    for name, count in true.items():
        if count > max(1, len(names) // capacity):  # the algorithm's promise
            assert found[key(name, 0)] >= count


def test_room_for_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="capacity"):
        PopularPrefixes(0)
