"""Softmax of scores on the CPU, as both attention kernels use it."""

from __future__ import annotations

import numpy as np
from numba import njit

from pd_kernels.cpu_math import exp, larger


@njit(fastmath={"nnan", "nsz", "reassoc"})
def _largest(scores):
    peak = scores[0]
    for i in range(scores.size):
        peak = larger(peak, scores[i])
    return peak


@njit(fastmath={"nsz", "reassoc", "contract"})
def softmax(scores, scale):
    """scores = exp((scores - largest) * scale); returns (largest, their sum).

    Loops here and below run from 0 over slices: numba takes an index that may be negative for
    one from the end, and such a loop does not become vector code.
    """
    peak = _largest(scores)
    total = np.float32(0.0)
    for i in range(scores.size):
        value = exp((scores[i] - peak) * scale)
        scores[i] = value
        total += value
    return peak, total
