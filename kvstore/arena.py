"""The memory behind a block pool."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvstore.layout import KVLayout
from kvstore.segment import Segment, populate
from pd.errors import ConfigError, TransferError

if TYPE_CHECKING:
    import torch


class KVArena:
    """`num_blocks` blocks of KV in one piece of host memory.

    `blocks` is a uint8 array [num_blocks, block_bytes]. A `shared` arena lies in a named
    segment that other processes of this host can `attach`. Pages cost memory once they
    are touched, so an arena may be larger than what is ever used of it; or all at once, with
    `populate`, after which the first copy to a page is as fast as any other.
    """

    def __init__(self, layout: KVLayout, num_blocks: int, *, shared: bool) -> None:
        if num_blocks < 1:
            raise ValueError(f"an arena needs at least one block, not {num_blocks}")
        num_bytes = num_blocks * layout.block_bytes
        self.layout = layout
        self.num_blocks = num_blocks
        self._segment: Segment | None = None
        if shared:
            self._segment = Segment.create(num_bytes)
            self._map = self._segment.map
        else:
            self._map = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.blocks = self._view()

    @classmethod
    def resident(cls, layout: KVLayout, num_blocks: int, *, shared: bool, option: str) -> KVArena:
        """One whose pages are all in memory. ConfigError, which names the option to lower, if
        they do not fit."""
        arena = None
        try:
            arena = cls(layout, num_blocks, shared=shared)
            arena.populate()
        except (MemoryError, OSError) as error:
            if arena is not None:
                arena.close()
            why = str(error)
            if isinstance(error, OSError):
                size = num_blocks * layout.block_bytes / 2**20
                why = f"no memory for {size:.0f} MiB of KV cache: {error.strerror}"
            raise ConfigError(f"{why}; set a smaller {option}") from None
        return arena

    @classmethod
    def attach(cls, layout: KVLayout, name: str) -> KVArena:
        """Map the shared arena of another process. TransferError if it is gone or of another
        layout."""
        segment = Segment.attach(name)
        num_blocks, rest = divmod(len(segment.map), layout.block_bytes)
        if rest or not num_blocks:
            segment.close()
            raise TransferError(
                f"segment {name} is not a whole number of blocks of {layout.block_bytes} bytes"
            )
        arena = cls.__new__(cls)
        arena.layout, arena.num_blocks = layout, num_blocks
        arena._segment, arena._map = segment, segment.map
        arena.blocks = arena._view()
        return arena

    @property
    def name(self) -> str | None:
        """What to `attach`; None if the arena is private."""
        return None if self._segment is None else self._segment.name

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.layout.block_bytes

    @property
    def populated(self) -> bool:
        """Of an attached arena: whether its owner had populated it by then."""
        return self._segment is not None and self._segment.populated

    def populate(self, pause_s: float = 0.0) -> None:
        """Touch all of its pages, with pauses of so many seconds. MemoryError if they do not fit
        into memory. From any thread; ends when the arena is closed."""
        populate(self._map, pause_s)

    def as_torch(self) -> torch.Tensor:
        """The same memory as a tensor [B, L, 2, K, P, D] of the layout's dtype.

        ValueError for a quantised layout, whose rows are values and a factor.
        """
        if self.layout.quantised:
            raise ValueError(f"{self.layout.dtype} blocks are no tensor: convert them first")
        import torch

        # Through numpy, whose arrays pin the mapping; torch.frombuffer does not.
        typed = torch.from_numpy(self.blocks).view(getattr(torch, self.layout.dtype))
        return typed.view(self.num_blocks, *self.layout.block_shape)

    def close(self) -> None:
        """Give the memory back, and remove the name of a shared arena.

        Memory that a tensor still views stays until the tensor is gone.
        """
        self.blocks = np.empty((0, self.layout.block_bytes), np.uint8)
        if self._segment is not None:
            self._segment.close()
        else:
            with suppress(BufferError):
                self._map.close()

    def _view(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._map, np.uint8).reshape(self.num_blocks, -1)
