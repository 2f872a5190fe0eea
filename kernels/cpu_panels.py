"""Matrix products of float32 rows with weights packed into panels, at any batch size.

Legend: M rows of x, K inner size, N columns of the result.
Weights [N, K] are stored as panels [ceil(N / PANEL), K, PANEL]: the values one tile step needs
lie side by side and a whole matrix is one stream through memory. The same stored copy serves a
single row, which runs at the speed of memory, and a prefill, which runs at that of arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

from pd_kernels import cpu_cache  # noqa: F401  (where compiled kernels go)
from pd_kernels.cpu_threads import NOGIL, PARALLEL
from pd_kernels.cpu_vector import MAX_ROWS, PANEL, dot_tile

# Panels that a thread takes through all rows of a block before it moves on: they stay in the
# second-level cache, as the rows do.
_GROUP_BYTES = 512 * 1024
_TILES_PER_BLOCK = 32


def pack_panels(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight [N, K] -> contiguous [ceil(N / PANEL), K, PANEL] of dtype, zero beyond N."""
    n, k = weight.shape
    whole = n // PANEL
    packed = torch.empty(-(-n // PANEL), k, PANEL, dtype=dtype)
    packed[:whole] = weight[: whole * PANEL].reshape(whole, PANEL, k).transpose(1, 2)
    if n % PANEL:
        packed[whole] = 0
        packed[whole, :, : n % PANEL] = weight[whole * PANEL :].t()
    return packed


def unpack_panels(packed: torch.Tensor, n: int) -> torch.Tensor:
    """Inverse of pack_panels: contiguous [n, K] of the packed dtype."""
    return packed.transpose(1, 2).flatten(0, 1)[:n].contiguous()


@njit
def _matmul_share(y, ldy, init, ldi, x, ldx, w, tile, weight_bytes, m, k, panels, share, shares):
    panel_bytes = k * PANEL * weight_bytes
    group = max(1, _GROUP_BYTES // max(1, panel_bytes))
    # Tiles of a block, blocks of the whole and threads each get nearly the same number of rows:
    # the threads wait for each other at the end.
    tiles = (m + MAX_ROWS - 1) // MAX_ROWS
    blocks = (tiles + _TILES_PER_BLOCK - 1) // _TILES_PER_BLOCK
    units = blocks * panels  # one unit: one panel of one block of rows
    unit = share * units // shares
    stop = (share + 1) * units // shares
    while unit < stop:
        block = unit // panels
        first = unit - block * panels
        last = min(panels, first + group, first + stop - unit)
        for t in range(block * tiles // blocks, (block + 1) * tiles // blocks):
            row = t * m // tiles
            rows = (t + 1) * m // tiles - row
            x_row = x + row * ldx * 4
            for p in range(first, last):
                y_tile = y + (row * ldy + p * PANEL) * 4
                init_tile = init + (row * ldi + p * PANEL) * 4
                panel = w + p * panel_bytes
                dot_tile(tile, y_tile, ldy, init_tile, ldi, x_row, ldx, panel, k, rows)
        unit += last - first


@njit(parallel=PARALLEL, nogil=NOGIL, cache=True)
def matmul(y, ldy, init, ldi, x, ldx, w, tile, weight_bytes, m, k, panels, threads):
    """y = init + x @ unpack(w).T

    Addresses and leading dimensions (in elements) are integers. y and init have whole panels of
    columns; ldi 0 repeats one row of init, as a bias is; init may be y itself. x and y are
    float32; w has elements of weight_bytes, and `tile` is the tile_address for them. m >= 1.
    """
    for thread in prange(threads):
        _matmul_share(
            y,
            ldy,
            init,
            ldi,
            x,
            ldx,
            w,
            tile,
            weight_bytes,
            m,
            k,
            panels,
            np.int64(thread),
            threads,
        )
