"""Routing: what all four policies have in common, and the two that look at no caches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
from candidates import node, prompt, route, sent
from hypothesis import given
from hypothesis import strategies as st

from pd.config import Routing as ConfiguredRouting
from pd.policies.candidate import Candidate, Placement
from pd.policies.pace import Pace
from pd.policies.route import POLICIES, Routing
from pd.types import SLO, Role, Source, StepTime

ROUTINGS: tuple[Routing, ...] = get_args(Routing)


def least_loaded(nodes: list[Candidate]) -> Placement | None:
    return route(nodes, prompt(), "least_loaded")


def test_every_policy_can_be_configured() -> None:
    assert set(ROUTINGS) == set(POLICIES) == set(get_args(ConfiguredRouting))


# ---------------------------------------------------------------- what all have in common
@pytest.mark.parametrize("routing", ROUTINGS)
def test_nothing_to_route_to(routing: Routing) -> None:
    for nodes in ([], [node("p0", "prefill")], [node("d0", "decode")], [node("k0", "pool")]):
        assert route(nodes, prompt(), routing) is None


@pytest.mark.parametrize("routing", ROUTINGS)
def test_only_nodes_of_one_layout_make_a_pair(routing: Routing) -> None:
    other = [node("p0", "prefill", layout=1), node("d0", "decode", layout=2)]
    assert route(other, prompt(), routing) is None
    busy = node("p1", "prefill", layout=2, waiting_tokens=9999)
    assert route([*other, busy], prompt(), routing) == Placement("p1", "d0")


@pytest.mark.parametrize("routing", ROUTINGS)
def test_half_a_pair_leaves_the_mixed_node(routing: Routing) -> None:
    nodes = [node("m0", "mixed", waiting_tokens=9999), node("p0", "prefill"), node("k0", "pool")]
    assert route(nodes, prompt(), routing) == Placement("m0", "m0")


@given(
    st.sampled_from(ROUTINGS),
    st.lists(
        st.tuples(
            st.sampled_from(["prefill", "decode", "mixed", "pool"]),
            st.integers(0, 5000), st.integers(0, 8), st.integers(0, 100), st.integers(0, 1),
            st.integers(0, 12), st.sampled_from([0.0, 50.0, 5000.0]), st.integers(0, 3),
        ),
        max_size=8,
    ),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_placement_is_possible_and_does_not_depend_on_the_order(  # type: ignore[no-untyped-def]
    routing, shapes, session, rng
) -> None:
    nodes = [
        node(
            f"n{i}", role, waiting_tokens=tokens, num_running=seqs, free_blocks=free,
            layout=layout, prefill_rate=rate, last=last,
        )
        for i, (role, tokens, seqs, free, layout, _, rate, last) in enumerate(shapes)
    ]  # fmt: skip
    cached = {f"n{i}": shape[5] for i, shape in enumerate(shapes)}
    sources = tuple(Source(f"n{i}", 1, shape[5], shape[5] // 2) for i, shape in enumerate(shapes))
    wanted = prompt(
        160, cached, sources[:4], nodes, session=session, affinity=session or len(shapes)
    )
    placement = route(nodes, wanted, routing)
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
    assert route(nodes, wanted, routing) == placement


# ---------------------------------------------------------------- least loaded
def test_least_predicted_work_takes_speed_into_account() -> None:
    slow = node("p0", "prefill", waiting_tokens=100, prefill_rate=10.0)
    fast = node("p1", "prefill", waiting_tokens=500, prefill_rate=1000.0)
    assert least_loaded([slow, fast, node("d0", "decode")]) == Placement("p1", "d0")


def test_decode_load_is_of_what_is_scarcer() -> None:
    few_blocks = node("d0", "decode", num_running=1, free_blocks=10)
    many_seqs = node("d1", "decode", num_running=7, free_blocks=95)
    balanced = node("d2", "decode", num_running=4, free_blocks=50)
    nodes = [node("p0", "prefill"), few_blocks, many_seqs, balanced]
    assert least_loaded(nodes) == Placement("p0", "d2")


def test_hand_offs_waiting_for_room_count_as_load() -> None:
    waiting = node("d0", "decode", num_reserving=3)
    running = node("d1", "decode", num_running=2)
    assert least_loaded([node("p0", "prefill"), waiting, running]) == Placement("p0", "d1")


def test_caches_do_not_matter_to_it() -> None:
    nodes = [node("p0", "prefill", waiting_tokens=1), node("p1", "prefill"), node("d0", "decode")]
    assert route(nodes, prompt(160, {"p0": 9}), "least_loaded") == Placement("p1", "d0")


@pytest.mark.parametrize("routing", ["cache_aware", "least_loaded", "round_robin"])
def test_a_burst_between_two_snapshots_spreads(routing: Routing) -> None:
    nodes = {f"p{i}": node(f"p{i}", "prefill") for i in range(4)}
    nodes |= {f"d{i}": node(f"d{i}", "decode") for i in range(3)}
    placed: Counter[str] = Counter()
    for turn in range(1, 25):
        placement = route(nodes.values(), prompt(100), routing)
        assert placement is not None
        sent(nodes, placement, tokens=100, turn=turn)
        placed.update((placement.prefill, placement.decode))
    assert [placed[f"p{i}"] for i in range(4)] == [6] * 4
    assert [placed[f"d{i}"] for i in range(3)] == [8] * 3


@pytest.mark.parametrize("routing", ["cache_aware", "least_loaded"])
def test_a_mixed_node_is_chosen_where_it_starts_the_prompt_sooner(routing: Routing) -> None:
    pair = [node("p0", "prefill", waiting_tokens=4000), node("d0", "decode")]
    assert route([*pair, node("m0", "mixed")], prompt(), routing) == Placement("m0", "m0")
    # Its decode batch slows its prompts down, and counts.
    busy = node("m0", "mixed", num_running=600, max_num_seqs=1024)
    assert route([*pair, busy], prompt(), routing) == Placement("p0", "d0")
    assert route([busy], prompt(), routing) == Placement("m0", "m0")


@pytest.mark.parametrize("routing", ["cache_aware", "least_loaded"])
def test_a_pair_is_preferred_where_both_are_idle(routing: Routing) -> None:
    nodes = [node("m0", "mixed"), node("p0", "prefill"), node("d0", "decode")]
    assert route(nodes, prompt(), routing) == Placement("p0", "d0")


# ---------------------------------------------------------------- round robin
def test_turns_go_round_whatever_the_load() -> None:
    nodes = {f"p{i}": node(f"p{i}", "prefill", waiting_tokens=1000 * i) for i in range(3)}
    nodes |= {f"d{i}": node(f"d{i}", "decode", num_running=i) for i in range(2)}
    order = []
    for turn in range(1, 7):
        placement = route(nodes.values(), prompt(160, {"p2": 9}), "round_robin")
        assert placement is not None
        sent(nodes, placement, tokens=160, turn=turn)
        order.append((placement.prefill, placement.decode))
    assert order == [("p0", "d0"), ("p1", "d1"), ("p2", "d0"), ("p0", "d1"), ("p1", "d0"), ("p2", "d1")]  # fmt: skip  # noqa: E501


def test_mixed_nodes_and_pairs_take_turns_with_each_other() -> None:
    nodes = {"m0": node("m0", "mixed"), "p0": node("p0", "prefill")}
    nodes |= {f"d{i}": node(f"d{i}", "decode") for i in range(2)}
    order = []
    for turn in range(1, 9):
        placement = route(nodes.values(), prompt(), "round_robin")
        assert placement is not None
        sent(nodes, placement, tokens=160, turn=turn)
        order.append((placement.prefill, placement.decode))
    assert order == [("m0", "m0"), ("p0", "d0"), ("m0", "m0"), ("p0", "d1")] * 2


def test_a_node_that_joins_is_next() -> None:
    nodes = [node("p0", "prefill", last=4), node("p1", "prefill", last=5), node("p2", "prefill")]
    placement = route([*nodes, node("d0", "decode")], prompt(), "round_robin")
    assert placement == Placement("p2", "d0")


# ---------------------------------------------------------------- targets
def paced(node_id: str, step_s: float, role: Role = "mixed", **more: Any) -> Candidate:
    """Whose steps take so long, whatever is in them."""
    first = [StepTime(step_s, seqs, 100 * seqs, 0, 0) for seqs in range(1, 9)]
    return replace(node(node_id, role, prefill_rate=1000.0, **more), pace=Pace(first))


def test_a_prompt_that_would_be_late_on_the_policys_node_goes_to_another_mixed_one() -> None:
    """The policy looks at prompts: the first node has fewer of them, and slower steps."""
    nodes = [paced("m0", 0.09), paced("m1", 0.02, waiting_tokens=200)]
    slow, fast = Placement("m0", "m0"), Placement("m1", "m1")
    assert route(nodes, prompt(), "least_loaded") == slow
    tight = prompt(slo=SLO(5.0, 0.08), max_tokens=100)
    assert route(nodes, tight, "least_loaded") == fast
    assert route(nodes, tight, "least_loaded", "never") == fast
    easy = prompt(slo=SLO(5.0, 0.2), max_tokens=100)
    assert route(nodes, easy, "least_loaded") == slow


def test_where_all_would_be_late_it_is_the_one_that_is_least_so() -> None:
    nodes = [paced("m0", 0.3), paced("m1", 0.1), paced("m2", 0.2)]
    wanted = prompt(slo=SLO(5.0, 0.05), max_tokens=100)
    assert route(nodes, wanted, "least_loaded") == Placement("m1", "m1")


def test_of_equals_it_stays_with_the_policys_choice() -> None:
    nodes = [paced(f"m{i}", 0.1, last=3 - i) for i in range(3)]
    wanted = prompt(slo=SLO(5.0, 0.05), max_tokens=100)
    assert route(nodes, wanted, "round_robin") == Placement("m2", "m2")
