"""KV in one byte a value: int8 and fp8 (e4m3), with a factor for each token and head.

A row is the D values of one token and head of one layer's keys, or values. Quantised it is D
bytes and a float32 factor, `D + 4` bytes: for D = 64 that is 68 bytes instead of 256 (float32)
or 128 (bfloat16). The factor makes the row's largest magnitude the largest that the format has.
A row with a value that is not finite comes back without a finite one.

Rounding is to the nearest. The error of a value is at most 1/254 of its row's largest magnitude
as int8; as fp8 1/15 of the value itself, and 2**-19 of the largest where that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The largest magnitude of each format."""

_FACTOR_BYTES = 4

# Rows below this are zero: the inverse of their factor would not be finite.
_TINY = 1e-30

# e4m3 is float16 with a shorter exponent and mantissa: 7 bits fewer, and values 2**8 larger. That
# way is much faster than torch's own conversion, which is not vectorised on CPUs.
_HALF = 2.0**-8
_DROPPED_BITS = 7


def encode(values: Tensor, name: str, out: Tensor) -> None:
    """Rows `values` (float32 [..., D]) as bytes into `out` (uint8 [..., D + 4])."""
    dim = values.shape[-1]
    peak = values.abs().amax(-1, keepdim=True)
    zero = peak < _TINY
    factor = (peak / LARGEST[name]).masked_fill_(zero, 0.0)
    scaled = values * (LARGEST[name] / peak).masked_fill_(zero, 0.0)
    if name == "int8":
        out[..., :dim].view(torch.int8).copy_(scaled.round_())
    else:
        out[..., :dim] = _to_e4m3(scaled)
    out[..., dim:] = factor.view(torch.uint8)


def decode(rows: Tensor, name: str) -> Tensor:
    """The values (float32 [..., D]) of encoded rows (uint8 [..., D + 4])."""
    dim = rows.shape[-1] - _FACTOR_BYTES
    # Rows need not lie where a float32 may.
    factor = rows[..., dim:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    values = rows[..., :dim].view(torch.int8)
    if name == "int8":
        return values * factor
    return _from_e4m3(values).mul_(factor)


def _to_e4m3(scaled: Tensor) -> Tensor:
    bits = (scaled * _HALF).to(torch.float16).view(torch.int16)
    sign = (bits >> 8).bitwise_and_(0x80)
    magnitude = bits & 0x7FFF
    odd = (magnitude >> _DROPPED_BITS).bitwise_and_(1)
    magnitude += odd.add_((1 << _DROPPED_BITS - 1) - 1)  # to the nearest, ties to even
    return (magnitude >> _DROPPED_BITS).bitwise_or_(sign).to(torch.uint8)


def _from_e4m3(values: Tensor) -> Tensor:
    wide = values.to(torch.int16) << _DROPPED_BITS  # the sign is in the upper two bits
    return (wide & ~0x4000).view(torch.float16).to(torch.float32).mul_(1 / _HALF)
