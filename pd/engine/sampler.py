"""`Sampler`: from a step's logits to one token for every row.

Legend: R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pd.engine import draws
from pd.engine.edits import apply_edits
from pd.types import Sampled, SamplingParams

__all__ = ["SampleRow", "Sampled", "Sampler"]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What decides one draw beside the logits.

    position: the tokens this sequence has drawn before, which is the index of this one.
    prompt, output: token ids; read by penalties only. eos_ids: masked while the output is
    shorter than `params.min_tokens`, as `params.stop_token_ids` are.
    """

    params: SamplingParams
    seed: int
    position: int
    prompt: Sequence[int]
    output: Sequence[int]
    eos_ids: tuple[int, ...] = ()


class Sampler:
    """Draws tokens. The result for a row depends on that row alone, whatever is beside it.

    Order: logit bias; repetition (prompt and output), presence and frequency (output)
    penalties; min_tokens; temperature; min-p; top-k; top-p; draw. Tokens that tie at the edge of
    a filter are all kept. Reported log-probabilities are the model's own, before all of this.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._compiled: Callable[..., np.ndarray] | None = None
        if device.type == "cpu":
            try:
                from pd_kernels import cpu_sample
            except ModuleNotFoundError:  # without numba, plain torch serves
                return
            self._compiled = cpu_sample.draw

    def sample(self, logits: torch.Tensor, rows: list[SampleRow]) -> list[Sampled]:
        """One token for each row of float32 logits [R, V].

        Raises ValueError where a row has no finite logit or the shapes disagree.
        """
        if logits.shape != (len(rows), self.vocab_size):
            raise ValueError(
                f"logits are {tuple(logits.shape)}, but there are {len(rows)} rows of a "
                f"vocabulary of {self.vocab_size}"
            )
        if logits.dtype is not torch.float32:
            raise TypeError(f"logits are {logits.dtype}; they must be float32")
        if not rows:
            return []
        edited = apply_edits(logits, rows)
        tokens = self._draw(edited.contiguous(), rows)
        if min(tokens) < 0:
            raise ValueError(
                f"row {tokens.index(-1)} of the logits has no finite value: either the weights "
                "or the activations overflowed, or every token is masked by logit_bias"
            )
        sampled = [Sampled(token) for token in tokens]
        reports = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        if reports:
            for i, report in zip(reports, self._report(logits, rows, reports, tokens)):
                sampled[i] = report
        return sampled

    def _draw(self, logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
        settings = np.zeros((len(rows), 4))
        keys = np.zeros(len(rows), np.uint64)
        for i, row in enumerate(rows):
            params = row.params
            if params.temperature >= draws.GREEDY_BELOW:
                settings[i] = params.temperature, params.min_p, max(params.top_k, 0), params.top_p
                keys[i] = draws.draw_key(row.seed, row.position)
        if self._compiled is not None:
            return self._compiled(logits, settings, keys).tolist()
        return draws.draw(logits, settings, keys).tolist()

    def _report(
        self, logits: torch.Tensor, rows: list[SampleRow], which: list[int], tokens: list[int]
    ) -> Iterable[Sampled]:
        """Log-probabilities of the model for the rows that want them."""
        index = torch.tensor(which, device=logits.device)
        chosen = torch.tensor([tokens[i] for i in which], device=logits.device)
        logprobs = torch.log_softmax(logits[index].float(), dim=-1)
        values = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        counts = [min(rows[i].params.logprobs or 0, self.vocab_size) for i in which]
        best = logprobs.topk(max(counts), dim=-1)
        best_values, best_ids = best.values.tolist(), best.indices.tolist()
        for n, i in enumerate(which):
            pairs = zip(best_ids[n][: counts[n]], best_values[n][: counts[n]])
            yield Sampled(tokens[i], values[n], tuple(pairs))
