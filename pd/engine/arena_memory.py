"""How many KV blocks fit, and the tensor that holds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvstore.layout import KVLayout
from pd.engine.model import Model
from pd.errors import ConfigError
from pd_kernels.meta import AttentionMeta


def allocate_kv(layout: KVLayout, num_blocks: int, device: torch.device) -> Tensor:
    """A zeroed arena [B, L, 2, K, P, D]; on a CPU its pages are taken when first written."""
    dtype = getattr(torch, layout.dtype)
    shape = (num_blocks, *layout.block_shape)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(num_blocks * layout.block_bytes, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def wrap_kv(layout: KVLayout, buffer: object) -> Tensor:
    """An arena over memory that somebody else owns, such as POSIX shared memory.

    `buffer` is writable and a whole number of blocks long; raises ConfigError otherwise.
    """
    array = np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload]
    if not array.flags.writeable:
        raise ConfigError("a KV buffer must be writable")
    num_blocks, rest = divmod(array.nbytes, layout.block_bytes)
    if rest or not num_blocks:
        raise ConfigError(
            f"a KV buffer of {array.nbytes} bytes is no whole number of blocks "
            f"of {layout.block_bytes} bytes"
        )
    raw = torch.from_numpy(array).view(getattr(torch, layout.dtype))
    return raw.view(num_blocks, *layout.block_shape)


def free_gpu_bytes(
    model: Model, layout: KVLayout, device: torch.device, utilization: float, max_tokens: int,
    max_rows: int,
) -> int:  # fmt: skip
    """Bytes of a GPU that KV may take: `utilization` of its memory, less what is in use now
    and what a step of `max_tokens` tokens and `max_rows` rows of logits was seen to need."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    logits = _trial_step(model, layout, device, max_tokens, min(max_rows, max_tokens))
    torch.cuda.synchronize(device)
    # Sampling keeps a few copies of the logits beside those of the model.
    step = torch.cuda.max_memory_allocated(device) - before + 3 * logits.nbytes
    del logits
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(total * utilization) - (total - free) - step


def _trial_step(
    model: Model, layout: KVLayout, device: torch.device, num_tokens: int, num_rows: int
) -> Tensor:
    """A full-size step on one block of KV that every position shares."""
    kv = allocate_kv(layout, 1, device)
    positions = torch.arange(num_tokens, device=device)
    meta = AttentionMeta.from_lists(
        [[0] * layout.num_blocks_for(num_tokens)], [num_tokens], [num_tokens], 1, device
    )
    return model.forward(
        torch.zeros_like(positions),
        positions,
        kv,
        torch.full_like(positions, -1),
        meta,
        positions[num_tokens - num_rows :],
    )
