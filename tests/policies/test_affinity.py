"""Consistent hashing with bounded load: who moves when nodes come, go and fill up."""

from __future__ import annotations

from collections import Counter

from candidates import node, prompt, route, sent
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.candidate import Candidate
from pd.policies.spread import hash64, weight

KEYS = [hash64(b"session", str(number).encode()) for number in range(400)]


def homes(nodes: list[Candidate], keys: list[int] = KEYS) -> dict[int, tuple[str, str]]:
    """Where each key goes while nothing runs anywhere."""
    placed = {}
    for key in keys:
        placement = route(nodes, prompt(affinity=key), "affinity")
        assert placement is not None
        placed[key] = (placement.prefill, placement.decode)
    return placed


def cell(prefill: int, decode: int = 2) -> list[Candidate]:
    nodes = [node(f"p{i}", "prefill") for i in range(prefill)]
    return nodes + [node(f"d{i}", "decode", max_num_seqs=1000) for i in range(decode)]


def test_keys_spread_evenly_and_stay() -> None:
    placed = homes(cell(4))
    assert placed == homes(cell(4)[::-1])
    shares = Counter(prefill for prefill, _ in placed.values())
    assert len(shares) == 4 and all(70 <= share <= 130 for share in shares.values())


@given(st.integers(2, 12), st.integers(0, 11))
def test_only_the_keys_of_a_node_that_leaves_move(count: int, gone: int) -> None:
    gone %= count
    before = homes(cell(count), KEYS[:60])
    after = homes([n for n in cell(count) if n.node_id != f"p{gone}"], KEYS[:60])
    for key in before:
        assert after[key] == before[key] or before[key][0] == f"p{gone}"
        assert after[key][1] == before[key][1], "decode nodes have nothing to do with it"


@given(st.integers(1, 12))
def test_keys_move_only_to_a_node_that_joins(count: int) -> None:
    before, after = homes(cell(count), KEYS[:60]), homes(cell(count + 1), KEYS[:60])
    for key in before:
        assert after[key][0] in (before[key][0], f"p{count}")


def test_a_node_that_joins_takes_its_share_and_no_more() -> None:
    before, after = homes(cell(4)), homes(cell(5))
    moved = sum(before[key][0] != after[key][0] for key in KEYS)
    assert 50 <= moved <= 110  # of 400, a fifth


def test_nobody_has_much_more_than_the_others_however_hot_a_key_is() -> None:
    nodes = {n.node_id: n for n in cell(4)}
    placed: Counter[str] = Counter()
    for turn in range(100):
        placement = route(nodes.values(), prompt(affinity=KEYS[0]), "affinity")
        assert placement is not None
        sent(nodes, placement, tokens=160, turn=turn)
        placed.update((placement.prefill, placement.decode))
        assert max(placed[f"p{i}"] for i in range(4)) <= 1.25 * (turn + 1) / 4 + 1
        assert max(placed[f"d{i}"] for i in range(2)) <= 1.25 * (turn + 1) / 2 + 1
    assert set(placed) == {f"p{i}" for i in range(4)} | {"d0", "d1"}


def test_a_single_request_at_a_time_always_goes_home() -> None:
    nodes = cell(4)
    home = homes(nodes)[KEYS[3]]
    for _ in range(5):
        placement = route(nodes, prompt(affinity=KEYS[3]), "affinity")
        assert placement is not None and (placement.prefill, placement.decode) == home


def test_mixed_nodes_are_bounded_by_what_they_decode_too() -> None:
    nodes = [node(f"m{i}", "mixed", max_num_seqs=1000) for i in range(3)]
    home = homes(nodes)[KEYS[0]][0]
    nodes = [node(n.node_id, "mixed", num_running=20 if n.node_id == home else 4) for n in nodes]
    assert homes(nodes)[KEYS[0]][0] != home


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_no_two_lists_of_parts_hash_alike(a: list[bytes], b: list[bytes]) -> None:
    assert (hash64(*a) == hash64(*b)) == (a == b)


@given(st.integers(0, 2**64 - 1), st.text(max_size=8))
def test_weights_are_64_bits(key: int, node_id: str) -> None:
    assert 0 <= weight(key, node_id) < 2**64
    assert weight(key, node_id) == weight(key, node_id)
