"""The nouns every part of the system shares: requests, sequences, plans and snapshots.

Pure data, standard library only. What travels between processes is in `pd.messages`; both
are plain dataclasses, so the simulator and the tests build them without a socket in sight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["prefill", "decode", "mixed", "pool"]
Tier = Literal["node", "dram", "disk"]  # where a cached block lies: a node's own KV, or the pool's
FinishReason = Literal["stop", "length", "cancelled", "error"]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn and when a sequence ends. Validated by the gateway, not here.

    `top_k` 0 means off. `stop` strings are applied by the gateway, which alone has text;
    everything else is applied by the node that samples. `logprobs` is the number of top
    alternatives to report beside the drawn token, or None for no logprobs at all.
    """

    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def seed_of(self, index: int) -> int:
        """The seed of output `index`: index 0 has the request's own, so n never changes it."""
        return (self.seed + index * 0x9E3779B97F4A7C15) & MAX_SEED


@dataclass(frozen=True, slots=True)
class SLO:
    """Latency targets of one request, in seconds; None where the deployment sets none."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked, once validated and tokenised. Immutable for its whole life.

    `request_id` is unique within the cell, `gateway` the id of the gateway that keeps its
    record, `arrival_s` that gateway's clock. Lower `priority` runs earlier.
    """

    request_id: str
    gateway: str
    prompt: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    arrival_s: float = 0.0
    tenant: str = ""
    priority: int = 0
    slo: SLO = SLO()
    cache_salt: str = ""  # prompts share cached KV only where tenant and salt are the same
    session: str = ""  # requests of one session are served where its KV lies
    tenant_class: str = ""  # whose terms it has: for those who count
    weight: float = 1.0  # of its tenant's share of a node, where tenants share fairly

    def tokens(self, output: tuple[int, ...] = ()) -> list[int]:
        """The prompt and what was generated after it; the caller's own to extend."""
        return [*self.prompt, *output]


@dataclass(frozen=True, slots=True)
class Work:
    """One prefill to run: the whole request, or one sequence of it being resumed.

    `indices` are the outputs that draw their next token from this prefill. A fresh request
    has all of them and no `output`; a resumed one has a single index and the tokens its
    client already has, so its next token is number `len(output)`.
    `attempt` counts resumptions: events of an earlier attempt are stale.
    """

    request: Request
    indices: tuple[int, ...]
    output: tuple[int, ...] = ()
    attempt: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt) + len(self.output)

    def tokens(self) -> list[int]:
        """What the prefill runs over; the caller's own to extend."""
        return self.request.tokens(self.output)


class Sequence:
    """One output stream on a node: its tokens so far and the blocks that hold their KV.

    Mutable, owned by the scheduler of the node it runs on; the engine only reads it.
    KV exists for the first `num_computed` tokens. While decoding that is all but the last.
    `table_version` changes whenever `blocks` does, so that the engine can keep its own copy.
    """

    __slots__ = (
        "request", "index", "key", "attempt", "params", "seed", "tokens", "num_tokens",
        "num_prompt", "num_computed", "blocks", "table_version", "hashes", "stop_ids", "slot",
        "paced_from_s",
    )  # fmt: skip

    def __init__(self, work: Work, index: int) -> None:
        request = work.request
        self.request = request
        self.index = index
        self.key = request.request_id, index
        self.attempt = work.attempt
        self.params = request.params
        self.seed = request.params.seed_of(index)
        self.tokens = work.tokens()  # `append` adds to them, and keeps `num_tokens` their number
        self.num_tokens = work.num_tokens
        self.num_prompt = len(request.prompt)
        self.num_computed = 0
        self.blocks: list[int] = []
        self.table_version = 0
        self.hashes: list[bytes] = []  # chained hashes of the full blocks registered so far
        eos = () if request.params.ignore_eos else request.eos_token_ids
        self.stop_ids = frozenset((*eos, *request.params.stop_token_ids))
        self.slot = -1  # a place in the engine's persistent batch arrays; the engine's own
        # When its first output was drawn, or would have been had it always kept to its target.
        self.paced_from_s = 0.0

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt

    def append(self, token: int, count: int = 1) -> FinishReason | None:
        """Take a drawn token; says why the sequence ends with it, or None if it goes on.

        It may have been drawn `count` times in a row, if only the last can end the sequence."""
        if count == 1:
            self.tokens.append(token)
        else:
            self.tokens.extend([token] * count)
        self.num_tokens += count
        num_output = self.num_tokens - self.num_prompt
        if token in self.stop_ids and num_output >= self.params.min_tokens:
            return "stop"
        return "length" if num_output >= self.params.max_tokens else None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}/{self.index}, tokens={len(self.tokens)}, "
            f"computed={self.num_computed}, blocks={self.blocks})"
        )


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens [start, start + num_tokens) of a prompt to run in this step.

    `sample` is empty unless the chunk ends the prompt; then every sequence in it draws its
    next token from the one row of logits at the chunk's end.
    """

    seq: Sequence
    start: int
    num_tokens: int
    sample: tuple[Sequence, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One step's work, as data.

    `decodes` run one token each: the last of `tokens`, whose KV goes to position
    `num_computed`. `copies` are (source, destination) blocks to copy before anything else,
    for sequences that are about to write into a block they share.
    """

    chunks: tuple[PrefillChunk, ...] = ()
    decodes: tuple[Sequence, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks) + len(self.decodes)

    def __bool__(self) -> bool:
        return bool(self.chunks or self.decodes)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token. `logprob` and `top` are of the model's raw distribution, or absent."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step drew: the `sample` sequences of every chunk in order, then the decodes."""

    samples: tuple[Sampled, ...] = ()


@dataclass(slots=True)
class TokenEvent:
    """One generated token of one sequence, as the gateway receives it. Nobody changes it; it is not
    frozen because there is one for every token, and a frozen one takes three times as long to make.

    `position` counts the sequence's output tokens from 0. `finish` is set on the last.
    """

    request_id: str
    index: int
    attempt: int
    position: int
    token: int
    finish: FinishReason | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """What the coordinator decided or noticed, for people to read: when (Unix time), what, why.

    `kind` is "change" for what a policy wanted, "lost" or "kill" for a process's end.
    """

    at: float
    kind: str
    what: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """How to reach a process: its id, the epoch it must be in, and where its sockets are.

    `endpoints` maps a transport's name to its address ("control" is the message socket).
    """

    id: str
    epoch: int
    endpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step that a node has timed, and what was in it: sequences that decoded and their tokens,
    tokens of prompts, and where each chunk of these ends in its prompt, summed."""

    seconds: float
    seqs: int
    context: int
    prompt_tokens: int
    prompt_context: int

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds < math.inf:
            raise ValueError(f"a step takes more than 0 seconds, not {self.seconds}")

    @property
    def prompt_rate(self) -> float:
        """Its prompt tokens a second."""
        return self.prompt_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Source:
    """Where the leading blocks of a prompt can be fetched: `num_blocks` of them, the last
    `num_slow` only from a disk."""

    holder: str
    epoch: int
    num_blocks: int
    num_slow: int = 0


@dataclass(slots=True)
class NodeSnapshot:
    """What a node tells the coordinator after each step and at least every heartbeat. Not frozen
    for the same reason as `TokenEvent`: it has many fields."""

    node_id: str
    role: Role
    epoch: int
    last_transfer_id: int = 0  # the newest work it has heard of: later ones are still on the way
    num_waiting: int = 0  # prefills queued or waiting for decode room
    waiting_tokens: int = 0  # prompt tokens still to compute, running ones included
    num_running: int = 0  # sequences in the decode batch
    running_tokens: int = 0  # their context, in tokens
    num_reserving: int = 0  # hand-offs waiting for room, and those whose KV is on its way
    num_waiting_room: int = 0  # of these, those that wait
    reserving_tokens: int = 0  # context of all of them
    handoff_s: float = 0.0  # smoothed: from a first token's coming to the step that goes on with it
    num_blocks: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    steps: int = 0
    step_s: float = 0.0  # duration of the last step, and what was in it:
    step_seqs: int = 0  # sequences that decoded
    step_context: int = 0  # their tokens
    step_prompt_tokens: int = 0
    step_prompt_context: int = 0  # where each of its chunks ends in its prompt, summed
    busy_s: float = 0.0  # how long the step under way has been running
    prefill_rate: float = 0.0  # prompt tokens a second, smoothed; 0 before the first prefill
    num_transfers: int = 0
    transferred_bytes: int = 0
    transfer_s: float = 0.0  # of all transfers together, from a push to the receiver's answer
    preemptions: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    cache_hit_tokens: int = 0
    fetched_tokens: int = 0  # brought from elsewhere instead of computed
    fetch_s_per_block: float = 0.0  # smoothed; 0 before the first fetch
    fetch_s_per_slow_block: float = 0.0  # of blocks that a disk had to be read for
    served_blocks: int = 0  # fetched from here so far
    # Of a pool, whose blocks above are those of its DRAM tier:
    num_disk_blocks: int = 0
    disk_blocks: int = 0
    stored_blocks: int = 0  # that came here by puts, or of a node: that it has put
    served_disk_blocks: int = 0  # of those fetched from here, read from the disk first
    dropped_blocks: int = 0  # lost to want of room or to a disk that failed; of a node: not put
