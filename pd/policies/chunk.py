"""How many prompt tokens a step may have beside the sequences that decode in it. Pure.

A chunk makes every sequence of its step wait. What each can afford is known: its target for the
mean time of a token, and how far ahead of that target it is. The chunk is as large as the one that
can afford least allows: large while outputs are ahead or nothing decodes, small where they are
close to their target. So the size of a chunk, which elsewhere is fixed for the worst case, follows
the targets and the load (compare "Sarathi-Serve", Agrawal et al. 2024, and "TaiChi", 2025).
"""

from __future__ import annotations

from collections.abc import Collection

from pd.policies.steps import StepTimes
from pd.types import Sequence

# Of a target: the rest is for the way of tokens to their client, and for steps that take longer.
SHARE = 0.92
# Prompts never stand still: a few tokens cost little more than none.
LEAST_TOKENS = 16


def chunk_tokens(
    decodes: Collection[Sequence], context: int, budget: int, times: StepTimes, now: float
) -> int:
    """At most `budget`: prompt tokens beside these sequences, `context` tokens all together."""
    paced = [(seq, tpot_s) for seq in decodes if (tpot_s := seq.request.slo.tpot_s) is not None]
    if not paced or not times.known:
        return budget
    step_s = times.step_s(len(decodes), context)
    spare_s = min(_spare_s(seq, SHARE * tpot_s, step_s, now) for seq, tpot_s in paced)
    per_token_s = times.per_prompt_token_s
    if per_token_s <= 0.0 or spare_s >= budget * per_token_s:
        return budget
    return max(min(budget, LEAST_TOKENS), int(spare_s / per_token_s))


def _spare_s(seq: Sequence, tpot_s: float, step_s: float, now: float) -> float:
    """How much longer than `step_s` its next step may take; without end where the sequence misses
    its target whatever is done."""
    ahead_s = seq.paced_from_s + tpot_s * seq.num_output - now
    left = seq.params.max_tokens - seq.num_output
    if ahead_s + (left - 1) * tpot_s < left * step_s:
        return float("inf")
    return ahead_s - step_s
