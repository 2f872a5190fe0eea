"""How many prompt tokens a step may have beside the sequences that decode in it. Pure.

A chunk makes every sequence of its step wait. What each can afford is known: its target for the
mean time of a token, and how far ahead of that target it is. The chunk is as large as the one that
can afford least allows: large while outputs are ahead or nothing decodes, small where they are
close to their target. So the size of a chunk, which elsewhere is fixed for the worst case, follows
the targets and the load (compare "Sarathi-Serve", Agrawal et al. 2024, and "TaiChi", 2025).

A chunk far into its prompt reads the KV of all before it, and a small one costs little less than a
larger one. One that would be mostly reading is put off until outputs are further ahead, or run a
little early where they can all make up for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from pd.policies.steps import StepTimes
from pd.types import Sequence

# Of a target: the rest is for the way of tokens to their client, and for steps that take longer.
SHARE = 0.92
# Prompts never stand still: such a share of the target goes to them in the mean whatever outputs
# can spare, which leaves these within it.
TRICKLE = 0.04
LEAST_TOKENS = 16  # of a chunk: fewer take about as long


def chunk_tokens(
    decodes: Collection[Sequence],
    context: int,
    budget: int,
    times: StepTimes,
    now: float,
    start: int = 0,
    steps_without: int = 0,
) -> int:
    """At most `budget`: prompt tokens beside these sequences, `context` tokens all together.

    The prompt to go on with has `start` tokens already; 0 puts it off, as the last
    `steps_without` steps did.
    """
    paced = [(seq, tpot_s) for seq in decodes if (tpot_s := seq.request.slo.tpot_s) is not None]
    if not paced or not times.known:
        return budget
    per_token_s, fixed_s = times.per_prompt_token_s, times.chunk_s(start)
    if per_token_s <= 0.0:
        return budget
    step_s = times.step_s(len(decodes), context)
    spare_s = least_left_s = tightest_s = math.inf
    for seq, tpot_s in paced:
        so_far_s, length = now - seq.paced_from_s, seq.params.max_tokens
        rest_s = (length - seq.num_output) * step_s
        if so_far_s + rest_s <= (length - 1) * tpot_s:  # else it misses it whatever is done
            pace_s = SHARE * tpot_s
            spare_s = min(spare_s, seq.num_output * pace_s - so_far_s - step_s)
            least_left_s = min(least_left_s, (length - 1) * pace_s - so_far_s - rest_s)
            tightest_s = min(tightest_s, tpot_s)
    if spare_s >= fixed_s + budget * per_token_s:
        return budget
    worth = min(budget, worth_tokens(fixed_s, per_token_s))
    tokens = int(max(0.0, spare_s - fixed_s) / per_token_s)
    if tokens >= worth:
        return tokens
    worth_s = fixed_s + worth * per_token_s
    early = spare_s >= 0.0 and least_left_s >= worth_s
    return worth if early or steps_without + 1 >= trickle_steps(worth_s, tightest_s) else 0


def trickle_steps(chunk_s: float, tpot_s: float) -> float:
    """In how many steps there is one such chunk where outputs of this target can spare nothing."""
    return max(1.0, chunk_s / (TRICKLE * tpot_s))


def worth_tokens(fixed_s: float, per_token_s: float) -> int:
    """The smallest chunk that is worth its `fixed_s`: it computes for as long."""
    return max(LEAST_TOKENS, math.ceil(fixed_s / per_token_s))
