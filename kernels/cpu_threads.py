"""The one thread count of the CPU kernels: torch's, whatever set it.

Numba's parallel kernels use its OpenMP layer. torch is imported first so that both load the same
OpenMP runtime and share one pool of threads; two pools on the same cores would each spin in the
other's way. Where numba has no thread-safe layer its own work queue serves, which must not be
entered by two threads at once: kernels then keep the interpreter lock (`NOGIL` is False).
"""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from typing import Any

import torch  # isort: skip  (before numba: see above)
import numba
from numba import config

if "NUMBA_THREADING_LAYER" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

NOGIL: bool = config.THREADING_LAYER != "workqueue" and (
    find_spec("numba.np.ufunc.omppool") is not None
    or find_spec("numba.np.ufunc.tbbpool") is not None
)

PARALLEL: Any = {
    "prange": True,
    # Everything else that numba would make parallel by itself is too small, and slow to compile.
    "comprehension": False,
    "fusion": False,
    "inplace_binop": False,
    "numpy": False,
    "reduction": False,
    "setitem": False,
    "stencil": False,
}
"""The `parallel` option of kernels: threads where prange says so, and nowhere else."""

MAX_THREADS: int = config.NUMBA_NUM_THREADS

# Starting numba's threads sets the OpenMP count of this thread, which is torch's too.
_count = torch.get_num_threads()
numba.get_num_threads()
torch.set_num_threads(_count)

_launch = threading.local()


def num_threads() -> int:
    """Threads that a kernel launched now by this thread uses. Call it before every launch: numba
    keeps its count per launching thread, and this brings it up to date."""
    count = min(torch.get_num_threads(), MAX_THREADS)
    if getattr(_launch, "count", 0) != count:
        numba.set_num_threads(count)
        _launch.count = count
    return count


def set_num_threads(count: int) -> None:
    """Make torch and the kernels here use `count` threads. Raises ValueError below 1."""
    if count < 1:
        raise ValueError(f"thread count is {count}; it must be at least 1")
    torch.set_num_threads(count)
