"""A model that notices every misplaced block: its next token is a hash of the KV it reads.

The KV of a token is a hash of the KV before it and the token itself, kept in simulated pages;
the next token is a hash of every entry read through the block table. So a block that is
wrong, stale, reused too early or copied too late changes the tokens, and `expected_tokens`
says what they should have been.
"""

from __future__ import annotations

from functools import cache

from pd.types import BatchPlan, Request, Sampled

VOCAB = 997
EMPTY = -1  # what a page holds that was never written
DAMAGED = -2  # what a damaged transfer leaves behind
_MASK = (1 << 61) - 1


def mix(a: int, b: int) -> int:
    return ((a * 0x9E3779B97F4A7C15) ^ (b + 0x7F4A7C15) * 0xBF58476D1CE4E5B9) & _MASK


def next_token(entries: list[int], seed: int, position: int) -> int:
    value = mix(seed, position)
    for entry in entries:
        value = mix(value, entry)
    return value % VOCAB


def expected_tokens(request: Request, index: int) -> list[int]:
    """What an undisturbed model gives for this output."""
    params = request.params
    return _generate(
        request.prompt, params.seed_of(index), params.max_tokens, request.eos_token_ids
    )


@cache
def _generate(
    prompt: tuple[int, ...], seed: int, max_tokens: int, eos: tuple[int, ...]
) -> list[int]:
    entries: list[int] = []
    previous = 0
    for token in prompt:
        previous = mix(previous, token)
        entries.append(previous)
    output: list[int] = []
    while True:
        token = next_token(entries, seed, len(output))
        output.append(token)
        if token in eos or len(output) >= max_tokens:
            return output
        previous = mix(previous, token)
        entries.append(previous)


class OracleEngine:
    """Pages of KV and the model that reads them."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pages = [[EMPTY] * block_size for _ in range(num_blocks)]

    def execute(self, plan: BatchPlan, tables: dict[int, list[int]]) -> list[Sampled]:
        """Run a step. `tables` are the block tables as they were when it was planned, by the
        id of their sequence."""
        for source, target in plan.copies:
            self.pages[target] = list(self.pages[source])
        samples = []
        for chunk in plan.chunks:
            blocks, end = tables[id(chunk.seq)], chunk.start + chunk.num_tokens
            for position in range(chunk.start, end):
                self._write(blocks, position, chunk.seq.tokens[position])
            for seq in chunk.sample:
                samples.append(self._draw(blocks, end, seq.seed, seq.num_output))
        for seq in plan.decodes:
            blocks = tables[id(seq)]
            self._write(blocks, seq.num_computed, seq.tokens[seq.num_computed])
            samples.append(self._draw(blocks, len(seq.tokens), seq.seed, seq.num_output))
        return samples

    def _read(self, blocks: list[int], position: int) -> int:
        return self.pages[blocks[position // self.block_size]][position % self.block_size]

    def _write(self, blocks: list[int], position: int, token: int) -> None:
        previous = self._read(blocks, position - 1) if position else 0
        page = self.pages[blocks[position // self.block_size]]
        page[position % self.block_size] = mix(previous, token)

    def _draw(self, blocks: list[int], length: int, seed: int, position: int) -> Sampled:
        entries = [self._read(blocks, p) for p in range(length)]
        return Sampled(next_token(entries, seed, position))
