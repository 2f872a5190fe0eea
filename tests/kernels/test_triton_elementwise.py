"""Norm, rotary, activation and KV movement kernels against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels need triton")

from pd_kernels.reference import ReferenceOps
from pd_kernels.triton_ops import TritonOps

from .batches import DTYPES, assert_near

TRITON, REFERENCE = TritonOps(), ReferenceOps()

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def randn(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape).to(device, dtype)


@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (7, 72), (3, 576), (50, 64), (2, 5000)])
def test_rms_norm(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = randn(*shape, dtype=dtype, device=device)
    weight = randn(shape[1], dtype=dtype, device=device)
    residual = randn(*shape, dtype=dtype, device=device)
    assert_near(TRITON.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    actual = TRITON.add_rms_norm(x, residual.clone(), weight, 1e-5)
    expected = REFERENCE.add_rms_norm(x, residual.clone(), weight, 1e-5)
    # A sum rounded the other way moves the norm by as much again.
    assert_near(actual[0], expected[0], scale=2)
    assert_near(actual[1], expected[1])


def test_rms_norm_of_strided_rows(device: torch.device, dtype: torch.dtype) -> None:
    wide = randn(6, 40, dtype=dtype, device=device)
    weight = randn(16, dtype=dtype, device=device)
    x = wide[:, 8:24]
    assert_near(TRITON.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6))
    with pytest.raises(ValueError, match="x has stride 2 in its last dim"):
        TRITON.rms_norm(wide[:, ::2], wide[0, :20], 1e-6)


@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (5, 72), (3, 6000)])
def test_silu_mul(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = randn(*shape, dtype=dtype, device=device) * 4
    assert_near(TRITON.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


def test_silu_mul_of_extreme_gates(device: torch.device, dtype: torch.dtype) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, -90.0, 0.0, 1.0, 1.0, 1.0, 1.0]], device=device).to(dtype)
    assert_near(TRITON.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotated"),
    [(4, 4, 16, 16), (9, 3, 20, 20), (6, 1, 24, 12), (1, 1, 2, 2)],
)
def test_rotary(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, rotated: int
) -> None:
    """In place on slices of one fused projection, whose values must stay as they are."""
    fused = randn(7, heads + 2 * kv_heads, head_dim, dtype=dtype, device=device)
    expected = fused.clone()
    angles = torch.randn(40, rotated // 2, device=device)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.tensor([0, 39, 3, 3, 17, 1, 2], device=device)
    for ops, x in ((TRITON, fused), (REFERENCE, expected)):
        ops.rotary(x[:, :heads], x[:, heads : heads + kv_heads], positions, cos_sin)
    assert_near(fused, expected)
    assert torch.equal(fused[:, heads + kv_heads :], expected[:, heads + kv_heads :])


@pytest.mark.parametrize("sizes", [(3, 16, 20), (1, 1, 8), (2, 5, 64)], ids=str)
def test_write_kv(device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    kv_heads, block_size, head_dim = sizes
    num_blocks = 30
    kv = randn(num_blocks, 2, 2, kv_heads, block_size, head_dim, dtype=dtype, device=device)
    expected = kv.clone()
    fused = randn(8, 4 * kv_heads, head_dim, dtype=dtype, device=device)
    k, v = fused[:, kv_heads : 2 * kv_heads], fused[:, 3 * kv_heads :]
    slots = torch.randperm(num_blocks * block_size)[:8].to(device)
    slots[5] = -1
    TRITON.write_kv(k, v, kv, 1, slots)
    REFERENCE.write_kv(k, v, expected, 1, slots)
    assert torch.equal(kv, expected)


# Block sizes in elements whose bytes are a multiple of 8, 4, 2 and (fp32 aside) no more.
@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 4, 8), (1, 2, 3, 5, 1), (1, 2, 1, 1, 1), (1, 2, 9, 64, 3)]
)
def test_pack_unpack_and_copy(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    kv = randn(9, *shape, dtype=dtype, device=device)
    before = kv.clone()
    ids = torch.tensor([7, 0, 3], device=device)
    packed = TRITON.pack_blocks(kv, ids)
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, REFERENCE.pack_blocks(kv, ids))
    TRITON.unpack_blocks(kv, torch.tensor([1, 2, 8], device=device), packed)
    assert torch.equal(kv[[1, 2, 8]], before[[7, 0, 3]])
    assert torch.equal(kv[[0, 3, 4, 5, 6, 7]], before[[0, 3, 4, 5, 6, 7]])
    TRITON.copy_blocks(kv, ids[:2], torch.tensor([4, 5], device=device))
    assert torch.equal(kv[[4, 5]], before[[7, 0]])
    TRITON.copy_blocks(kv, ids[:0], ids[:0])
    assert TRITON.pack_blocks(kv, ids[:0]).shape == (0, packed.shape[1])


def test_unpack_refuses_bytes_of_another_layout(device: torch.device, dtype: torch.dtype) -> None:
    kv = randn(4, 1, 2, 1, 4, 8, dtype=dtype, device=device)
    packed = TRITON.pack_blocks(kv, torch.tensor([0], device=device))
    with pytest.raises(ValueError, match=r"packed is \(1, "):
        TRITON.unpack_blocks(kv, torch.tensor([0], device=device), packed[:, :-8])
    with pytest.raises(ValueError, match="must be contiguous"):
        TRITON.pack_blocks(kv[..., :4], torch.tensor([0], device=device))
