"""Blocks of one layout as blocks of another: exact where it can be, near where it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.convert import convert, converted, payload_layout
from kvstore.layout import ITEM_BYTES, KVLayout
from pd.errors import TransferError

FULL = KVLayout("float32", 3, 8, 16, 4, "model")
DTYPES = sorted(ITEM_BYTES)
DEGREES = (1, 2, 4, 8)
# Largest error of a value after a conversion, relative to its row's largest magnitude.
ERROR = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 250, "fp8": 1 / 15}


def rank(degree: int, index: int, dtype: str = "float32") -> KVLayout:
    """The layout of one rank of a tensor-parallel node."""
    heads = FULL.num_kv_heads // degree
    return FULL.part(dtype, index * heads, heads)


def noise(layout: KVLayout, num_blocks: int, seed: int = 0) -> np.ndarray:
    """Blocks of normal values that float16 and bfloat16 hold exactly."""
    values = np.random.default_rng(seed).standard_normal((num_blocks, *layout.block_shape))
    blocks = (np.round(values * 32) / 32).astype(np.float32).reshape(num_blocks, -1).view(np.uint8)
    return converted(blocks, range(num_blocks), replace(layout, dtype="float32"), layout)


def values_of(blocks: np.ndarray, layout: KVLayout) -> np.ndarray:
    wide = converted(blocks, range(len(blocks)), layout, replace(layout, dtype="float32"))
    return wide.view(np.float32).reshape(len(blocks), *layout.block_shape)


@pytest.mark.parametrize("senders", DEGREES)
@pytest.mark.parametrize("receivers", DEGREES)
def test_every_pair_of_tensor_parallel_degrees(senders: int, receivers: int) -> None:
    """All ranks of one node to all ranks of another: each has its heads of the whole then."""
    whole = noise(FULL, 5)
    src, dst = (4, 0, 2), (1, 3, 0)
    ranks = [rank(senders, index) for index in range(senders)]
    sources = [converted(whole, range(5), FULL, layout) for layout in ranks]
    for index in range(receivers):
        target = rank(receivers, index)
        blocks = np.full((5, target.block_bytes), 255, np.uint8)
        for layout, source in zip(ranks, sources, strict=True):
            try:
                payload = payload_layout(layout, target)
            except TransferError:
                assert not set(layout.kv_heads) & set(target.kv_heads)
                continue
            assert set(payload.kv_heads) == set(layout.kv_heads) & set(target.kv_heads)
            travelling = converted(source, src, layout, payload)
            convert(travelling, range(3), payload, blocks, dst, target)
        expected = converted(whole, src, FULL, target)
        np.testing.assert_array_equal(blocks[list(dst)], expected)
        assert (blocks[[2, 4]] == 255).all()


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_every_pair_of_dtypes(source: str, target: str) -> None:
    blocks = noise(replace(FULL, dtype=source), 4)
    there = converted(blocks, range(4), replace(FULL, dtype=source), replace(FULL, dtype=target))
    assert there.shape == (4, replace(FULL, dtype=target).block_bytes)
    before = values_of(blocks, replace(FULL, dtype=source))
    after = values_of(there, replace(FULL, dtype=target))
    largest = np.abs(before).max(-1, keepdims=True)
    assert (np.abs(before - after) <= ERROR[target] * largest * 1.001).all()
    if source == target:
        np.testing.assert_array_equal(there, blocks)
    if target == "float32":
        back = converted(
            there, range(4), replace(FULL, dtype="float32"), replace(FULL, dtype=source)
        )
        np.testing.assert_array_equal(values_of(back, replace(FULL, dtype=source)), before)


@given(
    st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(1, 3), st.integers(1, 5),
    st.integers(1, 40), st.integers(1, 9), st.data(),
)  # fmt: skip
def test_any_layouts(
    source_dtype: str, target_dtype: str, layers: int, heads: int, dim: int, size: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Heads that meet are converted as they would be alone, and nothing else is written."""
    full = KVLayout("float32", layers, heads, dim, size, "m")
    layouts = []
    for dtype in (source_dtype, target_dtype):
        start = data.draw(st.integers(0, heads - 1))
        layouts.append(full.part(dtype, start, data.draw(st.integers(1, heads - start))))
    source, target = layouts
    blocks = noise(source, 2, seed=dim)
    out = np.full((2, target.block_bytes), 7, np.uint8)
    common = sorted(set(source.kv_heads) & set(target.kv_heads))
    if not common:
        with pytest.raises(TransferError, match="no kv head"):
            convert(blocks, [0], source, out, [1], target)
        return
    convert(blocks, [0], source, out, [1], target)
    assert (out[0] == 7).all()
    part = payload_layout(source, target, source_dtype)
    alone = converted(blocks, [0], source, part)
    part_out = part.part(target_dtype, part.kv_head_start, part.num_kv_heads)
    expected = converted(alone, [0], part, part_out)
    np.testing.assert_array_equal(converted(out[1:], [0], target, part_out), expected)
    rows = out[1].reshape(2 * layers, target.num_kv_heads, -1)
    others = [head not in common for head in target.kv_heads]
    assert (rows[:, others] == 7).all()


def test_what_travels_is_the_smaller() -> None:
    int8 = replace(FULL, dtype="int8")
    assert payload_layout(FULL, int8) == payload_layout(int8, FULL) == int8
    assert payload_layout(FULL, replace(FULL, dtype="bfloat16")).dtype == "bfloat16"
    assert payload_layout(replace(FULL, dtype="float16"), replace(FULL, dtype="bfloat16")) == (
        replace(FULL, dtype="bfloat16")
    )
    assert payload_layout(FULL, FULL, "int8") == int8


@pytest.mark.parametrize(
    "other",
    [
        {"model": "finetuned"}, {"num_layers": 4}, {"head_dim": 8}, {"block_size": 8},
        {"total_kv_heads": 16},
    ],
)  # fmt: skip
def test_other_kv_cannot_be_converted(other: dict[str, object]) -> None:
    with pytest.raises(TransferError, match="hold different things"):
        payload_layout(FULL, replace(FULL, **other))


def test_layouts_of_the_same_content() -> None:
    same = {
        FULL, replace(FULL, dtype="int8"), FULL.part("float16", 2, 3), rank(8, 7),
        KVLayout.parse(FULL.describe()),
    }  # fmt: skip
    assert len({layout.content for layout in same}) == 1
    assert len({layout.fingerprint for layout in same}) == len(same) == 4
    assert replace(FULL, model="x").content != FULL.content


@given(st.sampled_from(DTYPES), st.integers(1, 99), st.integers(0, 9), st.text(max_size=20))
def test_descriptions_are_read_back(dtype: str, heads: int, start: int, model: str) -> None:
    layout = KVLayout(dtype, 2, heads, 4, 5, model, start, heads + start + 1)
    assert KVLayout.parse(layout.describe()) == layout


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "null", "[]", '["float32"]', "[" * 100_000, "1" * 5000,
        '["float32", 1, 1, 1, 1, "m", 0, 1, 2]', '["float32", 1, 1, 1, 1, 5, 0, 1]',
        '["float32", true, 1, 1, 1, "m", 0, 1]', '["float32", 1.0, 1, 1, 1, "m", 0, 1]',
        '["float32", 1, 1, 1, -1, "m", 0, 1]', '["float32", 1, 1, 1, 1, "m", 1, 1]',
        '["float99", 1, 1, 1, 1, "m", 0, 1]', f'["float32", {10**30}, 1, 1, 1, "m", 0, 1]',
    ],
)  # fmt: skip
def test_descriptions_that_are_none(text: str) -> None:
    with pytest.raises(TransferError, match="cannot be read"):
        KVLayout.parse(text)
