"""The table of cosines and sines that the rotary kernel reads.

Each kind of scaling changes the inverse frequencies only; YaRN also scales the table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pd.engine.rope import RopeSpec


def cos_sin_table(
    rope: RopeSpec, head_dim: int, num_positions: int, device: torch.device
) -> Tensor:
    """float32 [num_positions, head_dim]: cos of the D/2 angles, then their sin."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    return table.mul_(rope.attention_factor).to(device)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """float32 [head_dim / 2], in radians per position."""
    periods = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    plain = 1.0 / periods
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    return _yarn(rope, plain, head_dim)


def _llama3(rope: RopeSpec, plain: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    turns = rope.original_max / (2 * math.pi / plain)  # turns made within the original context
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(rope: RopeSpec, plain: Tensor, head_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): a linear ramp over the dimensions between
    those that make `beta_fast` turns within the original context and those that make
    `beta_slow`."""

    def dimension(turns: float) -> float:
        wavelength = rope.original_max / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    stretch = ramp.clamp(0.0, 1.0)
    return plain / rope.factor * stretch + plain * (1 - stretch)
