"""Linear on the CPU: right for every shape, the same for a row in any batch, honest on misuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_kernels.cpu_panels import pack_panels, unpack_panels
from pd_kernels.cpu_vector import MAX_ROWS, PANEL
from pd_kernels.linear import make_linear

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def exact(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    y = x.double() @ weight.to(dtype).double().T
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3 * MAX_ROWS + 1),
    inner=st.integers(1, 70),
    columns=st.integers(1, 3 * PANEL),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matches_double_precision(dtype, rows, inner, columns, biased, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, inner, generator=generator)
    bias = torch.randn(columns, generator=generator) if biased else None
    x = torch.randn(rows, inner, generator=generator)
    linear = make_linear(weight, bias, device=CPU, storage_dtype=dtype)
    y = linear(x)
    assert y.shape == (rows, columns) and y.is_contiguous()
    expected = exact(x, weight, bias, dtype)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    residual = torch.randn(rows, columns, generator=generator)
    total = linear.add_to(residual.clone(), x)
    torch.testing.assert_close(total.double(), expected + residual, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_every_batch(dtype):
    torch.manual_seed(0)
    linear = make_linear(torch.randn(200, 301), None, device=CPU, storage_dtype=dtype)
    x = torch.randn(300, 301)
    whole = linear(x)
    for start, stop in [(0, 1), (5, 7), (3, 17), (100, 229), (299, 300)]:
        assert torch.equal(linear(x[start:stop]), whole[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_batch_spans_several_blocks_and_groups(dtype):
    torch.manual_seed(1)
    weight, x = torch.randn(7 * PANEL + 3, 600), torch.randn(400, 600)
    linear = make_linear(weight, None, device=CPU, storage_dtype=dtype)
    torch.testing.assert_close(
        linear(x).double(), exact(x, weight, None, dtype), atol=1e-3, rtol=1e-4
    )


def test_input_may_be_a_slice_of_a_wider_tensor_or_transposed():
    torch.manual_seed(2)
    weight, wide = torch.randn(64, 40), torch.randn(9, 100)
    linear = make_linear(weight, None, device=CPU, storage_dtype=torch.float32)
    sliced = wide[:, 30:70]
    assert torch.equal(linear(sliced), linear(sliced.contiguous()))
    transposed = torch.randn(40, 9).t()
    assert torch.equal(linear(transposed), linear(transposed.contiguous()))


@pytest.mark.parametrize("shape", [(1, 1), (PANEL, 5), (PANEL + 1, 3), (5 * PANEL - 1, 4)])
def test_weight_comes_back_as_it_was(shape):
    weight = torch.randn(shape)
    linear = make_linear(weight, None, device=CPU, storage_dtype=torch.float32)
    assert torch.equal(linear.weight(), weight)
    assert linear.weight_bytes == weight.nbytes
    assert torch.equal(unpack_panels(pack_panels(weight, torch.float32), shape[0]), weight)


def test_misuse_is_refused_with_a_reason():
    linear = make_linear(torch.randn(8, 4), None, device=CPU, storage_dtype=torch.float32)
    with pytest.raises(ValueError, match="takes 4"):
        linear(torch.randn(2, 5))
    with pytest.raises(TypeError, match="float32"):
        linear(torch.randn(2, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="residual has 3 rows"):
        make_linear(torch.randn(PANEL, 4), None, device=CPU, storage_dtype=torch.float32).add_to(
            torch.randn(3, PANEL), torch.randn(2, 4)
        )
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        make_linear(torch.randn(8, 4), None, device=CPU, storage_dtype=torch.float16)
    with pytest.raises(ValueError, match="does not fit"):
        make_linear(torch.randn(8, 4), torch.zeros(4), device=CPU, storage_dtype=torch.float32)


def test_kernels_leave_torch_its_thread_count():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pd_kernels.linear import make_linear\n"
        "from pd_kernels.cpu_threads import num_threads, set_num_threads\n"
        "cpu = torch.device('cpu')\n"
        "l = make_linear(torch.ones(64, 8), None, device=cpu, storage_dtype=torch.float32)\n"
        "assert (l(torch.ones(40, 8)) == 8).all()\n"
        "assert torch.get_num_threads() == num_threads() == 1\n"
        "set_num_threads(2); assert torch.get_num_threads() == 2\n"
        "assert (l(torch.ones(40, 8)) == 8).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
