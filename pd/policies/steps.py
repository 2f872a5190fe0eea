"""What steps take, learnt from steps: linear in sequences, their context, prompt tokens and the
KV that chunks of prompts read. Pure.

It is the relative error that is kept small: a step with a long chunk takes twenty times as long as
one without, and what it is off by must not drown what the others say.
"""

from __future__ import annotations

from collections.abc import Iterable

from pd.policies.linear import OnlineLinear
from pd.types import NodeSnapshot, StepTime

_MIN_SAMPLES = 5
# Of a first step, where the last two hundred count one each: enough to tell apart what steps of
# one kind cannot, and little against what a node shows later.
_FIRST_WEIGHT = 3.0


class StepTimes:
    """As they were lately, and as the `first` ones were, of several kinds, which are never
    forgotten: steps that are all of a kind do not tell what one of another kind would take.

    `prompt_context` is in tokens, the sum over chunks of where each ends: a chunk reads the KV of
    all that is before it in its prompt, however short it is itself."""

    __slots__ = ("_model",)

    def __init__(self, first: Iterable[StepTime] = ()) -> None:
        self._model = OnlineLinear(5)
        for step in first:
            load = (step.seqs, step.context, step.prompt_tokens, step.prompt_context)
            self._model.hold(_features(*load, step.seconds), 1.0, _FIRST_WEIGHT)

    def add(
        self, seqs: int, context: int, prompt_tokens: int, prompt_context: int, seconds: float
    ) -> None:
        """A step that took so long, which must be more than 0."""
        self._model.add(_features(seqs, context, prompt_tokens, prompt_context, seconds), 1.0)

    def learn(self, snapshot: NodeSnapshot) -> None:
        """The last step that a node tells of, if anything was in it."""
        if snapshot.step_seqs or snapshot.step_prompt_tokens:
            self.add(
                snapshot.step_seqs, snapshot.step_context, snapshot.step_prompt_tokens,
                snapshot.step_prompt_context, snapshot.step_s,
            )  # fmt: skip

    @property
    def known(self) -> bool:
        return self._model.num_samples >= _MIN_SAMPLES

    def step_s(
        self,
        seqs: float,
        context: float,
        prompt_tokens: float = 0.0,
        prompt_context: float = 0.0,
    ) -> float:
        """Of such a step; only once they are `known`."""
        return self._model.predict((1.0, seqs, context, prompt_tokens, prompt_context))

    def per_seq_s(self, context: float) -> float:
        """What one more sequence of so much context adds to every step."""
        coefficients = self._model.coefficients
        return coefficients[1] + coefficients[2] * context

    @property
    def per_prompt_token_s(self) -> float:
        """What one more token adds to a chunk, which also reads its KV."""
        coefficients = self._model.coefficients
        return coefficients[3] + coefficients[4]

    def chunk_s(self, start: float) -> float:
        """What a chunk adds to a step before its first token, where its prompt has so many."""
        return self._model.coefficients[4] * start


def _features(
    seqs: int, context: int, prompt_tokens: int, prompt_context: int, seconds: float
) -> tuple[float, ...]:
    """In units of the step's own time, so that it is relative errors that count."""
    weight = 1.0 / seconds
    return (
        weight, weight * seqs, weight * context, weight * prompt_tokens, weight * prompt_context
    )  # fmt: skip
