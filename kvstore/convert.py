"""Blocks of one layout as blocks of another: other heads, another dtype, the same KV.

Nodes of different tensor-parallel degree hold different heads of the same tokens; they exchange
those that both have. A sender's heads [a, b) and a receiver's [c, d) meet in [max, min): a
receiver that has more heads than one sender gets them from several, each filling its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore import quantise
from kvstore.layout import KVLayout
from pd.errors import TransferError

Blocks = NDArray[np.uint8]  # [num_blocks, block_bytes]

# Elements converted at once: what stays in a core's cache, and what torch does in this thread.
_ELEMENTS = 1 << 15


def payload_layout(source: KVLayout, target: KVLayout, dtype: str | None = None) -> KVLayout:
    """What travels from `source` to `target`: the heads that both have, in `dtype`, or without
    one in the dtype of the two that takes fewer bytes.

    TransferError if the layouts are of different KV, or have no head in common.
    """
    if source.content != target.content:
        raise TransferError(
            "the KV layouts hold different things: model, layers, heads, head_dim or block_size "
            "are not the same"
        )
    start = max(source.kv_head_start, target.kv_head_start)
    stop = min(source.kv_heads.stop, target.kv_heads.stop)
    if start >= stop:
        raise TransferError(f"no kv head of {source.kv_heads} is in {target.kv_heads}")
    if dtype is None:
        dtype = source.dtype if source.row_bytes < target.row_bytes else target.dtype
    return target.part(dtype, start, stop - start)


def convert(
    source: Blocks,
    src: Sequence[int],
    source_layout: KVLayout,
    target: Blocks,
    dst: Sequence[int],
    target_layout: KVLayout,
) -> None:
    """Write blocks `src` into blocks `dst` of `target`, as its layout wants them.

    The heads that the source lacks stay as they are. Rounds to the nearest, ties to even; what
    float16 cannot hold becomes infinite. TransferError as in `payload_layout`.
    """
    part = payload_layout(source_layout, target_layout)
    reading, writing = _heads(source, source_layout, part), _heads(target, target_layout, part)
    for i, j in zip(src, dst, strict=True):
        if source_layout.dtype == target_layout.dtype:
            writing[j] = reading[i]
        else:
            _convert_block(reading[i], source_layout, writing[j], target_layout)


def converted(
    source: Blocks, src: Sequence[int], source_layout: KVLayout, target_layout: KVLayout
) -> Blocks:
    """Blocks `src` as new blocks of `target_layout`, whose heads the source has all."""
    target = np.empty((len(src), target_layout.block_bytes), np.uint8)
    convert(source, src, source_layout, target, range(len(src)), target_layout)
    return target


def _heads(blocks: Blocks, layout: KVLayout, part: KVLayout) -> Blocks:
    """The bytes of the heads of `part`: [block, layer and k|v, bytes of those heads]."""
    head_bytes = layout.block_size * layout.row_bytes
    start = (part.kv_head_start - layout.kv_head_start) * head_bytes
    layers = blocks.reshape(len(blocks), 2 * layout.num_layers, -1)
    return layers[:, :, start : start + part.num_kv_heads * head_bytes]


def _convert_block(
    source: Blocks, source_layout: KVLayout, target: Blocks, target_layout: KVLayout
) -> None:
    """Heads [layer and k|v, bytes] of one block into heads of another dtype."""
    step = max(1, _ELEMENTS * source_layout.row_bytes // source_layout.head_dim // source.shape[1])
    for at in range(0, len(source), step):
        reading, writing = (
            torch.from_numpy(part[at : at + step]).unflatten(1, (-1, layout.row_bytes))
            for part, layout in ((source, source_layout), (target, target_layout))
        )
        _encode(_decode(reading, source_layout.dtype), target_layout.dtype, writing)


def _decode(rows: Tensor, dtype: str) -> Tensor:
    """float32 values [..., D] of rows."""
    if dtype in quantise.LARGEST:
        return quantise.decode(rows, dtype)
    return rows.view(getattr(torch, dtype)).to(torch.float32)


def _encode(values: Tensor, dtype: str, out: Tensor) -> None:
    if dtype in quantise.LARGEST:
        quantise.encode(values, dtype, out)
    else:
        out.view(getattr(torch, dtype)).copy_(values)
