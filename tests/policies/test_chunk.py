"""How many prompt tokens a step may have beside outputs with targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.chunk import LEAST_TOKENS, SHARE, chunk_tokens
from pd.policies.pace import Pace
from pd.policies.steps import StepTimes
from pd.types import SLO, NodeSnapshot, Request, SamplingParams, Sequence, Work

BASE_S, SEQ_S, TOKEN_S = 0.02, 0.001, 0.001
BUDGET = 512


def learnt() -> StepTimes:
    """Of a node whose step takes 20 ms, and one more for each sequence and prompt token."""
    times = StepTimes()
    for i in range(60):
        seqs, tokens = 1 + i % 7, (0, 0, 20, 512)[i % 4]
        times.add(seqs, 100 * seqs, tokens, BASE_S + SEQ_S * seqs + TOKEN_S * tokens)
    return times


def output(tpot_s: float | None, num_output: int = 1, max_tokens: int = 100) -> Sequence:
    """One whose first token was drawn at time 0."""
    params = SamplingParams(max_tokens=max_tokens)
    request = Request("r", "g", (1, 2, 3), params, slo=SLO(None, tpot_s))
    seq = Sequence(Work(request, (0,)), 0)
    for _ in range(num_output):
        seq.append(7)
    return seq


def tokens(*seqs: Sequence, now: float = 0.0, budget: int = BUDGET) -> int:
    return chunk_tokens(seqs, 100 * len(seqs), budget, learnt(), now)


def test_without_targets_or_before_anything_is_known_the_budget_is_all() -> None:
    assert tokens(output(None)) == BUDGET
    assert chunk_tokens([output(0.03)], 100, BUDGET, StepTimes(), 0.0) == BUDGET


def test_a_step_takes_what_the_target_leaves() -> None:
    assert tokens(output(0.1)) == pytest.approx((SHARE * 0.1 - BASE_S - SEQ_S) / TOKEN_S, abs=3)


def test_who_is_ahead_can_wait_longer_and_who_is_behind_cannot() -> None:
    ahead, level = output(0.1, num_output=5), output(0.1)
    assert tokens(ahead) > 3 * tokens(level)
    assert tokens(ahead, level) < tokens(level) + 5
    assert tokens(output(0.1, num_output=3), now=0.3) == LEAST_TOKENS


def test_who_misses_its_target_whatever_is_done_is_not_waited_for() -> None:
    assert tokens(output(0.021)) == BUDGET
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
    assert min(budget, LEAST_TOKENS) <= tokens(*seqs, now=now, budget=budget) <= budget


def test_long_chunks_do_not_drown_what_short_steps_say() -> None:
    """A chunk's time grows with its length faster than linearly."""
    times = StepTimes()
    for i in range(200):
        chunk = 500 if i % 2 else 0
        noise = 1.0 + 0.3 * ((i // 2) % 2)
        times.add(4, 400, chunk, 0.024 if not chunk else noise * 0.6)
    assert times.step_s(4, 400) == pytest.approx(0.024, rel=0.05)


def test_the_rate_beside_outputs_is_what_their_targets_leave() -> None:
    pace = Pace()
    assert pace.prompt_rate(4, 400, 0.1) is None
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
    assert pace.prompt_rate(4, 400, 0.1) == pytest.approx(760, rel=0.05)
    least = pace.prompt_rate(4, 400, 0.01)
    assert least == pytest.approx(LEAST_TOKENS / (0.024 + LEAST_TOKENS * TOKEN_S), rel=0.05)
