"""What becomes of a request on the nodes chosen for it: its TTFT and its TPOT.

Both count what was admitted already, wherever it stands: prompts on their way or waiting, and the
sequences that will join the decode batch before this one does. A forecast by what runs now would
let in as much again while all that is still being prefilled, then nothing for a while, and so on:
see "early rejection" in Qin et al., "Mooncake" (2024). Sequences that will have left by then are
only taken off where the first token is further away than outputs last: how many leave is known
roughly, and counting on them makes for waves as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pd.policies.candidate import Candidate, Prompt
from pd.policies.chunk import SHARE, TRICKLE
from pd.policies.pace import MOST_OF, Pace
from pd.policies.predict import predict
from pd.types import SLO

_ROUNDS = 4  # by which what outputs last is worked out from how many there are, and that from this


class Forecast(NamedTuple):
    """Seconds; None where nothing was measured yet that would tell.

    `work_s` of the TTFT is the prompt's own, that no wait makes shorter. `per_seq_s` is how much
    one sequence less in the batch takes off `tpot_s`, `ended_per_s` how many leave it. `handoff_s`
    is what the way to another node adds to `tpot_s`: much for two tokens, nothing for hundreds, and
    nothing that a later try would make shorter.
    """

    ttft_s: float | None
    work_s: float
    tpot_s: float | None
    per_seq_s: float = 0.0
    ended_per_s: float = 0.0
    handoff_s: float = 0.0


UNKNOWN = Forecast(None, 0.0, None)


def forecast(start: Candidate, decode: Candidate, prompt: Prompt) -> Forecast:
    """Of a prompt that runs on `start` and decodes on `decode`, which may be the same node."""
    measured = prompt.measured
    predicted = predict(start, prompt)
    work_s = predicted.alone_s
    ttft_s = max(predicted.ttft_s, _room_s(decode, prompt) + work_s)
    pace = decode.pace
    if pace is None:
        return Forecast(ttft_s if measured else None, work_s, None)
    ended = decode.ended_per_s
    others = _together(decode, pace, prompt.mean_output, ttft_s)
    seqs = others + prompt.num_seqs
    own = prompt.num_tokens + prompt.max_tokens / 2
    context = decode.context * (others / (decode.num_seqs or 1)) + own * prompt.num_seqs
    tpot_s = pace.likely_tpot_s(seqs, context, prompt.max_tokens, decode.waiting_tokens)
    if prompt.paced and tpot_s is not None and prompt.slo.tpot_s is not None:
        # Whatever prompts there are, outputs are kept to their targets if they alone can be.
        alone_s = pace.step_s(seqs, context)
        if alone_s is not None:
            trickle_s = TRICKLE * prompt.slo.tpot_s if start.node_id == decode.node_id else 0.0
            tpot_s = max(alone_s + trickle_s, min(tpot_s, SHARE * prompt.slo.tpot_s))
    if tpot_s is None:
        return Forecast(ttft_s if measured else None, work_s, None, 0.0, ended)
    per_seq_s, handoff_s = pace.per_seq_s(context / seqs), 0.0
    if start.node_id != decode.node_id and prompt.max_tokens > 1:
        handoff_s = decode.snapshot.handoff_s / (prompt.max_tokens - 1)
    return Forecast(ttft_s if measured else None, work_s, tpot_s, per_seq_s, ended, handoff_s)


def _together(decode: Candidate, pace: Pace, mean_output: float | None, wait_s: float) -> float:
    """How many of those that were admitted for this node decode there when one joins them that
    waits so long for its first token: nine times of ten no more than this.

    All of them, where outputs last as long as that. Else most that run now have left, and of those
    that come meanwhile, one after the other, those are there that came last.
    """
    running, total = decode.snapshot.num_running, float(decode.num_seqs)
    coming, there = total - running, total
    if mean_output is None or not total:
        return total
    for _ in range(_ROUNDS):
        step_s = pace.tpot_s(there, decode.context * (there / total))
        if step_s is None or (last_s := mean_output * step_s) >= wait_s:
            break
        share = last_s / wait_s
        came = coming * share + MOST_OF * math.sqrt(coming * share * (1.0 - share))
        left = 1.0 - wait_s / last_s if last_s else -math.inf
        there = min(there, running * math.exp(left) + came)
    return there


def share_of_target(predicted: Forecast, slo: SLO, *, kept: bool = False) -> float:
    """Predicted time over target, the worse of the two; what is not known is no worry. Nor, where
    outputs are `kept` to their targets, is their TPOT as long as they can be: they are slow since
    there is time to spare, which says nothing of how near they are to being late."""
    ttft, tpot = predicted.ttft_s, predicted.tpot_s
    if tpot is not None:
        tpot += predicted.handoff_s
    share = ttft / slo.ttft_s if ttft and slo.ttft_s else 0.0
    if tpot and slo.tpot_s and not (kept and tpot <= SHARE * slo.tpot_s):
        share = max(share, tpot / slo.tpot_s)
    return share


def _room_s(decode: Candidate, prompt: Prompt) -> float:
    """How long until there is room for it to decode, if what waits there comes before it."""
    if decode.ended_per_s <= 0.0:
        return 0.0
    over = decode.num_seqs + prompt.num_seqs - decode.max_num_seqs
    blocks = -(-prompt.num_tokens // decode.block_size)
    if decode.snapshot.num_waiting_room and blocks > decode.snapshot.free_blocks:
        over = max(over, decode.snapshot.num_waiting_room + 1)
    return max(0, over) / decode.ended_per_s
