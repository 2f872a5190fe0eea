"""The record under every order of events a cell can produce."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pd.gateway.record import RequestRecord
from pd.types import Request, SamplingParams, TokenEvent, Work


def make(n: int = 1, max_tokens: int = 8, **options: int) -> RequestRecord:
    params = SamplingParams(n=n, max_tokens=max_tokens)
    return RequestRecord(Request("r", "gw", (1, 2, 3), params), **options)


def token_at(index: int, position: int) -> int:
    return index * 1000 + position


def event(index: int, position: int, attempt: int = 0, last: int = 8) -> TokenEvent:
    finish = "length" if position == last - 1 else None
    return TokenEvent("r", index, attempt, position, token_at(index, position), finish)


def test_tokens_in_order_pass_straight_through() -> None:
    record = make(max_tokens=3)
    for position in range(3):
        one = event(0, position, last=3)
        assert record.on_token(one) == [one]
    assert record.finished
    assert record.sequences[0].finish == "length"


def test_a_token_from_the_decode_node_waits_for_the_first_from_the_prefill_node() -> None:
    record = make()
    assert record.on_token(event(0, 1)) == []
    assert record.gaps == (0,)
    assert [e.position for e in record.on_token(event(0, 0))] == [0, 1]
    assert record.gaps == ()


def test_stale_repeated_and_impossible_events_are_dropped() -> None:
    record = make()
    record.on_token(event(0, 0))
    assert record.on_token(event(0, 0)) == []
    assert record.on_token(event(0, 1, attempt=1)) == []
    assert record.on_token(event(7, 0)) == []
    assert record.on_token(event(-1, 0)) == []
    assert record.on_token(event(0, 10_000)) == []
    assert record.gaps == ()


def test_an_interruption_continues_from_what_was_delivered() -> None:
    record = make()
    record.on_token(event(0, 0))
    record.on_token(event(0, 2))  # early: not the client's yet
    (work,) = record.on_interrupted((0,), 0, "node lost")
    assert work == Work(record.request, (0,), (token_at(0, 0),), 1)
    assert record.on_token(event(0, 1, attempt=0)) == []
    assert record.on_interrupted((0,), 0, "again, late") == []
    assert [e.position for e in record.on_token(event(0, 1, attempt=1))] == [1]


def test_sequences_without_a_token_stay_one_piece_of_work() -> None:
    record = make(n=4)
    record.on_token(event(2, 0))
    fresh, resumed = record.on_interrupted((0, 1, 2, 3), 0, "lost")
    assert fresh == Work(record.request, (0, 1, 3), (), 1)
    assert resumed == Work(record.request, (2,), (token_at(2, 0),), 1)
    assert record.attempts == 3


def test_an_interruption_after_the_last_token_is_ignored() -> None:
    record = make(max_tokens=1)
    record.on_token(event(0, 0, last=1))
    assert record.on_interrupted((0,), 0, "late") == []
    assert record.sequences[0].finish == "length"


def test_fruitless_attempts_are_bounded_and_progress_resets_the_count() -> None:
    record = make(max_fruitless=2)
    for attempt in range(2):
        assert record.on_interrupted((0,), attempt, "lost")
    record.on_token(event(0, 0, attempt=2))
    assert record.on_interrupted((0,), 2, "lost")
    assert record.on_interrupted((0,), 3, "lost")
    assert record.on_interrupted((0,), 4, "the node is gone") == []
    assert record.sequences[0].finish == "error"
    assert record.error is not None and "the node is gone" in record.error


def test_refusals_of_a_continuation_are_not_counted() -> None:
    record = make(max_fruitless=1)
    for attempt in range(20):
        assert record.on_refused((0,), attempt, "busy")


def test_cancel_names_only_what_still_runs() -> None:
    record = make(n=3, max_tokens=1)
    record.on_token(event(1, 0, last=1))
    assert record.cancel() == (0, 2)
    assert record.cancel() == ()
    assert record.finished
    assert [seq.finish for seq in record.sequences] == ["cancelled", "length", "cancelled"]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), length=st.integers(1, 12))
def test_every_position_is_delivered_once_in_order(
    data: st.DataObject, n: int, length: int
) -> None:
    record = make(n=n, max_tokens=length, max_fruitless=1000)
    delivered: list[list[int]] = [[] for _ in range(n)]
    # What nodes may still send: every attempt repeats and overlaps what came before it.
    sources = {(index, 0): 0 for index in range(n)}

    def deliver(index: int, position: int, attempt: int) -> None:
        for out in record.on_token(event(index, position, attempt, last=length)):
            assert out.position == len(delivered[out.index])
            delivered[out.index].append(out.token)

    for _ in range(data.draw(st.integers(0, 60))):
        index, attempt = data.draw(st.sampled_from(sorted(sources)))
        if data.draw(st.integers(0, 5)) == 0:
            for work in record.on_interrupted((index,), attempt, "lost"):
                for resumed in work.indices:
                    assert list(work.output) == delivered[resumed]
                    sources[resumed, work.attempt] = len(work.output)
        else:
            start = sources[index, attempt]
            deliver(index, data.draw(st.integers(start, length - 1)), attempt)
    for seq in record.sequences:  # finally the current attempts run to the end
        for position in range(sources[seq.index, seq.attempt], length):
            deliver(seq.index, position, seq.attempt)
    assert record.finished
    assert delivered == [[token_at(i, p) for p in range(length)] for i in range(n)]
