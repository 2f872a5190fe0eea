"""Numbers of messages: whatever a connection loses, each is taken once and in order, or missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.line import ASK_S, BEACONS, GIVE_UP_S, MAX_KEPT, MAX_KEPT_BYTES, Heard, Said, Verdict


def number(frame: bytes) -> int:
    return int(frame.decode())


@given(st.lists(st.booleans(), max_size=60))
def test_everything_arrives_once_and_in_order(lost: list[bool]) -> None:
    """`lost` says which frames are, of messages, beacons and requests; the last beacon is not."""
    said, heard, taken, now, num_beacons = Said(), Heard(1, 1), [], 0.0, 0
    fates = iter(lost)

    def arrives() -> bool:
        return not next(fates, False)

    def receive(sequence: int) -> None:
        if heard.judge(sequence, now, can_ask=True) is Verdict.TAKE:
            taken.append(sequence)

    for i in range(20):
        said.add(str(i).encode())
        if arrives():
            receive(i)
    for _ in range(2 * max(BEACONS)):
        now += ASK_S
        if said.beat():
            num_beacons += 1
            if arrives() or num_beacons == len(BEACONS):
                heard.beacon(said.sequence, said.oldest, now)
        if heard.asks(now) and arrives():
            for frame in said.again(heard.next_sequence, now):
                if arrives():
                    receive(number(frame))
        if heard._missing_since is not None:
            heard._missing_since = now  # here nothing is given up
    assert taken == list(range(20))


def test_what_nobody_can_be_asked_for_is_a_gap() -> None:
    heard = Heard(1, 1)
    assert heard.judge(0, 0.0, can_ask=False) is Verdict.TAKE
    assert heard.judge(2, 0.0, can_ask=False) is Verdict.GAP
    assert heard.judge(1, 0.0, can_ask=False) is Verdict.REPEATED
    assert heard.judge(3, 0.0, can_ask=False) is Verdict.TAKE


def test_what_is_not_sent_again_is_given_up() -> None:
    heard = Heard(1, 1)
    assert heard.judge(1, 0.0, can_ask=True) is Verdict.WAIT
    assert heard.judge(2, GIVE_UP_S / 2, can_ask=True) is Verdict.WAIT
    assert heard.judge(3, GIVE_UP_S, can_ask=True) is Verdict.GAP
    assert heard.judge(4, GIVE_UP_S, can_ask=True) is Verdict.TAKE
    assert heard.judge(6, 100.0, can_ask=True) is Verdict.WAIT, "the next time counts anew"
    assert heard.beacon(8, 0, 100.0 + GIVE_UP_S) is Verdict.GAP
    assert heard.judge(8, 100.0 + GIVE_UP_S, can_ask=True) is Verdict.TAKE


def test_a_beacon_says_what_is_gone() -> None:
    heard = Heard(1, 1)
    assert heard.beacon(0, 0, 0.0) is Verdict.TAKE
    assert heard.beacon(10, 4, 0.0) is Verdict.GAP
    assert heard.next_sequence == 4
    assert heard.beacon(10, 4, 0.0) is Verdict.WAIT
    assert heard.asks(0.0) and not heard.asks(ASK_S / 2) and heard.asks(ASK_S)
    for sequence in range(4, 10):
        assert heard.judge(sequence, 0.1, can_ask=True) is Verdict.TAKE
    assert not heard.asks(100.0)


def test_beacons_follow_the_last_message_only() -> None:
    said = Said()
    assert not any(said.beat() for _ in range(10)), "nothing was said yet"
    for _ in range(3):
        said.add(b"x")
        assert not said.beat(), "the next message is the beacon"
    beats = [number for number in range(1, 1000) if said.beat()]
    assert beats == sorted(BEACONS)
    said.again(2, 0.0)
    assert said.beat(), "what is sent again may be lost again"


def test_what_is_missing_is_asked_for_until_it_is_there_or_given_up() -> None:
    heard = Heard(1, 1)
    heard.judge(3, 0.0, can_ask=True)
    asked = [now for now in (step * ASK_S for step in range(1000)) if heard.asks(now)]
    assert GIVE_UP_S < asked[-1] <= 2 * GIVE_UP_S + ASK_S and len(asked) > 10
    for sequence in range(4):
        heard.judge(sequence, 0.0, can_ask=True)
    assert not heard.asks(1000.0)


@pytest.mark.parametrize("size", [1, MAX_KEPT_BYTES // 4, 2 * MAX_KEPT_BYTES])
def test_what_is_kept_is_bounded(size: int) -> None:
    said = Said()
    for _ in range(MAX_KEPT + 10 if size == 1 else 10):
        said.add(bytes(size))
    kept = said.again(0, 0.0)
    assert 1 <= len(kept) <= MAX_KEPT and sum(map(len, kept)) <= max(MAX_KEPT_BYTES, size)
    assert said.oldest == said.sequence - len(kept)
    assert said.again(0, ASK_S / 2) == [], "asked twice at once"
    said.restart()
    assert said.sequence == said.oldest == 0 and said.again(0, 9.0) == []
