"""How many prompt tokens a step may have beside outputs with targets."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.policies.chunk import (
    LEAST_TOKENS,
    SHARE,
    TRICKLE,
    chunk_tokens,
    trickle_steps,
    worth_tokens,
)
from pd.policies.pace import Pace
from pd.policies.steps import StepTimes
from pd.types import SLO, NodeSnapshot, Request, SamplingParams, Sequence, Work

BASE_S, SEQ_S, TOKEN_S = 0.02, 0.001, 0.001
READ_S = 1e-5
# Sequences, prompt tokens and where these end in their prompt.
LOADS = [
    (1 + i % 7, chunk, 500 * (i % 13) + chunk if chunk else 0)
    for i in range(300)
    for chunk in ((0, 0, 20, 300)[i % 4],)
]
BUDGET = 512


@cache
def learnt() -> StepTimes:
    """Of a node whose step takes 20 ms, and one more for each sequence and prompt token."""
    times = StepTimes()
    for i in range(60):
        seqs, tokens = 1 + i % 7, (0, 0, 20, 512)[i % 4]
        times.add(seqs, 100 * seqs, tokens, 0, BASE_S + SEQ_S * seqs + TOKEN_S * tokens)
    return times


@cache
def reading(per_token_s: float = READ_S) -> StepTimes:
    """Of one whose chunks also read what is before them in their prompt."""
    times = StepTimes()
    for seqs, chunk, read in LOADS:
        times.add(seqs, 100 * seqs, chunk, read, step_s(seqs, chunk, read * per_token_s))
    return times


@cache
def pace_of(per_token_s: float) -> Pace:
    """What a coordinator learns of such a node."""
    pace = Pace()
    for i, (seqs, chunk, read) in enumerate(LOADS):
        pace.observe(
            NodeSnapshot(
                "n", "mixed", 1, steps=i + 1, step_s=step_s(seqs, chunk, read * per_token_s),
                step_seqs=seqs, step_context=100 * seqs, step_prompt_tokens=chunk,
                step_prompt_context=read,
            )
        )  # fmt: skip
    return pace


def step_s(seqs: int, chunk: int, reading_s: float = 0.0) -> float:
    return BASE_S + SEQ_S * seqs + TOKEN_S * chunk + reading_s


def output(tpot_s: float | None, num_output: int = 1, max_tokens: int = 100) -> Sequence:
    """One whose first token was drawn at time 0."""
    params = SamplingParams(max_tokens=max_tokens)
    request = Request("r", "g", (1, 2, 3), params, slo=SLO(None, tpot_s))
    seq = Sequence(Work(request, (0,)), 0)
    for _ in range(num_output):
        seq.append(7)
    return seq


def tokens(*seqs: Sequence, now: float = 0.0, budget: int = BUDGET, steps_without: int = 0) -> int:
    context = 100 * len(seqs)
    return chunk_tokens(seqs, context, budget, learnt(), now, steps_without=steps_without)


def test_without_targets_or_before_anything_is_known_the_budget_is_all() -> None:
    assert tokens(output(None)) == BUDGET
    assert chunk_tokens([output(0.03)], 100, BUDGET, StepTimes(), 0.0) == BUDGET


def test_a_step_takes_what_the_target_leaves() -> None:
    assert tokens(output(0.1)) == pytest.approx((SHARE * 0.1 - BASE_S - SEQ_S) / TOKEN_S, abs=3)


def test_who_is_ahead_can_wait_longer_and_who_is_behind_cannot() -> None:
    ahead, level = output(0.1, num_output=5), output(0.1)
    assert tokens(ahead) > 3 * tokens(level)
    assert tokens(ahead, level) < tokens(level) + 5
    behind = output(0.1, num_output=3)
    assert tokens(behind, now=0.3) == 0
    # Sixteen tokens take 16 ms: one in four steps is one of 4 % in the mean.
    assert trickle_steps(LEAST_TOKENS * TOKEN_S, 0.1) == pytest.approx(4.0)
    assert tokens(behind, now=0.3, steps_without=2) == 0
    assert tokens(behind, now=0.3, steps_without=3) == LEAST_TOKENS


def test_who_misses_its_target_whatever_is_done_is_not_waited_for() -> None:
    assert tokens(output(0.0205)) == BUDGET
    late = output(0.05, num_output=9, max_tokens=12)
    assert tokens(late, now=3.0) == BUDGET
    assert tokens(late, output(0.1), now=0.0) < BUDGET


@given(
    st.lists(st.tuples(st.floats(0.005, 1.0), st.integers(1, 50)), min_size=1, max_size=8),
    st.floats(0.0, 10.0),
    st.integers(1, 4096),
)
def test_prompts_never_stand_still(
    targets: list[tuple[float, int]], now: float, budget: int
) -> None:
    seqs = [output(tpot_s, num_output) for tpot_s, num_output in targets]
    without = trickle_steps(LEAST_TOKENS * TOKEN_S, min(tpot_s for tpot_s, _ in targets))
    given = tokens(*seqs, now=now, budget=budget, steps_without=math.ceil(1.05 * without))
    assert min(budget, LEAST_TOKENS) <= given <= budget


def test_long_chunks_do_not_drown_what_short_steps_say() -> None:
    """A chunk's time grows with its length faster than linearly."""
    times = StepTimes()
    for i in range(200):
        chunk = 500 if i % 2 else 0
        noise = 1.0 + 0.3 * ((i // 2) % 2)
        times.add(4, 400, chunk, 0, 0.024 if not chunk else noise * 0.6)
    assert times.step_s(4, 400) == pytest.approx(0.024, rel=0.05)


def test_the_rate_beside_outputs_is_what_their_targets_leave() -> None:
    pace = Pace()
    assert pace.prompt_rate(4, 400, 0.1, 1000) is None
    snapshot = NodeSnapshot("n", "mixed", 1)
    for i in range(60):
        seqs, prompt_tokens = 1 + i % 7, (0, 0, 20, 512)[i % 4]
        step_s = BASE_S + SEQ_S * seqs + TOKEN_S * prompt_tokens
        pace.observe(
            replace(
                snapshot, steps=i + 1, step_s=step_s, step_seqs=seqs, step_context=100 * seqs,
                step_prompt_tokens=prompt_tokens,
            )
        )  # fmt: skip
    assert pace.prompt_rate(4, 400, 0.1, 1000) == pytest.approx(760, rel=0.05)
    least = pace.prompt_rate(4, 400, SHARE * 0.02, 1000)
    chunk_s = LEAST_TOKENS * TOKEN_S
    steps = chunk_s / (TRICKLE * 0.02)
    assert least == pytest.approx(LEAST_TOKENS / (steps * 0.024 + chunk_s), rel=0.05)


# ---------------------------------------------------------------- chunks that read what is before
def test_what_chunks_read_is_told_from_what_they_compute() -> None:
    times = reading()
    assert times.chunk_s(4000) == pytest.approx(0.04, rel=0.1)
    assert times.per_prompt_token_s == pytest.approx(TOKEN_S + READ_S, rel=0.05)
    assert times.step_s(4, 400) == pytest.approx(step_s(4, 0), rel=0.05)


def test_a_chunk_that_would_mostly_read_is_put_off_until_it_is_worth_it() -> None:
    times, start = reading(), 4000  # 40 ms before its first token: worth 40 tokens
    worth = worth_tokens(times.chunk_s(start), times.per_prompt_token_s)
    assert 30 < worth < 50

    def beside(seq: Sequence, now: float, steps_without: int = 0) -> int:
        return chunk_tokens([seq], 100, BUDGET, times, now, start, steps_without)

    behind = output(0.05, num_output=10)
    assert beside(behind, now=0.45) == 0
    # It may run early where the output can make up for it, not where that is about to end ...
    assert beside(behind, now=0.43) == worth
    assert beside(output(0.05, num_output=10, max_tokens=11), now=0.43) == 0
    # ... whoever is ahead waits for a large one, and nothing is put off for ever.
    assert beside(output(0.05, num_output=10), now=0.2) > 2 * worth
    steps = trickle_steps(0.04 + worth * TOKEN_S, 0.05)
    assert steps == pytest.approx(40, rel=0.15)
    assert beside(behind, now=0.45, steps_without=math.ceil(1.1 * steps)) == worth


@given(
    st.lists(st.tuples(st.floats(0.005, 1.0), st.integers(1, 50)), min_size=1, max_size=8),
    st.floats(0.0, 10.0), st.integers(1, 4096), st.integers(0, 10_000), st.integers(0, 1000),
)  # fmt: skip
def test_a_chunk_is_worth_it_or_none(
    targets: list[tuple[float, int]], now: float, budget: int, start: int, steps_without: int
) -> None:
    seqs = [output(tpot_s, num_output) for tpot_s, num_output in targets]
    times = reading()
    given = chunk_tokens(seqs, 100 * len(seqs), budget, times, now, start, steps_without)
    worth = min(budget, worth_tokens(times.chunk_s(start), times.per_prompt_token_s))
    assert given == 0 or worth <= given <= budget
    worth_s = times.chunk_s(start) + worth * times.per_prompt_token_s
    if steps_without + 1 >= trickle_steps(worth_s, min(tpot_s for tpot_s, _ in targets)):
        assert given > 0


@settings(max_examples=40)
@given(
    st.lists(st.integers(40, 120), min_size=1, max_size=6),
    st.floats(1.06, 1.6),
    st.sampled_from((0.0, 1e-6, READ_S)),
)
def test_tight_targets_are_kept_beside_a_prompt_that_is_always_there(
    lengths: list[int], of_alone: float, read_s: float
) -> None:
    """Of little more than what steps take without it."""
    tpot_s = of_alone * step_s(len(lengths), 0)
    ended, rate, _ = _serve(lengths, tpot_s, read_s, 3000, None)
    assert all(each <= 1.02 * tpot_s for each in ended)
    assert rate > 0.0


@settings(max_examples=40)
@given(
    st.lists(st.integers(20, 120), min_size=1, max_size=6),
    st.floats(0.09, 0.3),
    st.sampled_from((0.0, 1e-6, READ_S, 4e-5)),
    st.integers(100, 6000),
)
def test_outputs_keep_their_targets_and_prompts_move(
    lengths: list[int], tpot_s: float, read_s: float, prompt: int
) -> None:
    """A node that always has such a prompt, until its outputs have ended: each of them is within
    its target, and at least as many tokens are computed as the best fixed chunk does within it."""
    ended, rate, end_s = _serve(lengths, tpot_s, read_s, prompt, None)
    assert all(each <= 1.01 * tpot_s for each in ended)
    for fixed in (16, 64, 256, 512):
        ended, least, _ = _serve(lengths, tpot_s, read_s, prompt, fixed)
        if all(each <= SHARE * tpot_s for each in ended):
            assert rate >= 0.85 * least - BUDGET / end_s


@settings(max_examples=40)
@given(
    st.integers(1, 6),
    st.floats(0.09, 0.3),
    st.sampled_from((0.0, 1e-6, READ_S, 4e-5)),
    st.integers(1000, 6000),
)
def test_what_is_predicted_of_prompts_is_what_chunks_let_through(
    seqs: int, tpot_s: float, read_s: float, prompt: int
) -> None:
    _, rate, _ = _serve([120] * seqs, tpot_s, read_s, prompt, None)
    predicted = pace_of(read_s).prompt_rate(seqs, 100 * seqs, SHARE * tpot_s, prompt)
    assert predicted is not None and 0.75 * rate < predicted < 1.15 * rate


def _serve(
    lengths: list[int], tpot_s: float, read_s: float, prompt: int, fixed: int | None
) -> tuple[list[float], float, float]:
    """(TPOT of each output, prompt tokens a second, when the last output ended)."""
    times = reading(read_s)
    running = [output(tpot_s, max_tokens=length) for length in lengths]
    now, computed, tokens, without = 0.0, 0, 0, 0
    ended = []
    while running:
        chunk = fixed if fixed is not None else chunk_tokens(
            running, 100 * len(running), BUDGET, times, now, computed, without,
        )  # fmt: skip
        chunk = min(chunk, prompt - computed)
        without = 0 if chunk else without + 1
        reads = read_s * (computed + chunk) if chunk else 0.0
        now += step_s(len(running), chunk, reads)
        tokens += chunk
        computed = (computed + chunk) % prompt
        for seq in running:
            seq.append(7)
        ended += [now / (s.num_output - 1) for s in running if s.num_output == s.params.max_tokens]
        running = [seq for seq in running if seq.num_output < seq.params.max_tokens]
    return ended, tokens / now, now
