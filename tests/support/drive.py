"""A minimal scheduler for engine tests: it plans adversarially rather than well."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work


@dataclass
class Driver:
    """Runs prompts in chunks of random size, mixed with the decodes of those that are done.

    Blocks are handed out in random order. `cached` maps prompt prefixes (whole blocks of
    tokens) to blocks that already hold their KV.
    """

    engine: Engine
    seed: int = 0
    max_chunk: int = 16
    cached: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.free = list(range(self.engine.num_blocks))
        self.rng.shuffle(self.free)

    def sequence(self, prompt: list[int], params: SamplingParams, index: int = 0) -> Sequence:
        request = Request(f"r{self.rng.random()}", "", tuple(prompt), params)
        return Sequence(Work(request, (index,)), index)

    def reuse_prefix(self, seq: Sequence) -> None:
        """Start from cached blocks, leaving at least the last token to compute."""
        size = self.engine.block_size
        while len(seq.tokens) > seq.num_computed + size:
            block = self.cached.get(tuple(seq.tokens[: seq.num_computed + size]))
            if block is None:
                break
            seq.blocks.append(block)
            seq.num_computed += size

    def remember_prefix(self, seq: Sequence) -> None:
        size = self.engine.block_size
        for index in range(seq.num_computed // size):
            key = tuple(seq.tokens[: (index + 1) * size])
            self.cached.setdefault(key, seq.blocks[index])

    def grow(self, seq: Sequence, num_tokens: int) -> None:
        while len(seq.blocks) * self.engine.block_size < num_tokens:
            seq.blocks.append(self.free.pop())
            seq.table_version += 1

    def chunk(self, seq: Sequence, limit: int) -> PrefillChunk:
        num_tokens = min(limit, len(seq.tokens) - seq.num_computed)
        self.grow(seq, seq.num_computed + num_tokens)
        done = seq.num_computed + num_tokens == len(seq.tokens)
        return PrefillChunk(seq, seq.num_computed, num_tokens, (seq,) if done else ())

    def step(self, chunks: list[PrefillChunk], decodes: list[Sequence]) -> None:
        """Execute and take the drawn tokens."""
        for seq in decodes:
            self.grow(seq, len(seq.tokens))
        plan = BatchPlan(tuple(chunks), tuple(decodes))
        samples = iter(self.engine.execute(plan).samples)
        for chunk in chunks:
            chunk.seq.num_computed += chunk.num_tokens
            for seq in chunk.sample:
                seq.append(next(samples).token)
        for seq in decodes:
            seq.num_computed += 1
            seq.append(next(samples).token)
        assert next(samples, None) is None

    def run(self, sequences: list[Sequence]) -> list[list[int]]:
        """Generate `max_tokens` tokens for each; the outputs, in order."""
        waiting = list(sequences)
        prefilling: list[Sequence] = []
        decoding: list[Sequence] = []
        for seq in sequences:
            self.reuse_prefix(seq)
        while waiting or prefilling or decoding:
            while waiting and (self.rng.random() < 0.5 or not (prefilling or decoding)):
                prefilling.append(waiting.pop(0))
            chunks = [
                self.chunk(seq, self.rng.randint(1, self.max_chunk))
                for seq in prefilling
                if self.rng.random() < 0.8
            ]
            self.rng.shuffle(decoding)
            batch = [seq for seq in decoding if self.rng.random() < 0.8]
            if not chunks and not batch:
                continue
            self.step(chunks, batch)
            for chunk in chunks:
                if chunk.sample:
                    prefilling.remove(chunk.seq)
                    decoding.append(chunk.seq)
                    self.remember_prefix(chunk.seq)
            decoding = [seq for seq in decoding if seq.num_output < seq.params.max_tokens]
        return [seq.tokens[seq.num_prompt :] for seq in sequences]

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy outputs of `prompts`."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        return self.run([self.sequence(prompt, params) for prompt in prompts])
