"""`StepLoad`: how much work a step is, as the few sums that its duration depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pd.types import BatchPlan

Phase = Literal["prefill", "decode", "mixed"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class StepLoad:
    """The work of one step, or a prediction of it.

    `prefill_pairs` counts the query-key pairs of causal attention: over all chunks of n tokens
    after `start` earlier ones, the sum of n * (start + (n + 1) / 2). `prefill_context` is the
    KV those chunks read, in tokens: the sum of start + n. `decode_context` is the KV that the
    decoding sequences read, the token they run included.
    """

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    num_chunks: int = 0
    decode_seqs: int = 0
    decode_context: int = 0
    prefill_context: int = 0

    @property
    def tokens(self) -> int:
        """Rows of the flat batch: what every linear layer multiplies."""
        return self.prefill_tokens + self.decode_seqs

    @property
    def phase(self) -> Phase:
        if not self.num_chunks:
            return "decode"
        return "mixed" if self.decode_seqs else "prefill"

    @property
    def rows(self) -> int:
        """Sequences in the step: an upper bound of the rows of logits."""
        return self.num_chunks + self.decode_seqs

    def __add__(self, other: StepLoad) -> StepLoad:
        """Both in one step."""
        return StepLoad(
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.num_chunks + other.num_chunks,
            self.decode_seqs + other.decode_seqs,
            self.decode_context + other.decode_context,
            self.prefill_context + other.prefill_context,
        )

    @classmethod
    def chunk(cls, num_tokens: int, start: int = 0) -> StepLoad:
        """One chunk of a prompt after `start` tokens whose KV exists."""
        pairs = num_tokens * (start + (num_tokens + 1) / 2)
        return cls(num_tokens, pairs, 1, prefill_context=start + num_tokens)

    @classmethod
    def decode(cls, num_seqs: int, context: int) -> StepLoad:
        """A decode-only step; `context` of all its sequences together."""
        return cls(decode_seqs=num_seqs, decode_context=context)

    @classmethod
    def of(cls, plan: BatchPlan) -> StepLoad:
        """The load of a step as planned."""
        tokens = prefill_context = 0
        pairs = 0.0
        for chunk in plan.chunks:
            n, start = chunk.num_tokens, chunk.start
            tokens += n
            pairs += n * (start + (n + 1) / 2)
            prefill_context += start + n
        decodes = plan.decodes
        context = len(decodes)
        for seq in decodes:
            context += seq.num_computed
        return cls(tokens, pairs, len(plan.chunks), len(decodes), context, prefill_context)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step: what it had to do, and the seconds it took."""

    load: StepLoad
    seconds: float
