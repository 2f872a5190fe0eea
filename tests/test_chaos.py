"""The pure parts of scripts/chaos.py: which fault comes when, and what may become of a request."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

from chaoslib.schedule import LINK, MEMBERS, PAIRS, RAY, Deck, Fault  # noqa: E402
from chaoslib.verdict import (  # noqa: E402
    DEATH_SEEN_S,
    Answer,
    End,
    Got,
    excused,
    judge,
    plain,
    summary,
    window,
)

EVERYBODY = frozenset((*MEMBERS, RAY, LINK))
EVERY_S = (5.0, 20.0)
RIGHT = [[1, 2, 3, 4], [5, 6, 7]]


def faults(seed: int, count: int) -> list[Fault]:
    deck = Deck(seed, EVERY_S, 6.0)
    drawn = [deck.draw(EVERYBODY) for _ in range(count)]
    return [fault for fault in drawn if fault is not None]


def test_the_seed_says_everything() -> None:
    assert faults(1, 80) == faults(1, 80) != faults(2, 80)
    waits = [[Deck(seed, EVERY_S, 6.0).wait_s() for _ in range(2)] for seed in (1, 1, 2)]
    assert waits[0] == waits[1] != waits[2]


@given(st.integers(0, 1 << 32), st.integers(1, 4))
def test_every_pair_comes_as_often_as_any_other(seed: int, rounds: int) -> None:
    drawn = faults(seed, rounds * len(PAIRS))
    counts = Counter((fault.kind, fault.target) for fault in drawn)
    assert counts == Counter({pair: rounds * PAIRS.count(pair) for pair in set(PAIRS)})
    for fault in drawn:
        assert 0.0 <= fault.pick < 1.0
        assert (fault.seconds > 0.0) == (fault.kind in ("pause", "slow", "cut"))
        assert (fault.kind == "cut") == (fault.target == LINK)
        assert fault.target != RAY or fault.kind != "stop", "nobody would start it again"


@given(st.integers(0, 1000), st.lists(st.sets(st.sampled_from(sorted(EVERYBODY))), max_size=80))
def test_who_is_not_there_is_left_alone_and_comes_later(seed: int, there: list[set[str]]) -> None:
    deck, drawn = Deck(seed, EVERY_S, 6.0), []
    for available in there:
        fault = deck.draw(available)
        assert (fault is None) == (not available)
        if fault is not None:
            assert fault.target in available
            drawn.append(fault)
    rest: list[Fault] = []
    while len(drawn) + len(rest) < 20 * len(PAIRS):
        fault = deck.draw(EVERYBODY)
        assert fault is not None
        rest.append(fault)
    # Whoever was passed over has had its turn by now, as often as all others.
    counts = Counter((fault.kind, fault.target) for fault in (*drawn, *rest))
    shares = [counts[pair] / PAIRS.count(pair) for pair in set(PAIRS)]
    assert max(shares) - min(shares) <= 1 + len(there)
    assert set(counts) == set(PAIRS)


@given(st.integers(0, 1000))
def test_faults_are_so_far_apart(seed: int) -> None:
    deck = Deck(seed, EVERY_S, 6.0)
    assert all(EVERY_S[0] <= deck.wait_s() <= EVERY_S[1] for _ in range(50))


@pytest.mark.parametrize(
    ("got", "end"),
    [
        (Got(200, RIGHT, done=True), "identical"),
        (Got(200, [[1, 2, 3, 4], [5, 6, 8]], done=True), "differs"),
        (Got(200, [[1, 2, 3], [5, 6, 7]], done=True), "differs"),
        (Got(200, [[1, 2, 3, 4]], done=True), "differs"),
        (Got(200, [*RIGHT, [9]], done=True), "differs"),
        (Got(200, [[1, 2, 3, 4, 4], [5, 6, 7]], done=True), "differs"),
        (Got(200, [[1, 2], []], errors=["lost"]), "failed"),
        (Got(200, [[1, 3], []], errors=["lost"]), "differs"),
        (Got(200, RIGHT, errors=["lost"], done=True), "differs"),
        (Got(200, [[1]], errors=["lost", "lost again"]), "differs"),
        (Got(503, errors=["try again"], retry_after_s=5.0), "refused"),
        (Got(429, errors=["try again"], retry_after_s=0.0), "refused"),
        (Got(503, errors=["when?"]), "failed"),
        (Got(500, errors=["a bug"]), "failed"),
        (Got(200, [[1, 2], [5]], broken="ReadError"), "lost"),
        (Got(200, RIGHT), "lost"),
        (Got(200, [[1, 2], [6]], broken="ReadError"), "differs"),
        (Got(broken="ReadError"), "lost"),
        (Got(200, [[1]], hung=True, broken="nothing came"), "hung"),
        (Got(), "lost"),
    ],
)  # fmt: skip
def test_how_a_request_ended(got: Got, end: End) -> None:
    said, told = judge(got, RIGHT)
    assert said == end
    assert bool(told) == (end != "identical"), "whatever is not well has a reason"


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=3))
def test_only_what_is_whole_is_identical(tokens: list[list[int]]) -> None:
    assert (judge(Got(200, tokens, done=True), RIGHT)[0] == "identical") == (tokens == RIGHT)


def answer(end: End, begun_s: float = 100.0, ended_s: float = 110.0, **more: object) -> Answer:
    return Answer(7, begun_s, ended_s, end, **more)  # type: ignore[arg-type]


def test_only_the_death_of_a_gateway_excuses() -> None:
    given = answer("lost", told="why")
    for at_s in (100.0, 105.0, 110.0, 110.0 + DEATH_SEEN_S):
        assert excused(given, [3.0, at_s, 500.0])
    for deaths in ([], [90.0], [120.0], [90.0, 120.0]):
        assert not excused(given, deaths)


def test_nothing_excuses_other_tokens_or_no_end() -> None:
    ends: tuple[End, ...] = ("differs", "failed", "hung", "refused")
    for end in ends:
        assert not excused(answer(end), [105.0])
    assert excused(answer("identical"), [])


def test_the_report() -> None:
    answers = [
        answer("identical", 0.0, 1.0, ttft_s=0.5, longest_gap_s=0.1),
        answer("identical", 0.0, 9.0, ttft_s=4.0, longest_gap_s=3.0, resumed=True),
        answer("lost", 50.0, 51.0, told="ReadError"),
        answer("lost", 90.0, 91.0, told="ReadError"),
        answer("refused", 60.0, 60.1, told="503: no decode node is up for 12 s", refusals=9),
    ]
    report = summary(answers, deaths=[50.5])
    assert report["requests"] == 5 and report["share_identical"] == 0.4 and report["resumed"] == 1
    assert report["ends"] == {"identical": 2, "lost": 2, "refused": 1}
    assert report["told"]["refused: #: no decode node is up for # s"] == 1
    assert [each["begun_s"] for each in report["problems"]] == [90.0, 60.0]
    assert report["refused_at_first"] == 1
    assert (report["longest_gap_s"], report["longest_ttft_s"]) == (3.0, 4.0)
    assert summary([], [])["problems"] == []


def test_what_was_seen_of_one_fault() -> None:
    answers = [
        answer("identical", 0.0, 1.0, longest_gap_s=9.0, ttft_s=9.0),
        answer("identical", 0.0, 5.0, longest_gap_s=2.0, ttft_s=8.0),  # was there before
        answer("identical", 4.0, 6.0, longest_gap_s=1.0, ttft_s=0.7),
        answer("identical", 21.0, 22.0, longest_gap_s=9.0, ttft_s=9.0),
    ]
    seen = window(answers, 3.0, 20.0)
    assert (seen["requests"], seen["longest_gap_s"], seen["longest_ttft_s"]) == (2, 2.0, 0.7)


def test_messages_that_differ_in_numbers_only_are_the_same() -> None:
    assert plain("no answer in 20 s") == plain("no answer in 5 s") != plain("no answer in s")
