"""What a set of roles can serve in time: it follows nodes, targets and requests as it must."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from demands import CHAT, SPEED
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.policies.goodput import (
    Demand,
    Goodput,
    Roles,
    Speed,
    _late,
    busy_share,
    decode_per_s,
    mixed_per_s,
    most_seqs,
    prefill_per_s,
)

PAIR, MIXED = Roles(prefill=1, decode=1), Roles(mixed=2)


def goodput(nodes: Roles, demand: Demand, speed: Speed) -> float:
    return Goodput(demand, speed)(nodes)


demands = st.builds(
    Demand,
    per_s=st.floats(0, 100),
    prompt_tokens=st.floats(1, 1e4),
    prompt_spread=st.floats(0, 4),
    outputs=st.floats(1, 8),
    output_tokens=st.floats(1, 2000),
    context=st.floats(1, 1e4),
    context_spread=st.floats(0, 4),
    ttft_s=st.floats(0.01, 20),
    tpot_s=st.floats(0.001, 1),
)
speeds = st.builds(
    Speed,
    base_s=st.floats(0, 0.1),
    per_seq_s=st.floats(0, 0.01),
    per_prompt_token_s=st.floats(1e-6, 0.01),
    max_seqs=st.floats(1, 512),
    room_tokens=st.floats(1e3, 1e7),
)
counts = st.integers(0, 6)
roles = st.builds(Roles, counts, counts, counts)


def test_tokens_that_may_not_wait_want_a_pair_and_prompts_that_may_not_want_mixed_nodes() -> None:
    patient = replace(CHAT, ttft_s=6.0, tpot_s=0.036)
    assert goodput(PAIR, patient, SPEED) > 1.2 * goodput(MIXED, patient, SPEED)
    hurried = replace(CHAT, ttft_s=1.0, tpot_s=0.2)
    assert goodput(MIXED, hurried, SPEED) > 1.2 * goodput(PAIR, hurried, SPEED)


@given(roles, demands, speeds, st.sampled_from(("prefill", "decode", "mixed")))
def test_a_node_more_never_serves_less(
    nodes: Roles, demand: Demand, speed: Speed, role: str
) -> None:
    more = replace(nodes, **{role: getattr(nodes, role) + 1})
    assert goodput(more, demand, speed) >= goodput(nodes, demand, speed) >= 0.0


@given(roles, demands, speeds, st.floats(1.01, 5))
def test_later_targets_and_shorter_requests_never_serve_less(
    nodes: Roles, demand: Demand, speed: Speed, factor: float
) -> None:
    now = goodput(nodes, demand, speed)
    for easier in (
        replace(demand, ttft_s=demand.ttft_s * factor),
        replace(demand, prompt_tokens=demand.prompt_tokens / factor),
        replace(demand, prompt_spread=demand.prompt_spread / factor),
    ):
        assert goodput(nodes, easier, speed) >= now * (1 - 1e-5) - 1e-9


@given(demands, speeds, st.integers(1, 100))
def test_no_node_computes_more_than_it_has_time_for(
    demand: Demand, speed: Speed, nodes: int
) -> None:
    work_s = demand.prompt_tokens * speed.per_prompt_token_s
    assert prefill_per_s(demand, speed, nodes) * (speed.base_s + work_s) <= nodes
    busy_s = work_s + demand.outputs * demand.output_tokens * speed.per_seq_s
    assert mixed_per_s(demand, speed, nodes) * busy_s <= nodes * (1.0 + 1e-6)


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0, 4))
def test_one_in_ten_waits_too_long_at_the_share_that_is_allowed(
    target_s: float, work_s: float, spread: float
) -> None:
    share = busy_share(target_s, work_s, spread, 1)
    assert 0.0 < share <= 1.0
    spare_s = max(0.0, target_s - work_s)
    # Of an M/M/1 queue, whose spread is 1, this is exact.
    late = share * math.exp(-(1 - share) * 2 * spare_s / ((1 + spread) * work_s))
    assert late == pytest.approx(0.1, rel=1e-3)


@given(demands, speeds, st.integers(1, 100))
def test_a_prompt_that_may_go_to_more_nodes_waits_less(
    demand: Demand, speed: Speed, nodes: int
) -> None:
    for per_s in (prefill_per_s, mixed_per_s):
        each = per_s(demand, speed, nodes) / nodes
        assert per_s(demand, speed, nodes + 1) / (nodes + 1) >= each * (1.0 - 1e-9)
        assert per_s(demand, speed, 0) == 0.0


def test_of_a_queue_for_many_few_wait_at_all() -> None:
    # Erlang's C where 0.8 of the time is busy; a target that leaves no time to spare is missed by
    # whoever has to wait.
    for nodes, erlang in ((1, 0.80), (2, 0.711), (10, 0.409), (30, 0.173)):
        assert _late(0.8, 1.0, 1.0, 1.0, nodes) == pytest.approx(erlang, abs=0.05)


def test_a_step_that_is_too_long_by_itself_serves_nobody() -> None:
    fast = replace(CHAT, tpot_s=0.021)
    assert decode_per_s(fast, SPEED, 1) == 0.0 and mixed_per_s(fast, SPEED, 1) == 0.0
    assert goodput(PAIR, fast, SPEED) == goodput(MIXED, fast, SPEED) == 0.0


def test_room_bounds_what_decodes() -> None:
    easy = replace(CHAT, tpot_s=10.0)
    few = replace(SPEED, max_seqs=4)
    step_s = 0.02 + 4 * 0.0015
    assert decode_per_s(easy, few, 1) == pytest.approx(4 / (45 * step_s))
    assert mixed_per_s(easy, few, 1) < mixed_per_s(easy, SPEED, 1)


@settings(max_examples=50)
@given(roles, demands, speeds, st.integers(0, 2), st.integers(0, 2))
def test_the_best_roles_are_those_of_all_that_there_are(
    now: Roles, demand: Demand, speed: Speed, min_prefill: int, min_decode: int
) -> None:
    nodes = now.prefill + now.decode + now.mixed
    kept = now.prefill + now.mixed >= min_prefill and now.decode + now.mixed >= min_decode
    if not kept:
        return
    serves = Goodput(demand, speed)
    best = serves.best(now, min_prefill, min_decode)
    assert best.prefill + best.decode + best.mixed == nodes
    assert best.prefill + best.mixed >= min_prefill and best.decode + best.mixed >= min_decode
    for prefill in range(nodes + 1):
        for decode in range(nodes + 1 - prefill):
            other = Roles(prefill, decode, nodes - prefill - decode)
            if other.prefill + other.mixed >= min_prefill and (
                other.decode + other.mixed >= min_decode
            ):
                assert serves(best) >= serves(other) * (1 - 1e-9)
    if serves(now) == serves(best):
        assert best == now


def test_changes_are_counted() -> None:
    assert Roles(mixed=3).distance(Roles(2, 1)) == 3
    assert Roles(1, 2, 0).distance(Roles(2, 1, 0)) == 1
    assert Roles(1, 1, 1).distance(Roles(1, 1, 1)) == 0


def test_what_there_is_is_named() -> None:
    assert str(Roles(2, 0, 1)) == "2 prefill + 1 mixed"
    assert Roles(2, 0, 1).changed("prefill", "decode") == Roles(1, 1, 1)


@given(demands, speeds)
def test_what_is_there_nine_times_of_ten_fits(demand: Demand, speed: Speed) -> None:
    mean = most_seqs(demand, speed, 1)
    assert 0.0 < mean <= speed.max_seqs
    most = mean + 1.28 * math.sqrt(mean * (1.0 + demand.context_spread))
    assert most * demand.context <= speed.room_tokens * (1 + 1e-9)
    wider = replace(demand, context_spread=demand.context_spread + 1.0)
    assert most_seqs(wider, speed, 1) <= mean
    assert most_seqs(demand, replace(speed, room_tokens=2 * speed.room_tokens), 1) >= mean


def test_few_long_contexts_leave_room_for_fewer_than_many_alike() -> None:
    """515,000 tokens are 35 contexts of 14,800; of Mooncake's lengths some 25 in the mean."""
    speed = replace(SPEED, room_tokens=515_000)
    alike = most_seqs(replace(CHAT, context=14_800, context_spread=0.0), speed, 1)
    mooncake = most_seqs(replace(CHAT, context=14_800, context_spread=1.5), speed, 1)
    assert (alike, mooncake) == (pytest.approx(28, abs=0.5), pytest.approx(24.7, abs=0.1))
