"""What a gateway remembers of late: samples, decisions, requests. Bounded, and true."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pd.gateway.decisions import MAX_DECISIONS, Decisions
from pd.gateway.history import INTERVAL_S, MAX_SAMPLES, History
from pd.gateway.journal import MAX_ENDED, Journal
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.stream import RunningRequest, TokenStream
from pd.messages import CellStatus
from pd.timeline import Timeline
from pd.types import SLO, Notice, Request, SamplingParams, TokenEvent


def request(number: int, at: float, tokens: int = 2) -> RunningRequest:
    """A request that came at this time."""
    made = Request(
        f"r-{number}", "g", (1, 2), SamplingParams(max_tokens=tokens), slo=SLO(1.0, 1.0),
        tenant_class="default",
    )  # fmt: skip
    stream = TokenStream([made], at, max_backlog=9, cancel=lambda running, indices: None)
    return stream.requests[0]


def finish(running: RunningRequest, ttft_s: float) -> RunningRequest:
    """It gets all its tokens, a tenth of a second apart."""
    count = running.record.request.params.max_tokens
    for position in range(count):
        last: Any = "length" if position + 1 == count else None
        running.record.on_token(TokenEvent(running.id, 0, 0, position, 5, last))
        running.timeline.clocks[0].arrived(running.timeline.arrival_s + ttft_s + position / 10)
    running.timeline.prefilled(0.0, ttft_s / 2)
    running.timeline.end_s = running.timeline.clocks[0].last_s
    return running


def status(*nodes: tuple[str, str, int], **fields: Any) -> CellStatus:
    rows = tuple({"id": i, "role": role, "epoch": epoch} for i, role, epoch in nodes)
    return CellStatus(True, "", rows, **fields)


# ------------------------------------------------------------------ history
def test_samples_are_rates_and_percentiles() -> None:
    metrics = GatewayMetrics()
    history = History(metrics)
    cell = status(("d", "decode", 1))
    history.tick(0.0, 1000.0, lambda: cell)
    for i in range(10):
        metrics.first_token(0.1 * (i + 1), 1.0)
        metrics.ended(finish(request(i, 0.0), ttft_s=0.5))
    history.tick(INTERVAL_S, 1002.0, lambda: cell)
    columns = history.columns()["columns"]
    assert columns["t"] == [1002.0]
    assert columns["attained_per_s"] == columns["finished_per_s"] == [10 / INTERVAL_S]
    assert columns["tokens_per_s"] == [20 / INTERVAL_S]
    assert columns["ttft_p50"] == [0.5] and columns["ttft_p99"] == [1.0]
    assert columns["nodes"] == [1]
    history.tick(INTERVAL_S * 1.5, 1003.0, lambda: cell)
    assert len(history.columns()["columns"]["t"]) == 1, "not due yet"
    history.tick(100.0, 1100.0, lambda: cell)
    assert history.columns(since=1002.0)["columns"]["ttft_p50"] == [None], "long ago"


def test_bytes_sent_do_not_fall_when_a_process_is_replaced() -> None:
    history = History(GatewayMetrics())

    def tick(number: int, *nodes: dict[str, Any]) -> None:
        cell = CellStatus(True, "", nodes)
        history.tick(number * INTERVAL_S, float(number), lambda: cell)

    tick(0, {"id": "p", "epoch": 1, "transferred_bytes": 1000e6})
    tick(1, {"id": "p", "epoch": 1, "transferred_bytes": 3000e6})
    tick(2, {"id": "p", "epoch": 2, "transferred_bytes": 10e6})
    tick(3, {"id": "p", "epoch": 2, "transferred_bytes": 410e6})
    tick(4)
    rates = history.columns()["columns"]["transferred_mb_per_s"]
    assert rates == [2000 / INTERVAL_S, 0.0, 400 / INTERVAL_S, 0.0]


def test_the_history_is_bounded() -> None:
    history = History(GatewayMetrics())
    for i in range(MAX_SAMPLES + 50):
        history.tick(i * INTERVAL_S, float(i), lambda: CellStatus(False, "", ()))
    assert len(history.columns()["columns"]["t"]) == MAX_SAMPLES
    assert history.columns(since=1e9)["columns"]["t"] == []


# ------------------------------------------------------------------ decisions
def test_who_comes_and_goes_is_told_once() -> None:
    decisions = Decisions()
    both = (("p", "prefill", 1), ("d", "decode", 2))
    decisions.status(status(*both), 0.0)
    decisions.status(status(*both), 1.0)
    assert decisions.latest() == [], "what was there at first is no news"
    decisions.status(status(both[0]), 2.0)
    assert [each["what"] for each in decisions.latest()] == ["d left"]
    assert decisions.gone(3.0) == [{"id": "d", "role": "decode", "since": 2.0}]
    decisions.status(status(both[0], ("d", "decode", 3)), 6.5)
    assert decisions.latest()[0]["what"] == "d joined as a decode node"
    assert "away for 4.5 s" in decisions.latest()[0]["reason"]
    assert decisions.gone(7.0) == []
    decisions.status(status(("p", "mixed", 1), ("d", "decode", 4)), 8.0)
    assert [each["kind"] for each in decisions.latest(2)] == ["node", "role"]
    assert len(decisions.latest()) == 4


def test_what_the_coordinator_says_again_is_one_decision() -> None:
    decisions = Decisions()
    first = Notice(1.0, "change", "d becomes a prefill node", "it is needed", {"prefill": 1.2})
    second = Notice(50.0, "kill", "p is ended", "silent for 10 s")
    for told in ((), (first,), (first,), (first, second), (second,)):
        decisions.status(status(("p", "prefill", 1), notices=told), 60.0)
    assert [each["what"] for each in decisions.latest()] == [second.what, first.what]
    assert decisions.latest()[1]["numbers"] == {"prefill": 1.2}


def test_an_overload_is_one_line() -> None:
    decisions = Decisions()
    for i in range(5000):
        decisions.add("reject", "requests are refused with 429", f"reason {i}", i * 0.001)
    (only,) = decisions.latest()
    assert (only["times"], only["reason"]) == (5000, "reason 4999")
    decisions.add("reject", "requests are refused with 429", "later", 100.0)
    assert len(decisions.latest()) == 2


def test_decisions_are_bounded() -> None:
    decisions = Decisions()
    for i in range(MAX_DECISIONS * 2):
        decisions.add("node", f"n-{i} left", "", float(i))
    assert len(decisions.latest()) == MAX_DECISIONS == len(decisions._last)
    assert decisions.latest(1)[0]["seq"] == MAX_DECISIONS * 2


# ------------------------------------------------------------------ requests
def test_recent_requests_are_bounded_and_newest_first() -> None:
    now = [0.0]
    journal = Journal(GatewayMetrics(), lambda: now[0], wall=lambda: 5000.0 + now[0])
    for i in range(MAX_ENDED + 10):
        now[0] = float(i)
        running = finish(request(i, now[0]), 0.25)
        journal.ended(running, running.timeline.end_s)
    told = journal.recent([request(1000, 1.0), request(1001, 2.0)], 5)
    assert [each["request_id"] for each in told["running"]] == ["r-1001", "r-1000"]
    assert [each["outcome"] for each in told["running"]] == ["running"] * 2
    assert [each["request_id"] for each in told["ended"]] == [f"r-{i}" for i in range(209, 204, -1)]
    assert len(journal.recent([], 10**6)["ended"]) == MAX_ENDED
    last = told["ended"][0]
    # The wall clock is read when it has ended, 0.35 s after its arrival.
    assert last["attained"] is True and abs(last["arrived_at"] - (5209.0 - 0.35)) < 1e-6


moments = st.floats(0.0, 100.0)


@given(
    ttft=moments, admitted=st.none() | moments, fetch=moments, compute=st.none() | moments,
    transfer=st.none() | moments, gaps=st.lists(moments, max_size=4), over=st.booleans(),
)  # fmt: skip
def test_spans_cover_a_life_without_gaps(
    ttft: float, admitted: float | None, fetch: float, compute: float | None,
    transfer: float | None, gaps: list[float], over: bool,
) -> None:  # fmt: skip
    timeline = Timeline(10.0, 1)
    if admitted is not None:
        timeline.admitted(10.0 + admitted)
    now = 10.0 + ttft
    timeline.clocks[0].arrived(now)
    if compute is not None:
        timeline.prefilled(fetch, compute)
    for gap in gaps:
        now += gap
        timeline.clocks[0].arrived(now)
    if transfer is not None:
        timeline.moved(transfer)
    if over:
        timeline.end_s = now
    spans = timeline.spans(now)
    edges = [10.0, *(span.end_s for span in spans)]
    assert [span.start_s for span in spans] == edges[:-1]
    assert sorted(set(edges)) == edges, "none is empty"
    assert len({span.name for span in spans}) == len(spans)
    assert abs(edges[-1] - now) < 1e-6


def test_a_waiting_request_has_spans_up_to_now() -> None:
    timeline = Timeline(10.0, 1)
    assert [tuple(span) for span in timeline.spans(11.0)] == [("admit", 10.0, 11.0)]
    timeline.admitted(10.5)
    timeline.admitted(10.9)
    assert [tuple(span) for span in timeline.spans(11.0)] == [
        ("admit", 10.0, 10.5), ("queue", 10.5, 11.0)
    ]  # fmt: skip


def test_interruptions_are_kept_with_their_reasons() -> None:
    journal = Journal(GatewayMetrics(), lambda: 12.0, wall=lambda: 5000.0)
    running = request(1, 10.0)
    for _ in range(40):
        journal.resumed(running, "decode node d was lost")
    told = journal.recent([running], 1)["running"][0]
    assert told["interruptions"][0] == {"at_s": 2.0, "reason": "decode node d was lost"}
    assert len(told["interruptions"]) == 16
    assert journal.decisions.latest()[0]["times"] == 40
