"""Which steps to measure for a cost model: chunks, cached contexts, batches, and both at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from pd.cost.load import StepLoad
from pd.errors import ConfigError
from pd.types import StepTime

_BESIDE = (16, 64, 256, 1024)  # chunks in mixed steps
_FIRST_BATCH = 16  # sequences, and tokens of one, in what a node times before it serves
_FIRST_CONTEXT = 1024  # of its chunks, which compute
_LONGEST_READ = 16 * _FIRST_CONTEXT  # of its decodes, which read as much of it as there is room for


@dataclass(frozen=True, slots=True)
class Point:
    """One step: chunks as (tokens cached before, tokens), decodes as the KV each one reads."""

    chunks: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()

    @property
    def load(self) -> StepLoad:
        load = StepLoad.decode(len(self.decodes), sum(self.decodes))
        for start, num_tokens in self.chunks:
            load += StepLoad.chunk(num_tokens, start)
        return load

    def within(self, max_tokens: int, max_batch: int, max_context: int) -> bool:
        """Whether it has at most so many tokens and sequences, and none longer than that."""
        load = self.load
        return (
            load.tokens <= max_tokens
            and load.rows <= max_batch
            and max(self.lengths) <= max_context
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of KV that each of its sequences holds after the step."""
        return (*(start + num_tokens for start, num_tokens in self.chunks), *self.decodes)

    def took(self, seconds: float) -> StepTime:
        """The step, which took so long."""
        load = self.load
        return StepTime(
            seconds, load.decode_seqs, load.decode_context, load.prefill_tokens,
            load.prefill_context,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """Bounds of what is measured: tokens a step, sequences a step, tokens of a sequence, and the
    tokens of KV there is room for."""

    max_tokens: int
    max_batch: int
    max_context: int
    room: int

    def __post_init__(self) -> None:
        if self.max_tokens < 4 or self.max_batch < 4 or self.max_context < 64:
            raise ConfigError(
                "a profile needs steps of at least 4 tokens, batches of at least 4 sequences and "
                f"contexts of at least 64 tokens, not {self.max_tokens}, {self.max_batch} and "
                f"{self.max_context}"
            )

    def points(self) -> list[Point]:
        """All of them, without repeats. ConfigError if there is not even room for the longest
        sequence."""
        if self.room < self.max_context:
            raise ConfigError(
                f"there is room for {self.room} tokens of KV, less than one sequence of "
                f"{self.max_context}: give it more memory or profile shorter contexts"
            )
        wanted = dict.fromkeys((*self._prefills(), *self._decodes(), *self._mixed()))
        return [point for point in wanted if self._fits(point)]

    def _prefills(self) -> Iterator[Point]:
        starts = (0, self.max_context // 8, self.max_context // 2, 3 * self.max_context // 4)
        for size, start in product(_powers(1, self.max_tokens, 2), starts):
            yield Point(((start, size),))
        for size in _powers(16, self.max_tokens // 4, 4):
            yield Point(((0, size),) * 4)

    def _decodes(self) -> Iterator[Point]:
        longest = self.max_context
        contexts = {*_powers(16, longest, 4), longest // 4, longest // 2, 3 * longest // 4}
        for batch, context in product(_powers(1, self.max_batch, 2), sorted(contexts)):
            yield Point(decodes=(context,) * batch)
        # Sequences of one batch are not equally long.
        for batch in _powers(4, self.max_batch, 4):
            low, high = self.max_context // 16, self.max_context // 2
            steps = range(batch)
            yield Point(decodes=tuple(low + (high - low) * i // (batch - 1) for i in steps))

    def _mixed(self) -> Iterator[Point]:
        sizes = [size for size in _BESIDE if size < self.max_tokens] or [self.max_tokens // 2]
        contexts = (64, max(64, self.max_context // 4))
        batches = _powers(2, self.max_batch, 4)
        for size, start, batch, each in product(
            sizes, (0, self.max_context // 4), batches, contexts
        ):
            yield Point(((start, size),), (each,) * batch)

    def _fits(self, point: Point) -> bool:
        within = point.within(self.max_tokens, self.max_batch, self.max_context)
        return within and sum(point.lengths) <= self.room


def first_points(
    max_tokens: int, max_batch: int, max_context: int, num_blocks: int, block_size: int
) -> list[Point]:
    """Nine steps that a node times before it serves, fewer where it has no room for some: first a
    prompt that fills a step, then chunks of others, small and large batches with short and with
    long contexts, and both at once.

    At most `max_tokens` a step, `max_batch` sequences, `max_context` tokens of one. They stay far
    within these where these are large: all nine together take about as long as a long prompt.
    Decodes have contexts as long as memory allows: what a token of context costs is a few
    millionths of a step, which short ones do not tell from nothing.
    """
    longest = min(max_context - 1, num_blocks * block_size // 2)
    full = max(1, min(max_tokens, longest))
    batch = max(1, min(_FIRST_BATCH, max_batch, max_tokens // 2, num_blocks // 2))
    late = min(_FIRST_CONTEXT, longest)  # where the last chunk of a long prompt ends
    long = max(2, min(_LONGEST_READ, longest, num_blocks // batch * block_size))
    short, some = max(2, long // 16), max(1, full // 4)
    points = (
        Point(((0, full),)),
        Point(((0, some),)),
        Point(((max(0, late - some), some),)),
        Point(decodes=(short,)),
        Point(decodes=(long,)),
        Point(decodes=(short,) * batch),
        Point(decodes=(long,) * batch),
        Point(((0, some),), (short,) * (batch // 2)),
        Point(((max(0, late // 2 - some), some),), (long,) * (batch // 4)),
    )
    return [
        point
        for point in dict.fromkeys(points)
        if point.within(max_tokens, max_batch, max_context)
        and sum(-(-length // block_size) for length in point.lengths) <= num_blocks
    ]


def _powers(first: int, last: int, factor: int) -> list[int]:
    """first, first * factor, ... and last."""
    found = []
    while first < last:
        found.append(first)
        first *= factor
    return [*found, last] if last >= 1 else found
