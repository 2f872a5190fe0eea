"""Driving an Engine without a scheduler: enough for parity and timing."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work


def make_sequence(prompt: Seq[int], max_tokens: int, name: str = "check") -> Sequence:
    """A greedy sequence that does not stop before max_tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Sequence(Work(Request(name, "", tuple(prompt), params), (0,)), 0)


def generate(
    engine: Engine, prompts: Seq[Seq[int]], max_tokens: int, chunk: int = 512
) -> list[list[int]]:
    """Greedy tokens of all prompts: chunked prefill of one prompt at a time, beside the decodes
    of those before it. Needs room in the arena for everything at once."""
    waiting = [make_sequence(prompt, max_tokens, str(i)) for i, prompt in enumerate(prompts)]
    sequences = list(waiting)
    free = list(range(engine.num_blocks))
    running: list[Sequence] = []
    for seq in sequences:
        count = engine.layout.num_blocks_for(len(seq.tokens) + max_tokens)
        seq.blocks, free = free[:count], free[count:]
        seq.table_version += 1
    while waiting or running:
        chunks: tuple[PrefillChunk, ...] = ()
        if waiting:
            seq = waiting[0]
            num_tokens = min(chunk, seq.num_prompt - seq.num_computed)
            last = seq.num_computed + num_tokens == seq.num_prompt
            chunks = (PrefillChunk(seq, seq.num_computed, num_tokens, (seq,) if last else ()),)
        result = engine.execute(BatchPlan(chunks=chunks, decodes=tuple(running)))
        drawn = []
        if chunks:
            waiting[0].num_computed += chunks[0].num_tokens
            if chunks[0].sample:
                drawn.append(waiting.pop(0))
        for seq in running:
            seq.num_computed += 1
        drawn += running
        for seq, sample in zip(drawn, result.samples, strict=True):
            if seq.append(sample.token) is None:
                if seq not in running:
                    running.append(seq)
            elif seq in running:
                running.remove(seq)
    return [seq.tokens[seq.num_prompt :] for seq in sequences]
