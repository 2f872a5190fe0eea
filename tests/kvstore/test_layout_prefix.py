"""Layouts that differ have different fingerprints; prefix keys cover all that came before."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.layout import KVLayout
from kvstore.prefix import (
    KeySpace,
    block_hashes,
    chain,
    pack_keys,
    short_keys,
    unpack_keys,
    unpack_short_keys,
)

SMOL = KVLayout("float32", 30, 3, 64, 16, "smollm2")
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=100)


def test_sizes() -> None:
    assert SMOL.block_shape == (30, 2, 3, 16, 64)
    assert SMOL.token_bytes == 46_080
    assert SMOL.block_bytes == 737_280
    assert replace(SMOL, dtype="bfloat16").block_bytes == 737_280 // 2
    assert [SMOL.num_blocks_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_every_field_changes_the_fingerprint() -> None:
    others = [
        replace(SMOL, dtype="float16"),
        replace(SMOL, num_layers=31),
        replace(SMOL, num_kv_heads=4),
        replace(SMOL, head_dim=65),
        replace(SMOL, block_size=32),
        replace(SMOL, model="smollm3"),
        replace(SMOL, num_layers=3, num_kv_heads=30),
        replace(SMOL, total_kv_heads=6),
        replace(SMOL, total_kv_heads=6, kv_head_start=1),
    ]
    fingerprints = {layout.fingerprint for layout in (SMOL, *others)}
    assert len(fingerprints) == 1 + len(others)
    assert all(0 <= value < 2**64 for value in fingerprints)
    assert replace(SMOL).fingerprint == SMOL.fingerprint
    # Nodes of one cell may run different interpreters: the value is part of the protocol.
    assert SMOL.fingerprint == 0x3C5037843FA13A79


@pytest.mark.parametrize(
    "field",
    [
        {"dtype": "int4"},
        {"num_layers": 0},
        {"head_dim": -1},
        {"block_size": 0},
        {"kv_head_start": 1},
        {"kv_head_start": -1, "total_kv_heads": 9},
        {"total_kv_heads": 2},
    ],
)
def test_impossible_layouts(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not"):
        replace(SMOL, **field)


@given(TOKENS, st.integers(1, 17))
def test_block_hashes_are_the_chain_of_full_blocks(tokens: list[int], size: int) -> None:
    root = KeySpace(b"secret").root(SMOL.fingerprint, "tenant", "salt")
    expected, parent = [], root
    for start in range(0, len(tokens) // size * size, size):
        block = tokens[start : start + size]
        parent = hashlib.sha256(parent + struct.pack(f"<{size}i", *block)).digest()
        assert parent == chain(expected[-1] if expected else root, block)
        expected.append(parent)
    assert block_hashes(tokens, size, root) == expected
    assert block_hashes(tuple(tokens), size, root) == expected


@given(TOKENS.filter(bool), st.data())
def test_a_changed_token_changes_its_block_and_all_after(
    tokens: list[int], data: st.DataObject
) -> None:
    root = KeySpace().root(1)
    before = block_hashes(tokens, 4, root)
    at = data.draw(st.integers(0, len(tokens) - 1))
    tokens[at] = (tokens[at] + 1) % 2**31
    after = block_hashes(tokens, 4, root)
    assert before[: at // 4] == after[: at // 4]
    assert all(a != b for a, b in zip(before[at // 4 :], after[at // 4 :], strict=True))


def test_roots_keep_layouts_and_tenants_apart() -> None:
    space = KeySpace(b"secret")
    roots = {space.root(f, t) for f in (0, 1, 2**64 - 1) for t in ("", "a", "b")}
    assert len(roots) == 9 and {len(root) for root in roots} == {32}


OWNERS = st.tuples(st.integers(0, 3), st.text("ab\0 é", max_size=4), st.text("ab\0 é", max_size=4))


@given(OWNERS, OWNERS, st.booleans())
def test_no_two_owners_have_a_key_in_common(
    one: tuple[int, str, str], other: tuple[int, str, str], share: bool
) -> None:
    """Whatever separates tenant from salt in the one may be part of a name in the other."""
    space = KeySpace(b"secret", share)
    if share:
        same = (one[0], one[2]) == (other[0], other[2])
    else:
        same = one == other
    assert (space.root(*one) == space.root(*other)) == same
    assert space.root(*one) != KeySpace(b"secret", not share).root(*other)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_keys_depend_on_the_secret(one: bytes, other: bytes) -> None:
    # HMAC fills a key up with zeros: secrets that differ only there are the same secret.
    if one.ljust(64, b"\0") != other.ljust(64, b"\0"):
        assert KeySpace(one).root(1, "t") != KeySpace(other).root(1, "t")


def test_a_cells_key_space_does_not_hold_its_secret() -> None:
    space = KeySpace.of_cell("s3cret", 7)
    assert b"s3cret" not in space.secret and len(space.secret) == 32
    assert space == KeySpace.of_cell("s3cret", 8), "all processes that have the secret agree"
    assert space != KeySpace.of_cell("other", 7)
    assert KeySpace.of_cell(None, 7) != KeySpace.of_cell(None, 8)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5), st.integers(0, 31))
def test_keys_are_packed_for_messages(keys: list[bytes], rest: int) -> None:
    assert unpack_keys(pack_keys(keys) + bytes(rest)) == keys
    packed = b"".join(key[:8] for key in keys)
    assert list(short_keys(keys)) == list(unpack_short_keys(packed))
    assert [key.to_bytes(8, "little") for key in short_keys(keys)] == [key[:8] for key in keys]


def test_token_ids_out_of_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        block_hashes([2**31], 1, b"")
