"""What steps take, learnt from steps: linear in sequences, their context, prompt tokens and the
KV that chunks of prompts read. Pure.

It is the relative error that is kept small: a step with a long chunk takes twenty times as long as
one without, and what it is off by must not drown what the others say.
"""

from __future__ import annotations

from pd.policies.linear import OnlineLinear
from pd.types import NodeSnapshot

_MIN_SAMPLES = 5


class StepTimes:
    """As they were lately. `prompt_context` is in tokens, the sum over chunks of where each ends:
    a chunk reads the KV of all that is before it in its prompt, however short it is itself."""

    __slots__ = ("_model",)

    def __init__(self) -> None:
        self._model = OnlineLinear(5)

    def add(
        self, seqs: int, context: int, prompt_tokens: int, prompt_context: int, seconds: float
    ) -> None:
        """A step that took so long, which must be more than 0."""
        weight = 1.0 / seconds
        load = (1.0, seqs, context, prompt_tokens, prompt_context)
        self._model.add([weight * each for each in load], 1.0)

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
