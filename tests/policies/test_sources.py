"""From where blocks are fetched, best first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory import Leading
from pd.policies.costs import Costs
from pd.policies.sources import MAX_SOURCES, best_sources
from pd.types import Source

COSTS = Costs(rate=1000.0, fetch_s=0.001, slow_s=0.005)  # a block of 16 takes 16 ms to compute


def best(leading: dict[str, tuple[int, int]], **more: object) -> list[str]:
    found = best_sources(
        {holder: Leading(*part) for holder, part in leading.items()}, lambda holder: 7, COSTS, 16,
        **{"usable": 100, **more},  # type: ignore[arg-type]
    )  # fmt: skip
    for source in found:
        assert source == Source(source.holder, 7, *leading[source.holder])
    return [source.holder for source in found]


def test_the_most_blocks_come_first() -> None:
    assert best({"a": (3, 0), "b": (9, 0), "c": (6, 0)}) == ["b", "c", "a"]


def test_blocks_on_a_disk_count_for_less() -> None:
    assert best({"disk": (10, 10), "dram": (8, 0)}) == ["dram", "disk"]
    assert best({"disk": (20, 20), "dram": (8, 0)}) == ["disk", "dram"]


def test_who_has_no_more_than_the_node_itself_is_no_source() -> None:
    assert best({"a": (3, 0), "me": (5, 0), "b": (5, 0), "c": (6, 0)}, cached=5) == ["c"]
    assert best({"a": (10, 0)}, cached=9, usable=9) == [], "the last token is computed anyway"
    assert best({}) == []


def test_of_equal_ones_the_nearest() -> None:
    leading = dict.fromkeys("abcd", (9, 0))
    distance = {"a": 2, "b": 0, "c": 1, "d": 2}
    assert best(leading, distance=distance.__getitem__)[:2] == ["b", "c"]
    assert best({**leading, "a": (10, 0)}, distance=distance.__getitem__)[0] == "a"


def test_equal_ones_share_the_work() -> None:
    leading = {f"n{i}": (9, 0) for i in range(8)}
    first = Counter(best(leading, key=key * 0x9E3779B97F4A7C15)[0] for key in range(400))
    assert len(first) == 8 and max(first.values()) < 100


@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    ),
    st.integers(0, 40), st.integers(0, 40),
)  # fmt: skip
def test_sources_are_few_useful_and_in_order(  # type: ignore[no-untyped-def]
    leading, cached, usable
) -> None:
    found = best(leading, cached=cached, usable=usable)
    assert len(found) == min(
        MAX_SOURCES, sum(min(blocks, usable) > cached for blocks, _ in leading.values())
    )
    saved = [
        COSTS.saved_s(Source(holder, 7, *leading[holder]), cached, usable, 16) for holder in found
    ]
    assert saved == sorted(saved, reverse=True) and all(s >= 0 for s in saved)
