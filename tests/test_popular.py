"""Counting popular prefixes in bounded memory."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.popular import PopularPrefixes


def keys(name: str, count: int) -> list[bytes]:
    """A chain: keys of one name share every beginning."""
    return [f"{name}{i}".encode() for i in range(count)]


def test_a_shared_beginning_shows_at_about_its_length() -> None:
    popular = PopularPrefixes()
    for i in range(10):
        popular.count([*keys("system", 70), *keys(f"user{i}", 30)])
    (only,) = popular.top(5)
    assert (only.key, only.num_blocks, only.count) == (b"system63", 64, 10)


def test_what_was_asked_for_once_is_not_popular() -> None:
    popular = PopularPrefixes()
    popular.count(keys("a", 8))
    assert popular.top(5) == []
    popular.count([])
    assert popular.top(5) == []


def test_most_saved_work_comes_first() -> None:
    popular = PopularPrefixes()
    for _ in range(3):
        popular.count(keys("long", 64))
    for _ in range(9):
        popular.count(keys("short", 4))
    assert [(p.num_blocks, p.count) for p in popular.top(2)] == [(64, 3), (4, 9)]


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=200),
    st.integers(min_value=1, max_value=12),
)
def test_counts_are_never_too_low_and_memory_is_bounded(names: list[str], capacity: int) -> None:
    popular = PopularPrefixes(capacity)
    for name in names:
        popular.count(keys(name, 1))
    true = Counter(names)
    found = {each.key: each.count for each in popular.top(100)}
    assert len(popular._counts) <= capacity
    for name, count in true.items():
        if count > max(1, len(names) // capacity):  # the algorithm's promise
            assert found[f"{name}0".encode()] >= count


def test_room_for_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="capacity"):
        PopularPrefixes(0)
