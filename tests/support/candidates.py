"""Nodes and prompts as routing sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pd.policies import route as routing
from pd.policies.candidate import Blocks, Candidate, Fleet, Placement, Prompt
from pd.types import NodeSnapshot, Role, Source


def node(
    node_id: str,
    role: Role,
    *,
    credit_tokens: int = 0,
    credit_seqs: int = 0,
    layout: int = 0,
    max_num_seqs: int = 8,
    last: int = 0,
    host: str = "",
    **snapshot: Any,
) -> Candidate:
    values = {"num_blocks": 100, "free_blocks": 100, **snapshot}
    return Candidate(
        node_id, role, NodeSnapshot(node_id, role, 1, **values), max_num_seqs,
        credit_tokens=credit_tokens, credit_seqs=credit_seqs, layout=layout,
        last_prefill=last, last_decode=last, host=host,
    )  # fmt: skip


def prompt(
    num_tokens: int = 160,
    cached: Mapping[str, int] | None = None,
    sources: tuple[Source, ...] = (),
    nodes: list[Candidate] | None = None,
    coming: int = 0,
    **more: Any,
) -> Prompt:
    """Of layout 0; blocks have 16 tokens."""
    typical = Fleet(nodes or ()).typical
    blocks = {0: Blocks(cached or {}, sources, coming)}
    return Prompt(num_tokens, blocks=blocks, typical=typical, **more)


def sent(nodes: dict[str, Candidate], placement: Placement, tokens: int, turn: int = 0) -> None:
    """What the nodes look like once this was sent to them, before their next snapshots."""
    start = nodes[placement.prefill]
    nodes[start.node_id] = replace(
        start,
        credit_prompts=start.credit_prompts + 1,
        credit_tokens=start.credit_tokens + tokens,
        last_prefill=turn,
    )
    decode = nodes[placement.decode]
    nodes[decode.node_id] = replace(decode, credit_seqs=decode.credit_seqs + 1, last_decode=turn)


def route(nodes: Iterable[Candidate], *args: Any) -> Placement | None:
    """`pd.policies.route.route` over these nodes."""
    return routing.route(Fleet(nodes), *args)
