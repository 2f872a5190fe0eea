"""One live `NodeCore` on a virtual clock: its own batches, with steps as long as a model says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvstore.blocks import BlockPool
from pd.cost.load import StepLoad
from pd.messages import COORDINATOR, StartPrefill, Tokens
from pd.node.core import NodeCore, NodeLimits
from pd.outbox import Send
from pd.types import Request, Sampled, SamplingParams, Work

_NODE, _GATEWAY = "m0", "g0"
_NO_TOKEN = Sampled(0)


@dataclass(frozen=True)
class Asked:
    """One request: when it comes, and how long its prompt and its answer are."""

    arrival_s: float
    num_prompt: int
    num_output: int


@dataclass(frozen=True)
class Served:
    """What it saw, in seconds. `tpot_s` is 0 of an answer of one token."""

    ttft_s: float
    tpot_s: float


def serve(
    requests: Sequence[Asked],
    step_s: Callable[[StepLoad], float],
    limits: NodeLimits,
    *,
    num_blocks: int,
    block_size: int = 16,
) -> list[Served]:
    """Each request on one mixed node, prompts all different. Raises RuntimeError if the node
    stops before all are answered, as where a prompt does not fit."""
    core = NodeCore(_NODE, "mixed", BlockPool(num_blocks, block_size), limits, 1)
    core.epoch = 1
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    coming = sorted(range(len(requests)), key=lambda i: requests[i].arrival_s, reverse=True)
    now, finished = 0.0, 0
    while finished < len(requests):
        while coming and requests[coming[-1]].arrival_s <= now:
            i = coming.pop()
            core.on_message(COORDINATOR, _start(i, requests[i]), now)
        plan = core.plan(now)
        if plan is None:
            if not coming:
                raise RuntimeError(f"the node stands still with {finished} requests answered")
            now = requests[coming[-1]].arrival_s
            continue
        now += step_s(StepLoad.of(plan))
        drawn = sum(len(chunk.sample) for chunk in plan.chunks) + len(plan.decodes)
        core.commit([_NO_TOKEN] * drawn, now)
        for effect in core.drain():
            if isinstance(effect, Send) and isinstance(effect.message, Tokens):
                for event in effect.message.rows():
                    first.setdefault(event.request_id, now)
                    last[event.request_id] = now
                    finished += event.finish is not None
    return [_served(asked, first[str(i)], last[str(i)]) for i, asked in enumerate(requests)]


def _start(i: int, asked: Asked) -> StartPrefill:
    # No two prompts begin alike: nothing is found in the cache.
    prompt = (i, *range(asked.num_prompt - 1))
    params = SamplingParams(max_tokens=asked.num_output, ignore_eos=True)
    request = Request(str(i), _GATEWAY, prompt, params, arrival_s=asked.arrival_s)
    return StartPrefill(Work(request, (0,)), i + 1, _NODE, 1)


def _served(asked: Asked, first: float, last: float) -> Served:
    steps = asked.num_output - 1
    return Served(first - asked.arrival_s, (last - first) / steps if steps else 0.0)
