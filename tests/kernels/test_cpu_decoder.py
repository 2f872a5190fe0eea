"""CpuDecoder against the same layers computed op by op with the plain torch reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pd_kernels.cpu_decoder import CpuDecoder
from pd_kernels.linear import Linear, TorchLinear, make_linear
from pd_kernels.meta import AttentionMeta
from pd_kernels.reference import ReferenceOps

CPU = torch.device("cpu")
REFERENCE = ReferenceOps()
HIDDEN, EPS, SCALE = 64, 1e-5, 0.25


@dataclass
class Layer:
    attention_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    window: int | None


@dataclass
class Shape:
    heads: int
    kv_heads: int
    width: int
    intermediate: int
    biased: bool = False
    head_norm: bool = False
    windows: tuple[int | None, ...] = (None, None, None)
    rotated: float = 1.0


SHAPES = [
    Shape(4, 2, 16, 96),
    Shape(3, 1, 20, 50, biased=True),
    Shape(4, 4, 8, 33, head_norm=True, windows=(None, 5, 1)),
    Shape(6, 2, 32, 128, biased=True, head_norm=True, rotated=0.5),
]


def make_layers(shape: Shape, dtype: torch.dtype) -> list[Layer]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 0.2) -> torch.Tensor:
        return torch.randn(size, generator=generator) * scale

    def linear(out: int, inner: int) -> Linear:
        bias = draw(out) if shape.biased else None
        return make_linear(draw(out, inner), bias, device=CPU, storage_dtype=dtype)

    def norm(size: int) -> torch.Tensor:
        return 1 + draw(size)

    q_size = shape.heads * shape.width
    return [
        Layer(
            norm(HIDDEN),
            linear(q_size + 2 * shape.kv_heads * shape.width, HIDDEN),
            norm(shape.width) if shape.head_norm else None,
            norm(shape.width) if shape.head_norm else None,
            linear(HIDDEN, q_size),
            norm(HIDDEN),
            linear(2 * shape.intermediate, HIDDEN),
            linear(HIDDEN, shape.intermediate),
            window,
        )
        for window in shape.windows
    ]


def by_reference(layers, shape, residual, positions, kv, slots, meta, cos_sin):
    rows = residual.shape[0]
    for index, layer in enumerate(layers):
        hidden = REFERENCE.rms_norm(residual, layer.attention_norm, EPS)
        sizes = [shape.heads, shape.kv_heads, shape.kv_heads]
        q, k, v = layer.qkv(hidden).view(rows, -1, shape.width).split(sizes, dim=1)
        q, k = q.clone(), k.clone()
        if layer.q_norm is not None:
            q = REFERENCE.rms_norm(q, layer.q_norm, EPS)
            k = REFERENCE.rms_norm(k, layer.k_norm, EPS)
        REFERENCE.rotary(q, k, positions, cos_sin)
        REFERENCE.write_kv(k, v, kv, index, slots)
        attended = REFERENCE.attention(q, kv, index, meta, SCALE, layer.window)
        residual = residual + layer.output(attended.reshape(rows, -1))
        hidden = REFERENCE.rms_norm(residual, layer.mlp_norm, EPS)
        residual = residual + layer.down(REFERENCE.silu_mul(layer.gate_up(hidden)))
    return residual


def batch(query_lens: list[int], contexts: list[int], num_prefill: int, block_size: int = 4):
    """(positions, slots, meta) of sequences whose blocks lie in reverse order."""
    tables, free = [], list(range(60))
    positions, slots = [], []
    for count, context in zip(query_lens, contexts, strict=True):
        table = [free.pop() for _ in range(-(-context // block_size))]
        for position in range(context - count, context):
            positions.append(position)
            slots.append(table[position // block_size] * block_size + position % block_size)
        tables.append(table)
    meta = AttentionMeta.from_lists(tables, query_lens, contexts, num_prefill)
    return torch.tensor(positions), torch.tensor(slots), meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_match_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    layers = make_layers(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    angles = torch.rand(200, int(shape.width * shape.rotated) // 2, generator=generator) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    decoder = CpuDecoder(
        layers,
        num_heads=shape.heads,
        head_dim=shape.width,
        eps=EPS,
        scale=SCALE,
        cos_sin=cos_sin,
    )
    for query_lens, contexts, num_prefill in [
        ([1], [1], 0),
        ([37], [37], 1),
        ([5, 40, 1, 1, 1], [9, 40, 17, 1, 30], 2),
    ]:
        positions, slots, meta = batch(query_lens, contexts, num_prefill)
        rows = len(positions)
        kv = torch.randn(60, 4, 2, shape.kv_heads, 4, shape.width, generator=generator)
        residual = torch.randn(rows, HIDDEN, generator=generator)
        expected_kv, actual = kv.clone(), residual.clone()
        expected = by_reference(
            layers, shape, residual, positions, expected_kv, slots, meta, cos_sin
        )
        decoder.run(actual, positions, kv, slots, meta)
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(kv, expected_kv, atol=2e-4, rtol=2e-4)


def test_a_token_is_the_same_in_any_chunk_and_batch() -> None:
    shape = SHAPES[0]
    layers = make_layers(shape, torch.float32)
    decoder = CpuDecoder(
        layers, num_heads=4, head_dim=16, eps=EPS, scale=SCALE, cos_sin=torch.ones(64, 16)
    )
    x = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(2))
    results = []
    for cuts in [(40,), (13, 26, 40), (1, 40)]:
        kv, parts, begin = torch.zeros(60, 3, 2, 2, 4, 16), [], 0
        for end in cuts:
            positions, slots, meta = batch([end - begin], [end], 1)
            part = x[begin:end].clone()
            decoder.run(part, positions, kv, slots, meta)
            parts.append(part)
            begin = end
        results.append(torch.cat(parts))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_layers_that_do_not_fit_are_told_apart() -> None:
    layers = make_layers(SHAPES[0], torch.float32)
    assert CpuDecoder.fits(layers)
    assert not CpuDecoder.fits([])
    layers[1].down = TorchLinear(torch.randn(HIDDEN, 96), None)
    assert not CpuDecoder.fits(layers)
    with pytest.raises(ValueError, match="CPU linear layers"):
        CpuDecoder(layers, num_heads=4, head_dim=16, eps=EPS, scale=SCALE, cos_sin=torch.ones(9, 8))


def test_misuse_is_refused_with_a_reason() -> None:
    decoder = CpuDecoder(
        make_layers(SHAPES[0], torch.float32), num_heads=4, head_dim=16, eps=EPS, scale=SCALE,
        cos_sin=torch.ones(64, 16),
    )  # fmt: skip
    positions, slots, meta = batch([2], [2], 1)
    kv = torch.zeros(60, 3, 2, 2, 4, 16)
    with pytest.raises(ValueError, match="hidden is 64"):
        decoder.run(torch.zeros(2, 63), positions, kv, slots, meta)
    with pytest.raises(TypeError, match="float32"):
        decoder.run(torch.zeros(2, 64, dtype=torch.float64), positions, kv, slots, meta)
    with pytest.raises(ValueError, match="slots"):
        decoder.run(torch.zeros(2, 64), positions, kv, slots.int(), meta)
    with pytest.raises(ValueError, match="3 layers"):
        decoder.run(torch.zeros(2, 64), positions, kv[:, :2], slots, meta)
