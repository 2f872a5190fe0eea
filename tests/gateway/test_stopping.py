"""Stop strings: the same result wherever the text is cut."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pd.gateway.stopping import StopMatcher


def oracle(text: str, stops: list[str], include: bool) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return (text[:end] if include else text[: end - len(longest)]), True
    return text, False


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[str, bool]:
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.matched is not None:
            return shown, True
    return shown + matcher.flush(), False


def test_a_stop_string_is_found_at_every_split() -> None:
    text = "one two END three"
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert run(pieces, ["END"]) == ("one two ", True)
            assert run(pieces, ["END"], include=True) == ("one two END", True)


def test_only_a_possible_beginning_is_kept_back() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("a < b </") == "a < b "
    assert matcher.push("p>") == "</p>"
    assert matcher.push("</s") == ""
    assert matcher.flush() == "</s"


def test_a_repetitive_beginning_is_not_missed() -> None:
    assert run(list("aaab"), ["aab"]) == ("a", True)
    assert run(["ababa", "bac"], ["abac"]) == ("abab", True)


def test_an_unarmed_match_passes_and_a_later_one_stops() -> None:
    matcher = StopMatcher(["XX"])
    assert matcher.push("aXXX", armed=False) == "aXX"
    assert matcher.push("X", armed=True) == ""
    assert matcher.matched == "XX"


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="ab", max_size=24),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 24), max_size=6),
    include=st.booleans(),
)
def test_any_cutting_gives_the_oracles_answer(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert run(pieces, stops, include) == oracle(text, stops, include)
