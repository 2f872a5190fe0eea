"""Steps that make every kernel compile before the first request comes."""

from __future__ import annotations

from collections.abc import Iterator

from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work


def warmup_plans(
    num_blocks: int, block_size: int, max_tokens: int, device_type: str
) -> Iterator[BatchPlan]:
    """Plans over the first blocks of an arena: chunks, decodes, both, greedy and sampled.

    Kernels of a GPU are specialised by size as well, so there sizes go up to a full step.
    """
    longest = max(1, min(max_tokens, num_blocks * block_size - 1))
    sizes = {min(longest, size) for size in (2, 33)}
    batches = {1, 2}
    if device_type == "cuda":
        sizes |= {min(longest, 1 << power) for power in range(4, 16)}
        batches |= {4, 8, 16, 32, 64, 128}
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_p=0.9)):
        for size in sorted(sizes):
            first, second = (_sequence(size, num_blocks, block_size, params) for _ in range(2))
            yield BatchPlan(chunks=(PrefillChunk(first, 0, size, (first,)),))
            if size > 1:
                half = size // 2
                yield BatchPlan(
                    chunks=(PrefillChunk(first, half, size - half),), decodes=(_ready(second),)
                )
        for count in sorted(batches):
            sequences = (_sequence(2, num_blocks, block_size, params) for _ in range(count))
            yield BatchPlan(decodes=tuple(_ready(seq) for seq in sequences))


def _sequence(
    num_tokens: int, num_blocks: int, block_size: int, params: SamplingParams
) -> Sequence:
    request = Request("warmup", "", (0,) * num_tokens, params)
    seq = Sequence(Work(request, (0,)), 0)
    seq.blocks = list(range(min(num_blocks, -(-num_tokens // block_size))))
    return seq


def _ready(seq: Sequence) -> Sequence:
    seq.num_computed = len(seq.tokens) - 1
    return seq
