"""One byte a value: how near it stays, and what it does with values that are out of the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kvstore.layout import KVLayout
from kvstore.quantise import LARGEST, decode, encode

FORMATS = sorted(LARGEST)


def around(values: torch.Tensor, name: str) -> torch.Tensor:
    rows = torch.full((*values.shape[:-1], values.shape[-1] + 4), 255, dtype=torch.uint8)
    encode(values, name, rows)
    return decode(rows, name)


@pytest.mark.parametrize("name", FORMATS)
@given(
    arrays(
        np.float32, array_shapes(min_dims=1, max_dims=3, max_side=20),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)  # fmt: skip
def test_the_error_is_bounded(name: str, array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    error = (around(values, name) - values).abs()
    peak = values.abs().amax(-1, keepdim=True)
    bound = peak / 253 if name == "int8" else torch.maximum(values.abs() / 15, peak * 2**-18)
    assert (error <= bound + 1e-30).all()


@pytest.mark.parametrize("name", FORMATS)
def test_largest_magnitudes_and_zeros_are_exact(name: str) -> None:
    values = torch.tensor(
        [[0.0, -3.5, 1.0, 3.5], [0.0] * 4, [-1e-35, 0, 0, 0], [1e35, -1e35, 0, 0]]
    )
    back = around(values, name)
    torch.testing.assert_close(back[:, 1], torch.tensor([-3.5, 0, 0, -1e35]))
    assert (back[1:3] == 0).all() and back[0, 0] == 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_not_hidden(name: str, bad: float) -> None:
    values = torch.ones(3, 8)
    values[1, 5] = bad
    back = around(values, name)
    assert not back[1].isfinite().any() and (back[[0, 2]] == 1).all()


def test_fp8_is_e4m3() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = every.view(torch.float8_e4m3fn).to(torch.float32)
    finite = ~values.isnan()
    rows = torch.zeros(int(finite.sum()), 2 + 4, dtype=torch.uint8)
    pairs = torch.stack([values[finite], torch.full_like(values[finite], 448.0)], 1)
    encode(pairs, "fp8", rows)  # the 448 makes the factor 1
    assert (rows[:, 0] == every[finite]).all()
    torch.testing.assert_close(decode(rows, "fp8"), pairs, rtol=0, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_sizes(name: str) -> None:
    smol = KVLayout(name, 30, 3, 64, 16, "smollm2")
    assert smol.row_bytes == 68 and smol.block_bytes == 30 * 2 * 3 * 16 * 68 == 195_840
