"""Forecasts, what is rejected for them, and whether prompts are split."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from candidates import node, prompt, route
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.candidate import Candidate, Placement
from pd.policies.disaggregate import whole_is_better
from pd.policies.early_reject import reject_early, too_long
from pd.policies.forecast import UNKNOWN, Forecast, forecast
from pd.policies.pace import Pace
from pd.types import SLO, NodeSnapshot, Role


def paced(step_s: float = 0.01, per_seq_s: float = 0.001, prompt_token_s: float = 1e-4) -> Pace:
    """Of a node whose step takes so long, and so much longer for every sequence."""
    pace = Pace()
    for number in range(1, 300):
        seqs, tokens = number % 16, 64 if number % 5 == 0 else 0
        pace.observe(
            NodeSnapshot(
                "n", "decode", 1, steps=number,
                step_s=step_s + per_seq_s * seqs + prompt_token_s * tokens,
                step_seqs=seqs, step_context=(number * 37 % 500) * seqs, step_prompt_tokens=tokens,
            )
        )  # fmt: skip
    pace._prompt_tokens = 0.0
    return pace


def at(
    node_id: str, role: Role, *, pace: Pace | None = None, ended: float = 0.0, **more: Any
) -> Candidate:
    return replace(node(node_id, role, **more), pace=pace, ended_per_s=ended)


P = at("p0", "prefill", prefill_rate=1000.0)


def test_ttft_is_the_queue_and_the_prompt() -> None:
    busy = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=500, credit_tokens=300)
    told = forecast(busy, at("d0", "decode"), prompt(200))
    assert told.ttft_s == pytest.approx(1.0) and told.work_s == pytest.approx(0.2)
    assert told.tpot_s is None
    assert forecast(busy, at("d0", "decode"), prompt(200, measured=False)).ttft_s is None


def test_ttft_waits_for_decode_room_too() -> None:
    full = at("d0", "decode", num_running=8, num_reserving=3, ended=2.0)
    told = forecast(P, full, prompt(100))
    assert told.ttft_s == pytest.approx(2.0 + 0.1)  # four have to leave, two do a second


def test_tpot_counts_those_that_are_still_being_prefilled() -> None:
    pace = paced()
    alone = forecast(P, at("d0", "decode", pace=pace), prompt(100)).tpot_s
    assert alone == pytest.approx(0.011, rel=0.05)
    coming = at(
        "d0", "decode", pace=pace, num_running=2, num_reserving=3, credit_seqs=4, max_num_seqs=64
    )
    assert forecast(P, coming, prompt(100)).tpot_s == pytest.approx(0.02, rel=0.05)


def test_where_a_first_token_is_further_away_than_outputs_last_not_all_decode_at_once() -> None:
    """Outputs of a hundred tokens last about two seconds: of 16 prompts that come within ten,
    one after the other, about as many as come in two are there at a time."""
    counts = {"num_running": 4, "num_reserving": 16, "max_num_seqs": 64}
    node = at("d0", "decode", pace=paced(), **counts)

    def foreseen(waiting: int, mean_output: float | None) -> float:
        start = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=waiting)
        told = forecast(start, node, replace(prompt(100), mean_output=mean_output)).tpot_s
        assert told is not None
        return told

    all_of_them = pytest.approx(0.031, rel=0.05)
    assert foreseen(9900, None) == all_of_them  # how long they are is not known
    assert foreseen(1400, 100.0) == all_of_them  # the first of them will still be there
    assert foreseen(9900, 1000.0) == all_of_them
    assert foreseen(9900, 100.0) == pytest.approx(0.0165, rel=0.1)
    waits = [foreseen(waiting, 100.0) for waiting in range(900, 30_000, 300)]
    assert all(later <= sooner for sooner, later in pairwise(waits))


@given(
    st.integers(0, 300), st.integers(0, 300), st.integers(0, 10**9), st.floats(1.0, 1e4),
    st.sampled_from((0.0, 1e-9, 0.01)), st.sampled_from((1e-9, 0.001)),
    st.sampled_from((0.0, 5e-324, 2.0)),
)  # fmt: skip
def test_never_more_are_foreseen_than_there_are_nor_fewer_than_come(
    running: int, coming: int, waiting: int, mean_output: float, step_s: float, per_seq_s: float,
    ended: float,
) -> None:  # fmt: skip
    """Steps that take nothing when nobody decodes, queues of years, a node where none ever ends."""
    pace = paced(step_s, per_seq_s)
    counts = {"num_running": running, "num_reserving": coming, "max_num_seqs": 256}
    node = at("d0", "decode", pace=pace, ended=ended, **counts)
    start = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=waiting)
    told = forecast(start, node, replace(prompt(100), mean_output=mean_output)).tpot_s
    every = forecast(start, node, replace(prompt(100), mean_output=None)).tpot_s
    alone = forecast(start, at("d0", "decode", pace=pace), prompt(100)).tpot_s
    assert told is not None and every is not None and alone is not None
    assert alone * 0.999 <= told <= every * 1.001


@given(
    st.one_of(st.none(), st.floats(0.001, 100)), st.floats(0.0, 50),
    st.one_of(st.none(), st.floats(0.001, 10)), st.floats(0, 1), st.floats(0, 100),
    st.one_of(st.none(), st.floats(0.001, 100)), st.one_of(st.none(), st.floats(0.001, 10)),
    st.floats(0.1, 4), st.floats(1.0, 2.0),
)  # fmt: skip
def test_exactly_what_misses_a_target_is_rejected(
    ttft: float | None, work: float, tpot: float | None, per_seq: float, ended: float,
    ttft_target: float | None, tpot_target: float | None, margin: float,
    late: float,
) -> None:  # fmt: skip
    told = Forecast(ttft, work, tpot, per_seq, ended)
    overload = reject_early(told, SLO(ttft_target, tpot_target), margin, late)
    misses = tpot is not None and tpot_target is not None and tpot > margin * tpot_target
    if ttft is not None and ttft_target is not None and late * ttft > margin * ttft_target:
        # What need not wait may always try, unless it is predicted to be late by itself.
        misses = misses or ttft > work or work > max(1.0, margin) * ttft_target
    assert (overload is not None) == misses
    if overload is not None:
        assert overload.status == 429
        assert 1.0 <= overload.retry_after_s <= 60.0 and overload.message


def test_when_to_come_back_follows_from_the_prediction() -> None:
    late = reject_early(Forecast(9.0, 0.5, None), SLO(2.0))
    assert late is not None and late.retry_after_s == pytest.approx(7.0)
    alone = too_long(3.0, SLO(2.0))
    assert alone is not None and alone.status == 400 and "this prompt alone" in alone.message
    assert too_long(2.0, SLO(2.0)) is too_long(3.0, SLO(None, 0.1)) is None
    assert too_long(3.0, SLO(2.0), 1.5) is None and too_long(3.0, SLO(2.0), 0.5) is not None
    slow = reject_early(Forecast(0.1, 0.1, 0.05, per_seq_s=0.001, ended_per_s=2.0), SLO(2.0, 0.04))
    assert slow is not None and slow.retry_after_s == pytest.approx(5.0)  # ten have to leave
    assert "50 ms a token" in slow.message and "40 ms" in slow.message
    near = reject_early(Forecast(1.0, 0.5, 0.039), SLO(1.9, 0.04), 0.95, 2.0)
    assert near is not None and "in 2 s" in near.message and "takes 95%" in near.message
    near = reject_early(Forecast(None, 0.5, 0.039), SLO(1.9, 0.04), 0.95)
    assert near is not None and "39 ms" in near.message and "takes 95%" in near.message


def test_what_is_not_known_is_let_in() -> None:
    assert reject_early(UNKNOWN, SLO(1e-9, 1e-9)) is None


# ---------------------------------------------------------------- split or whole
def cell(**d0: Any) -> list[Candidate]:
    return [P, at("d0", "decode", pace=paced(), prefill_rate=1000.0, **d0)]


def test_always_and_never() -> None:
    nodes = [*cell(), at("m0", "mixed", prefill_rate=1000.0)]
    split, own, whole = Placement("p0", "d0"), Placement("d0", "d0"), Placement("m0", "m0")
    busy = [at("p0", "prefill", prefill_rate=1.0, waiting_tokens=10**6), *nodes[1:]]
    assert route(busy, prompt(), "cache_aware", "always") == split
    assert route(nodes[1:], prompt(), "cache_aware", "always") == whole
    assert route(nodes, prompt(), "cache_aware", "never") in (own, whole)
    assert route(nodes[:2], prompt(), "cache_aware", "never") == own
    assert route(nodes[:1], prompt(), "cache_aware", "never") is None


def test_without_targets_decode_nodes_only_decode() -> None:
    nodes = [at("p0", "prefill", prefill_rate=1.0, waiting_tokens=10**6), *cell()[1:]]
    assert route(nodes, prompt(10), "cache_aware") == Placement("p0", "d0")


def test_a_decode_node_takes_a_short_prompt_that_the_queue_would_make_late() -> None:
    late = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=5000)
    slo = SLO(1.0, 0.05)
    own, split = Placement("d0", "d0"), Placement("p0", "d0")
    nodes = [late, *cell()[1:]]
    assert route(nodes, prompt(16, slo=slo), "cache_aware") == own
    # Its step would be longer than a token may take: whoever decodes there would notice.
    assert route(nodes, prompt(160, slo=slo), "cache_aware") == split
    # A queue that meets the target is no reason.
    assert route(cell(), prompt(16, slo=slo), "cache_aware") == split
    # One prompt at a time.
    waiting = [late, *cell(num_waiting=1)[1:]]
    assert route(waiting, prompt(16, slo=slo), "cache_aware") == split


def test_a_mixed_node_is_chosen_by_both_targets() -> None:
    slow_steps = at("m0", "mixed", pace=paced(step_s=0.2), prefill_rate=1000.0)
    queue = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=800)
    nodes = [queue, *cell()[1:], slow_steps]
    tight_ttft, tight_tpot = SLO(0.5, 0.3), SLO(5.0, 0.05)
    assert route(nodes, prompt(400, slo=tight_ttft), "cache_aware") == Placement("m0", "m0")
    assert route(nodes, prompt(200, slo=tight_tpot), "cache_aware") == Placement("p0", "d0")


def test_near_equal_ways_are_split() -> None:
    slo = SLO(1.0, 0.1)
    assert not whole_is_better(Forecast(0.5, 0.1, 0.01), Forecast(0.52, 0.1, 0.01), slo)
    assert whole_is_better(Forecast(0.3, 0.1, 0.01), Forecast(0.5, 0.1, 0.01), slo)
    assert whole_is_better(Forecast(1.9, 0.1, 0.01), Forecast(2.0, 0.1, 0.01), slo)


def test_outputs_that_are_kept_to_their_targets_are_no_reason_to_split() -> None:
    slo = SLO(1.0, 0.1)
    # Nine tenths of the target a token, which prompts beside them take as long as they can.
    whole, split = Forecast(0.3, 0.1, 0.092), Forecast(0.5, 0.1, 0.01)
    assert whole_is_better(whole, split, slo, kept=True)
    assert not whole_is_better(whole, split, slo)
    # Longer than they are kept to: there are too many of them by themselves.
    assert not whole_is_better(whole._replace(tpot_s=0.095), split, slo, kept=True)


def test_two_tokens_are_not_split_where_their_time_would_be_the_hand_off() -> None:
    slo = SLO(1.0, 0.05)
    start = at("p0", "prefill", prefill_rate=1000.0)
    decode = at("d0", "decode", pace=paced(), handoff_s=0.06)
    mixed = at("m0", "mixed", pace=paced(), prefill_rate=1000.0)
    nodes = [start, decode, mixed]
    two, many = (prompt(100, slo=slo, max_tokens=number) for number in (2, 100))
    assert route(nodes, two, "cache_aware") == Placement("m0", "m0")
    assert route(nodes, many, "cache_aware") == Placement("p0", "d0")
    # Nobody is turned away for it: a later try would not find it shorter.
    told = forecast(start, decode, two)
    assert told.tpot_s is not None and told.tpot_s + told.handoff_s > slo.tpot_s
    assert reject_early(told, slo) is None
    one = prompt(100, slo=slo, max_tokens=1)
    assert forecast(start, decode, one).handoff_s == forecast(mixed, mixed, two).handoff_s == 0.0


def test_a_mixed_node_shares_the_prompts_and_a_decode_node_takes_what_would_be_late() -> None:
    slo = SLO(1.0, 0.014)
    outputs: dict[str, Any] = {"pace": paced(), "prefill_rate": 1000.0, "num_running": 1}
    queue = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=600)
    asked = prompt(100, slo=slo, paced=True)
    for role, name in (("mixed", "m0"), ("decode", "d1")):
        other = at(name, role, **outputs)
        whole = route([queue, at("d0", "decode"), other], asked, "cache_aware")
        told = forecast(other, other, asked)
        assert told.ttft_s is not None and told.ttft_s < 0.5
        assert told.tpot_s is not None and told.tpot_s > 0.8 * 0.014
        assert (whole == Placement(name, name)) == (role == "mixed")
    late = replace(queue, snapshot=replace(queue.snapshot, waiting_tokens=2000))
    d1 = at("d1", "decode", **outputs)
    assert route([late, d1], asked, "cache_aware") == Placement("d1", "d1")


def test_a_decode_node_takes_no_prompts_while_hand_offs_wait_for_room() -> None:
    asked = prompt(200, slo=SLO(1.0, 0.1), paced=True)
    late = at("p0", "prefill", prefill_rate=1000.0, waiting_tokens=5000)
    own, split = Placement("d0", "d0"), Placement("p0", "d0")
    assert route([late, *cell()[1:]], asked, "cache_aware") == own
    full = cell(num_waiting_room=1, num_reserving=1)[1:]
    assert route([late, *full], asked, "cache_aware") == split
