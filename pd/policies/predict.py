"""How long until a prompt's first token, on a node that could run it.

TTFT = the longer of queue wait and fetching what the node lacks and another has, since blocks
come while what waits there is computed, + computing the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pd.policies import costs
from pd.policies.candidate import Blocks, Candidate, Prompt
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
    usable = usable_blocks(prompt.num_tokens, node.block_size)
    cached = min(prompt.cached_on(node), usable)
    return Prediction(*_predict(node, prompt, prompt.blocks_for(node), usable, cached))


def costs_s(nodes: Sequence[Candidate], prompt: Prompt, again: float) -> list[float]:
    """For each node the TTFT and `again` times what is computed again, as `predict` says. What
    nodes of one layout have in common is asked once: every prompt asks this of all."""
    times: list[float] = []
    layout, size = -1, 0
    for node, cached in zip(nodes, prompt.cached_on_each(nodes)):
        if node.layout != layout or node.block_size != size:
            layout, size = node.layout, node.block_size
            blocks, usable = prompt.blocks_for(node), usable_blocks(prompt.num_tokens, size)
        if cached > usable:
            cached = usable
        wait_s, fetch_s, compute_s, again_s = _predict(node, prompt, blocks, usable, cached)
        start_s = wait_s if wait_s > fetch_s else fetch_s
        times.append(start_s + compute_s + again * again_s)
    return times


def _predict(
    node: Candidate, prompt: Prompt, blocks: Blocks, usable: int, cached: int
) -> tuple[float, float, float, float]:
    """The four of a `Prediction`, where `cached` of the `usable` blocks are there."""
    typical, snapshot, size = prompt.typical, node.snapshot, node.block_size
    rate = _rate(node, prompt) if node.num_seqs else snapshot.prefill_rate or typical.rate
    there, saved_s, fetching_s = cached, 0.0, 0.0
    for source in blocks.sources:
        if source.num_blocks > cached and source.holder != node.node_id:
            fetch_s = snapshot.fetch_s_per_block or typical.fetch_s
            slow_s = snapshot.fetch_s_per_slow_block or typical.slow_s
            saves_s, takes_s = costs.fetching(rate, fetch_s, slow_s, source, cached, usable, size)
            if saves_s > saved_s:
                saved_s, fetching_s, there = saves_s, takes_s, min(source.num_blocks, usable)
    wait_s = (node.waiting_tokens if prompt.paced else node.queue) / rate
    compute_s = (prompt.num_tokens - cached * size) / rate - saved_s - fetching_s
    coming = blocks.coming if blocks.coming < usable else usable
    again_s = (coming - there) * size / rate if coming > there else 0.0
    return wait_s, fetching_s, compute_s, again_s


def _rate(node: Candidate, prompt: Prompt) -> float:
    """Prompt tokens a second, as fast as the outputs beside let them be computed."""
    rate = node.snapshot.prefill_rate or prompt.typical.rate
    tpot_s, pace = prompt.slo.tpot_s, node.pace
    if not prompt.paced or tpot_s is None or pace is None or not node.num_seqs:
        return rate
    beside = pace.prompt_rate(node.num_seqs, node.context, SHARE * tpot_s, prompt.num_tokens)
    return rate if beside is None else min(rate, beside)
