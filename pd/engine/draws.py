"""What a draw is, and drawing with plain torch on any device.

A token is drawn by adding Gumbel noise to the logits and taking the largest. The noise of a
token is a hash of the sequence's seed, the position of the token drawn and the token's id, so
it is the same on every device, in every batch and after every restart; rounding differences in
the logits change a draw only where the two best tokens are that close.

Legend: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

# SplitMix64 (Steele, Lea and Flood 2014).
_MASK = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

GREEDY_BELOW = 1e-5
"""Temperatures below this draw the largest logit: dividing by them could overflow."""


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def draw_key(seed: int, position: int) -> int:
    """The unsigned 64-bit key of all noise of one draw."""
    return _mix((_mix((seed + _GOLDEN) & _MASK) + (position + 1) * _GOLDEN) & _MASK)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def gumbel(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Noise float64 [R, V] of keys int64 [R] (the bits of `draw_key`)."""
    ids = torch.arange(1, vocab_size + 1, device=keys.device)
    z = keys[:, None] + ids * _signed(_GOLDEN)  # integer arithmetic wraps, as it must
    z = (z ^ _shift(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift(z, 27)) * _signed(_SECOND)
    uniform = (_shift(z ^ _shift(z, 31), 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform))


def _top_p_threshold(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Least logit [R, 1] kept: the largest are taken while the mass before is below top_p."""
    ordered = logits.sort(dim=-1, descending=True).values
    mass = torch.exp(ordered - ordered[:, :1]).double().cumsum(dim=-1)
    before = torch.cat((torch.zeros_like(mass[:, :1]), mass[:, :-1]), dim=-1)
    kept = (before < top_p[:, None] * mass[:, -1:]).sum(dim=-1).clamp(min=1)
    return ordered.gather(1, (kept - 1)[:, None])


def draw(logits: torch.Tensor, settings: np.ndarray, keys: np.ndarray) -> torch.Tensor:
    """Tokens int64 [R] drawn from float32 logits [R, V]; -1 where none is finite.

    settings: float64 [R, 4], each row temperature, min_p, top_k, top_p (top_k 0 for none);
    keys: uint64 [R], `draw_key` of each row.
    """
    device, vocab = logits.device, logits.shape[1]
    peak = logits.max(dim=-1)
    greedy = settings[:, 0] < GREEDY_BELOW
    tokens = peak.indices
    if not greedy.all():
        cold = settings.copy()
        cold[greedy] = (1.0, 0.0, 0.0, 1.0)
        temperature, min_p, top_k, top_p = torch.from_numpy(cold).to(device).unbind(1)
        scaled = logits / temperature.float()[:, None]
        largest = scaled.max(dim=-1, keepdim=True).values
        low = (largest.double() + min_p.log()[:, None]).float()
        if ((settings[:, 2] > 0) & (settings[:, 2] < vocab)).any():
            ranks = torch.where(top_k > 0, top_k, float(vocab)).clamp(max=vocab).long()
            ordered = scaled.sort(dim=-1, descending=True).values
            low = torch.maximum(low, ordered.gather(1, ranks[:, None] - 1))
        if (settings[:, 3] < 1).any():
            kept = scaled.masked_fill(scaled < low, float("-inf"))
            threshold = _top_p_threshold(kept, top_p)
            low = torch.where((top_p < 1)[:, None], torch.maximum(low, threshold), low)
        low = torch.minimum(low, largest)
        noise = gumbel(torch.from_numpy(keys.view(np.int64)).to(device), vocab)
        scores = (scaled.double() + noise).masked_fill(scaled < low, float("-inf"))
        drawn = scores.argmax(dim=-1)
        tokens = torch.where(torch.from_numpy(greedy).to(device), tokens, drawn)
    return torch.where(torch.isfinite(peak.values), tokens, -1)
