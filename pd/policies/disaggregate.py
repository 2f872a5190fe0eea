"""Whether a prompt is split over two nodes, or prefilled where it decodes.

Split, it disturbs nobody's decoding; whole, nothing has to be moved, and a mixed node or an idle
decode node is one more that can take it. By the request's targets, where it has any.
"""

from __future__ import annotations

from typing import Literal

from pd.policies.candidate import Candidate, Prompt
from pd.policies.forecast import Forecast, share_of_target
from pd.policies.predict import cached_blocks
from pd.types import SLO

Disaggregate = Literal["auto", "always", "never"]

# Both ways are within the targets: then the other one has to be this much further within them.
_BETTER = 0.9


def whole_is_better(whole: Forecast, split: Forecast, slo: SLO, *, kept: bool = False) -> bool:
    """By the target that each is predicted to come nearest to, or miss by most. `kept` says that
    on the one node outputs are kept to their targets whatever prompts come."""
    near, far = share_of_target(whole, slo, kept=kept), share_of_target(split, slo)
    return near < (_BETTER * far if far <= 1.0 else far)


def takes_whole(node: Candidate, prompt: Prompt) -> bool:
    """Whether a decode node can run this prompt without harm to its outputs: beside them, if
    prompts give way, or in one step between two others that nobody there waits longer for than the
    request itself would. Outputs that take their time keep their room for longer, so where
    hand-offs wait for room it does not."""
    target, pace = prompt.slo.tpot_s, node.pace
    if target is None or pace is None:
        return False
    if prompt.paced:
        known = pace.step_s(node.num_seqs, node.context) is not None
        return known and not node.snapshot.num_waiting_room
    if node.num_prompts:
        return False
    tokens = prompt.num_tokens - cached_blocks(node, prompt) * node.block_size
    step_s = pace.step_s(node.num_seqs + prompt.num_seqs, node.context + prompt.num_tokens)
    rate = node.snapshot.prefill_rate or prompt.typical.rate
    return step_s is not None and step_s + tokens / rate <= target
