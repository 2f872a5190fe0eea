"""How long until a prompt's first token, on a node that could run it.

TTFT = the longer of queue wait and fetching what the node lacks and another has, since blocks
come while what waits there is computed, + computing the rest.
"""

from __future__ import annotations

from typing import NamedTuple

from pd.policies import costs
from pd.policies.candidate import Candidate, Prompt
from pd.policies.chunk import SHARE


class Prediction(NamedTuple):
    """Seconds: until what waits on the node is computed, to fetch blocks and to compute the rest,
    and how much of that computes again what a prompt in flight will have computed elsewhere."""

    wait_s: float
    fetch_s: float
    compute_s: float
    again_s: float

    @property
    def alone_s(self) -> float:
        """What no wait makes shorter."""
        return self.fetch_s + self.compute_s

    @property
    def ttft_s(self) -> float:
        wait_s, fetch_s = self.wait_s, self.fetch_s
        return (wait_s if wait_s > fetch_s else fetch_s) + self.compute_s


def usable_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks of a prompt that need not be computed: its last token has to run, for its logits."""
    return (num_tokens - 1) // block_size


def cached_blocks(node: Candidate, prompt: Prompt) -> int:
    """Those of them that the node has, or is about to have."""
    return min(prompt.cached_on(node), usable_blocks(prompt.num_tokens, node.block_size))


def predict(node: Candidate, prompt: Prompt) -> Prediction:
    """What becomes of the prompt if it is sent to this node now."""
    typical, snapshot = prompt.typical, node.snapshot
    rate = _rate(node, prompt)
    blocks, size = prompt.blocks_for(node), node.block_size
    usable = usable_blocks(prompt.num_tokens, size)
    cached = there = min(blocks.cached.get(node.node_id, 0), usable)
    saved_s = fetching_s = 0.0
    for source in blocks.sources:
        if source.num_blocks > cached and source.holder != node.node_id:
            fetch_s = snapshot.fetch_s_per_block or typical.fetch_s
            slow_s = snapshot.fetch_s_per_slow_block or typical.slow_s
            saves_s, takes_s = costs.fetching(rate, fetch_s, slow_s, source, cached, usable, size)
            if saves_s > saved_s:
                saved_s, fetching_s, there = saves_s, takes_s, min(source.num_blocks, usable)
    compute_s = (prompt.num_tokens - cached * size) / rate
    again = min(blocks.coming, usable) - there
    return Prediction(
        node.waiting_tokens / rate if prompt.paced else node.wait_s(typical.rate),
        fetching_s,
        compute_s - saved_s - fetching_s,
        again * size / rate if again > 0 else 0.0,
    )


def _rate(node: Candidate, prompt: Prompt) -> float:
    """Prompt tokens a second, as fast as the outputs beside let them be computed."""
    rate = node.snapshot.prefill_rate or prompt.typical.rate
    tpot_s, pace = prompt.slo.tpot_s, node.pace
    if not prompt.paced or tpot_s is None or pace is None or not node.num_seqs:
        return rate
    beside = pace.prompt_rate(node.num_seqs, node.context, SHARE * tpot_s)
    return rate if beside is None else min(rate, beside)
