"""Routing: least predicted work, bursts that spread, pairs against mixed nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pd.policies.admit import admit
from pd.policies.route import Candidate, Placement, route
from pd.types import NodeSnapshot, Role


def node(
    node_id: str,
    role: Role,
    *,
    credit_tokens: int = 0,
    credit_seqs: int = 0,
    layout: int = 0,
    max_num_seqs: int = 8,
    **snapshot: Any,
) -> Candidate:
    values = {"num_blocks": 100, "free_blocks": 100, **snapshot}
    return Candidate(
        node_id, role, NodeSnapshot(node_id, role, 1, **values), max_num_seqs,
        credit_tokens, credit_seqs, layout,
    )  # fmt: skip


def test_nothing_to_route_to() -> None:
    assert route([]) is None
    assert route([node("p0", "prefill")]) is None
    assert route([node("d0", "decode")]) is None


def test_least_predicted_work_takes_speed_into_account() -> None:
    slow = node("p0", "prefill", waiting_tokens=100, prefill_rate=10.0)
    fast = node("p1", "prefill", waiting_tokens=500, prefill_rate=1000.0)
    assert route([slow, fast, node("d0", "decode")]) == Placement("p1", "d0")


def test_decode_load_is_of_what_is_scarcer() -> None:
    few_blocks = node("d0", "decode", num_running=1, free_blocks=10)
    many_seqs = node("d1", "decode", num_running=7, free_blocks=95)
    balanced = node("d2", "decode", num_running=4, free_blocks=50)
    nodes = [node("p0", "prefill"), few_blocks, many_seqs, balanced]
    assert route(nodes) == Placement("p0", "d2")


def test_hand_offs_waiting_for_room_count_as_load() -> None:
    waiting = node("d0", "decode", num_reserving=3)
    running = node("d1", "decode", num_running=2)
    assert route([node("p0", "prefill"), waiting, running]) == Placement("p0", "d1")


def test_a_burst_between_two_snapshots_spreads() -> None:
    nodes = {f"p{i}": node(f"p{i}", "prefill") for i in range(4)}
    nodes |= {f"d{i}": node(f"d{i}", "decode") for i in range(3)}
    placed: Counter[str] = Counter()
    for _ in range(24):
        placement = route(nodes.values())
        assert placement is not None
        p, d = nodes[placement.prefill], nodes[placement.decode]
        nodes[p.node_id] = replace(p, credit_tokens=p.credit_tokens + 100)
        nodes[d.node_id] = replace(d, credit_seqs=d.credit_seqs + 1)
        placed.update((placement.prefill, placement.decode))
    assert [placed[f"p{i}"] for i in range(4)] == [6] * 4
    assert [placed[f"d{i}"] for i in range(3)] == [8] * 3


def test_a_mixed_node_is_chosen_where_it_starts_the_prompt_sooner() -> None:
    pair = [node("p0", "prefill", waiting_tokens=2000), node("d0", "decode")]
    assert route([*pair, node("m0", "mixed")]) == Placement("m0", "m0")
    # Its decode batch slows its prompts down, and counts.
    busy = node("m0", "mixed", num_running=300, max_num_seqs=512)
    assert route([*pair, busy]) == Placement("p0", "d0")
    assert route([busy]) == Placement("m0", "m0")


def test_a_pair_is_preferred_where_both_are_idle() -> None:
    nodes = [node("m0", "mixed"), node("p0", "prefill"), node("d0", "decode")]
    assert route(nodes) == Placement("p0", "d0")


def test_half_a_pair_leaves_the_mixed_node() -> None:
    nodes = [node("m0", "mixed", waiting_tokens=9999), node("p0", "prefill")]
    assert route(nodes) == Placement("m0", "m0")


def test_only_nodes_of_one_layout_make_a_pair() -> None:
    other = [node("p0", "prefill", layout=1), node("d0", "decode", layout=2)]
    assert route(other) is None
    busy = node("p1", "prefill", layout=2, waiting_tokens=9999)
    assert route([*other, busy]) == Placement("p1", "d0")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["prefill", "decode", "mixed"]),
            st.integers(0, 5000), st.integers(0, 8), st.integers(0, 100), st.integers(0, 1),
        ),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_placement_is_possible_and_does_not_depend_on_the_order(shapes, rng) -> None:  # type: ignore[no-untyped-def]
    nodes = [
        node(
            f"n{i}", role, waiting_tokens=tokens, num_running=seqs, free_blocks=free, layout=layout
        )
        for i, (role, tokens, seqs, free, layout) in enumerate(shapes)
    ]
    placement = route(nodes)
    by_id = {n.node_id: n for n in nodes}
    pairs = {n.layout for n in nodes if n.role == "prefill"} & {
        n.layout for n in nodes if n.role == "decode"
    }
    if placement is None:
        assert not pairs and all(n.role != "mixed" for n in nodes)
    else:
        prefill, decode = by_id[placement.prefill], by_id[placement.decode]
        assert prefill.layout == decode.layout
        assert (prefill.role, decode.role) in (("prefill", "decode"), ("mixed", "mixed"))
        assert (prefill is decode) == (prefill.role == "mixed")
    rng.shuffle(nodes)
    assert route(nodes) == placement


def test_admission_is_a_bound_on_who_waits() -> None:
    assert admit(0, 1, 0.0) is None
    assert admit(511, 512, 1e9) is None
    refused = admit(512, 512, 20.0)
    assert refused is not None and refused.retry_after_s == 10.0
    assert "512" in refused.message and "10 s" in refused.message


@given(wait_s=st.floats(0, 1e12), waiting=st.integers(0, 10_000), limit=st.integers(0, 10_000))
def test_the_time_to_retry_is_sane(wait_s: float, waiting: int, limit: int) -> None:
    refused = admit(waiting, limit, wait_s)
    assert (refused is None) == (waiting < limit)
    assert refused is None or 1.0 <= refused.retry_after_s <= 60.0
