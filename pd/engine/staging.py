"""Step inputs on their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pd.engine.batch import BatchArrays
from pd_kernels.meta import AttentionMeta

_ALIGNMENT = 16  # so that every array's slice of the buffer can be viewed as its dtype


class Staging:
    """Moves numpy arrays to a device.

    On the CPU the tensors share the arrays' memory. On CUDA all arrays of a step go through
    one pinned buffer and one asynchronous copy, so that the host never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def upload(self, arrays: list[np.ndarray]) -> list[Tensor]:
        """One device tensor per array (int32 or int64), same shapes and dtypes."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        host = self._buffer(packed_bytes(arrays))
        pack(arrays, host)
        device = host.to(self._device, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return unpack(device, arrays)

    def _buffer(self, num_bytes: int) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()  # the previous step's copy may still be reading
        if self._pinned.shape[0] < num_bytes:
            self._pinned = torch.empty(2 * num_bytes, dtype=torch.uint8, pin_memory=True)
        return self._pinned[:num_bytes]


def packed_bytes(arrays: list[np.ndarray]) -> int:
    """How long a buffer `pack` needs."""
    return sum(_padded(array) for array in arrays)


def pack(arrays: list[np.ndarray], host: Tensor) -> None:
    """Write arrays one after another into uint8 `host`, each on an aligned offset."""
    view, start = host.numpy(), 0
    for array in arrays:
        view[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        start += _padded(array)


def unpack(packed: Tensor, like: list[np.ndarray]) -> list[Tensor]:
    """Views of what `pack` wrote, with the dtypes and shapes of `like`."""
    tensors, start = [], 0
    for array in like:
        dtype = torch.int64 if array.dtype == np.int64 else torch.int32
        tensors.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _padded(array)
    return tensors


def _padded(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT


def attention_meta(batch: BatchArrays, staging: Staging) -> tuple[list[Tensor], AttentionMeta]:
    """([token_ids, positions, slots, logit_rows, draws?], meta) of a step, on the device."""
    flat = [batch.token_ids, batch.positions, batch.slots, batch.logit_rows]
    if batch.draws is not None:
        flat.append(batch.draws)
    tensors = staging.upload([*flat, batch.block_tables, batch.query_starts, batch.context_lens])
    block_tables, query_starts, context_lens = tensors[-3:]
    meta = AttentionMeta(
        block_tables=block_tables,
        query_starts=query_starts,
        context_lens=context_lens,
        num_prefill=batch.num_prefill,
        num_decode=batch.num_decode,
        max_query_len=batch.max_query_len,
        max_context_len=batch.max_context_len,
    )
    return tensors[:-3], meta
