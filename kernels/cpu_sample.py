"""Drawing tokens on the CPU. The torch counterpart, and what a draw is: pd.engine.draws.

Legend: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange

from pd_kernels import cpu_cache
from pd_kernels.cpu_math import exp
from pd_kernels.cpu_threads import NOGIL, PARALLEL, num_threads

# SplitMix64 (Steele, Lea and Flood 2014): the increment and the two multipliers.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _33, _11 = (np.uint64(n) for n in (30, 27, 31, 33, 11))
_ONE = np.uint64(1)

# Buckets of a row's tokens by distance from its largest logit, in steps of 1/32 up to 64.
_BUCKETS, _BUCKETS_PER_UNIT = 2048, np.float32(32.0)
_GREEDY_BELOW = 1e-5  # a temperature that divides without overflow; as in pd.engine.draws


@njit(inline="always")
def _hash(key, token):
    z = key + (np.uint64(token) + _ONE) * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@njit
def _score(key, token, logit):
    """logit + Gumbel noise of the token."""
    uniform = (np.float64(_hash(key, token) >> _11) + 0.5) * 2.0**-53
    return np.float64(logit) - math.log(-math.log1p(-uniform))


@njit(fastmath={"nnan", "nsz", "reassoc", "contract"})
def _largest(logits):
    peak = np.float32(-np.inf)
    for i in range(logits.size):
        peak = max(peak, logits[i])
    return peak


@njit
def _first_index(logits, value):
    for i in range(logits.size):
        if logits[i] == value:
            return i
    return -1


@njit
def _bucket(peak, logit):
    return int(min((peak - logit) * _BUCKETS_PER_UNIT, np.float32(_BUCKETS - 1)))


@njit
def _threshold(logits, peak, low, target, by_mass):
    """The least logit kept when tokens at or above `low` are taken from the largest on while the
    weight taken before is below `target`: one a token, or its exp(logit - peak) by mass.

    Tokens are weighed into buckets and only the bucket where the target is met is sorted.
    """
    weights = np.zeros(_BUCKETS, np.float64)
    for i in range(logits.size):
        if logits[i] >= low:
            weight = np.float64(exp(logits[i] - peak)) if by_mass else 1.0
            weights[_bucket(peak, logits[i])] += weight
    if by_mass:
        target *= weights.sum()
    taken = 0.0
    place = 0
    while place < _BUCKETS - 1 and taken + weights[place] < target:
        taken += weights[place]
        place += 1
    members = np.empty(logits.size, np.float32)
    count = 0
    for i in range(logits.size):
        if logits[i] >= low and _bucket(peak, logits[i]) == place:
            members[count] = logits[i]
            count += 1
    ordered = np.sort(members[:count])[::-1]
    if count == 0:
        return low
    for i in range(count):
        if i > 0 and taken >= target:
            return ordered[i - 1]
        taken += np.float64(exp(ordered[i] - peak)) if by_mass else 1.0
    return ordered[count - 1]


@njit(error_model="numpy")
def _draw(source, temperature, min_p, top_k, top_p, key, logits, maybe):
    """The token drawn from one row, or -1 if it has no finite logit. The last two are scratch."""
    peak = _largest(source)
    if not np.isfinite(peak):
        return -1
    best = _first_index(source, peak)
    if temperature < _GREEDY_BELOW:
        return best
    divisor = np.float32(temperature)
    for i in range(source.size):
        logits[i] = source[i] / divisor
    peak = peak / divisor
    low = np.float32(-np.inf)
    if min_p > 0:
        low = np.float32(np.float64(peak) + math.log(min_p))
    if 0 < top_k < logits.size:
        low = max(low, _threshold(logits, peak, low, float(top_k), False))
    if top_p < 1:
        low = max(low, _threshold(logits, peak, low, top_p, True))
    low = min(low, peak)

    top = _score(key, best, peak)
    # A token beats the score `top` only if its uniform is below exp(logit - top). Compared on the
    # leading 31 bits, with slack for rounding: what passes is then compared exactly.
    bar = np.float32(top)
    slack = np.float32(1.001)
    scale = np.float32(2.0**-31)
    for i in range(logits.size):
        leading = np.float32(np.int32(_hash(key, i) >> _33)) * scale
        passes = leading <= exp(logits[i] - bar) * slack
        maybe[i] = np.uint8(passes and logits[i] >= low)
    for i in range(logits.size):
        if maybe[i]:
            score = _score(key, i, logits[i])
            if score > top or (score == top and i < best):
                top = score
                best = i
    return best


@njit(parallel=PARALLEL, nogil=NOGIL, cache=True)
def _draw_rows(logits, settings, keys, tokens, threads):
    rows, vocab = logits.shape
    for thread in prange(threads):
        scaled = np.empty(vocab, np.float32)
        maybe = np.empty(vocab, np.uint8)
        for r in range(thread, rows, threads):
            temperature, min_p, top_k, top_p = settings[r]
            tokens[r] = _draw(
                logits[r], temperature, min_p, int(top_k), top_p, keys[r], scaled, maybe
            )


def draw(logits: torch.Tensor, settings: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Tokens int64 [R] drawn from contiguous float32 logits [R, V]; -1 where none is finite.

    settings: float64 [R, 4], each row temperature, min_p, top_k, top_p; keys: uint64 [R].
    """
    if not _warm:
        _warmup()
    tokens = np.empty(len(keys), np.int64)
    threads = min(num_threads(), len(keys))
    _draw_rows(logits.numpy(), settings, keys, tokens, threads)
    return tokens


_warm: list[bool] = []


def _warmup() -> None:
    """Load or compile the kernel, one process at a time."""
    _warm.append(True)
    with cpu_cache.compile_lock():
        draw(torch.zeros(1, 2), np.ones((1, 4)), np.ones(1, np.uint64))
