"""Changes a request makes to the model's logits: bias, penalties, tokens it may not end with.

All rows of a batch are edited by a few scatters, so the cost does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pd.engine.sampler import SampleRow


class _Scatter:
    """Entries (row, token, numbers) gathered over the batch, then taken as tensors at once."""

    def __init__(self, numbers: int) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._tokens: list[NDArray[np.int64]] = []
        self._numbers: list[NDArray[np.float32]] = []
        self._width = numbers

    def add(self, row: int, tokens: NDArray[np.int64], *numbers: object) -> None:
        self._rows.append(np.full(len(tokens), row))
        self._tokens.append(tokens)
        columns = np.empty((len(tokens), self._width), np.float32)
        for i, number in enumerate(numbers):
            columns[:, i] = number  # type: ignore[call-overload]
        self._numbers.append(columns)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def tensors(
        self, device: torch.device
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
        """((rows, tokens), numbers), each [entries]."""
        rows = torch.from_numpy(np.concatenate(self._rows)).to(device)
        tokens = torch.from_numpy(np.concatenate(self._tokens)).to(device)
        numbers = torch.from_numpy(np.concatenate(self._numbers)).to(device)
        return (rows, tokens), numbers.unbind(1)


def apply_edits(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """float32 logits [R, V] as the rows' parameters change them; `logits` itself if none does."""
    bias, repeated, counted, masked = _Scatter(1), _Scatter(1), _Scatter(1), _Scatter(0)
    vocab = logits.shape[1]
    for i, row in enumerate(rows):
        params = row.params
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias.keys(), np.int64)
            values = np.fromiter(params.logit_bias.values(), np.float32)
            known = (ids >= 0) & (ids < vocab)
            bias.add(i, ids[known], values[known])
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.array([*row.prompt, *row.output], np.int64))
            repeated.add(i, seen[seen < vocab], params.repetition_penalty)
        if (params.presence_penalty or params.frequency_penalty) and row.output:
            ids, counts = np.unique(np.array(row.output, np.int64), return_counts=True)
            counted.add(i, ids, params.presence_penalty + params.frequency_penalty * counts)
        if row.position < params.min_tokens:
            ends = np.array([*row.eos_ids, *params.stop_token_ids], np.int64)
            masked.add(i, ends[(ends >= 0) & (ends < vocab)])
    if not (bias or repeated or counted or masked):
        return logits
    logits = logits.clone()
    device = logits.device
    if bias:
        place, (amount,) = bias.tensors(device)
        logits.index_put_(place, amount, accumulate=True)
    if repeated:
        place, (penalty,) = repeated.tensors(device)
        value = logits[place]
        logits[place] = torch.where(value > 0, value / penalty, value * penalty)
    if counted:
        place, (amount,) = counted.tensors(device)
        logits[place] -= amount
    if masked:
        place, _ = masked.tensors(device)
        logits[place] = float("-inf")
    return logits
