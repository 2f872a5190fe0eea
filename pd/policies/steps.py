"""What steps take, learnt from steps: linear in sequences, their context and prompt tokens. Pure.

It is the relative error that is kept small: a step with a long chunk takes twenty times as long as
one without, and what it is off by must not drown what the others say.
"""

from __future__ import annotations

from pd.policies.linear import OnlineLinear

_MIN_SAMPLES = 5


class StepTimes:
    """As they were lately."""

    __slots__ = ("_model",)

    def __init__(self) -> None:
        self._model = OnlineLinear(4)

    def add(self, seqs: int, context: int, prompt_tokens: int, seconds: float) -> None:
        """A step that took so long, which must be more than 0."""
        weight = 1.0 / seconds
        self._model.add((weight, seqs * weight, context * weight, prompt_tokens * weight), 1.0)

    @property
    def known(self) -> bool:
        return self._model.num_samples >= _MIN_SAMPLES

    def step_s(self, seqs: float, context: float, prompt_tokens: float = 0.0) -> float:
        """Of such a step; only once they are `known`."""
        return self._model.predict((1.0, seqs, context, prompt_tokens))

    def per_seq_s(self, context: float) -> float:
        """What one more sequence of so much context adds to every step."""
        _, seq, token, _ = self._model.coefficients
        return seq + token * context

    @property
    def per_prompt_token_s(self) -> float:
        return self._model.coefficients[3]
