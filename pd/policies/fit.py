"""Whether a node could ever run a piece of work, were it empty; and if none could, why."""

from __future__ import annotations

from collections.abc import Sequence

from pd.messages import NodeHello
from pd.types import Work


def fits(node: NodeHello, work: Work, *, prefill: bool = False) -> bool:
    """Whether the node has the blocks (and batch rows), for the prompt alone or to the end."""
    size, num_blocks = node.block_size, node.num_blocks
    if prefill:
        return -(-work.num_tokens // size) <= num_blocks
    request = work.request
    longest = len(request.prompt) + request.params.max_tokens
    if longest > node.max_model_len or len(work.indices) > node.max_num_seqs:
        return False
    # With n > 1 every sequence needs one block of its own besides the shared prompt.
    own = len(work.indices) if len(work.indices) > 1 else 0
    shared = -(-work.num_tokens // size) + own
    return max(-(-longest // size), shared) <= num_blocks


def kind_of(node: NodeHello) -> tuple[bool, int, int, int, int]:
    """What `fits` asks of a node: nodes that are alike in this can hold the same work."""
    return (
        node.role == "prefill", node.block_size, node.num_blocks, node.max_model_len,
        node.max_num_seqs,
    )  # fmt: skip


def never_fits(nodes: Sequence[NodeHello], work: Work) -> str | None:
    """Why none of the nodes that serve could ever run this, or None."""
    if not nodes:
        return None
    prompt, params = work.request.prompt, work.request.params
    longest = len(prompt) + params.max_tokens
    max_len = max(node.max_model_len for node in nodes)
    if longest > max_len:
        return (
            f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}; "
            f"together that is more than the {max_len} tokens a sequence may have"
        )
    holders = [node for node in nodes if node.role != "prefill"]
    if holders and not any(fits(node, work) for node in holders):
        return f"{longest} tokens do not fit into the KV cache of any decode node"
    runners = [node for node in nodes if node.role != "decode"]
    if runners and not any(fits(node, work, prefill=True) for node in runners):
        return f"{work.num_tokens} tokens do not fit into the KV cache of any prefill node"
    return None
