"""Cache-aware routing: queue, fetch and compute in one prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from candidates import node, prompt, route, sent
from hypothesis import given
from hypothesis import strategies as st

from pd.policies.cache_aware import choose_decode, choose_start
from pd.policies.candidate import Candidate, Placement, Prompt
from pd.policies.costs import Costs
from pd.policies.predict import cached_blocks, predict
from pd.policies.spread import weight
from pd.types import Source

D0 = node("d0", "decode")
P = {"prefill_rate": 1000.0, "fetch_s_per_block": 0.001}  # a block takes 16 ms to compute


def start(nodes: list[Candidate], **wanted: object) -> str:
    placement = route([*nodes, D0], prompt(nodes=nodes, **wanted), "cache_aware")  # type: ignore[arg-type]
    assert placement is not None
    return placement.prefill


def ttft_s(on: Candidate, wanted: Prompt) -> float:
    return predict(on, wanted).ttft_s


# ---------------------------------------------------------------- the prediction
def test_own_blocks_save_their_computation() -> None:
    p = node("p0", "prefill", waiting_tokens=500, **P)
    assert ttft_s(p, prompt(160, nodes=[p])) == pytest.approx(0.5 + 0.160)
    assert ttft_s(p, prompt(160, {"p0": 4}, nodes=[p])) == pytest.approx(0.5 + 0.096)


def test_the_last_token_is_always_computed() -> None:
    p = node("p0", "prefill", **P)
    assert ttft_s(p, prompt(160, {"p0": 10}, nodes=[p])) == pytest.approx(0.016)
    assert ttft_s(p, prompt(161, {"p0": 10}, nodes=[p])) == pytest.approx(0.001)


def test_what_another_has_costs_its_fetch() -> None:
    p = node("p0", "prefill", **P)
    there = (Source("k0", 1, 8),)
    assert ttft_s(p, prompt(161, {"p0": 2}, there, [p])) == pytest.approx(6 * 0.001 + 0.033)
    # Of several sources the one that saves most; its own blocks are not fetched.
    several = (Source("p0", 1, 10), Source("k0", 1, 8), Source("k1", 1, 9))
    assert ttft_s(p, prompt(161, {"p0": 2}, several, [p])) == pytest.approx(7 * 0.001 + 0.017)


def test_blocks_on_a_disk_cost_what_those_took() -> None:
    p = node("p0", "prefill", **P, fetch_s_per_slow_block=0.010)
    disk = (Source("k0", 1, 10, num_slow=4),)
    assert ttft_s(p, prompt(161, {}, disk, [p])) == pytest.approx(6 * 0.001 + 4 * 0.010 + 0.001)
    # Dearer than to compute: then they are computed.
    slow = node("p0", "prefill", **P, fetch_s_per_slow_block=0.5)
    assert ttft_s(slow, prompt(161, {}, disk, [slow])) == pytest.approx(0.006 + 0.065)


def test_a_node_that_has_measured_nothing_is_like_the_others() -> None:
    known = node("p0", "prefill", prefill_rate=4000.0, fetch_s_per_block=0.002)
    fresh = node("p1", "prefill")
    wanted = prompt(1600, {}, (Source("k0", 1, 50),), [known, fresh])
    assert ttft_s(fresh, wanted) == pytest.approx(ttft_s(known, wanted))
    # And where nobody has, a fetch is worth trying.
    wanted = prompt(1600, {}, (Source("k0", 1, 50),), [fresh])
    assert ttft_s(fresh, wanted) < ttft_s(fresh, prompt(1600, nodes=[fresh]))


@given(
    st.integers(1, 500), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40),
    st.sampled_from([0.0, 10.0, 1e5]), st.sampled_from([0.0, 1e-6, 10.0]),
    st.sampled_from([0.0, 1e-6, 10.0]),
)  # fmt: skip
def test_predictions_are_sane(  # type: ignore[no-untyped-def]
    tokens, cached, blocks, slow, rate, fetch_s, slow_s
) -> None:
    """Never below the cost of one token, never above computing everything; more blocks at hand
    never make it later."""
    p = node(
        "p0", "prefill", prefill_rate=rate, fetch_s_per_block=fetch_s,
        fetch_s_per_slow_block=slow_s,
    )  # fmt: skip
    sources = (Source("k0", 1, blocks, min(slow, blocks)),)
    time_s = ttft_s(p, prompt(tokens, {"p0": cached}, sources, [p]))
    per_token = 1 / (rate or Costs().rate)
    assert per_token * 0.999 <= time_s <= per_token * tokens * 1.001
    assert ttft_s(p, prompt(tokens, {"p0": cached + 1}, sources, [p])) <= time_s * 1.001


def test_what_another_prompt_is_about_to_have_computed_is_computed_again() -> None:
    p = node("p0", "prefill", **P)
    assert predict(p, prompt(161, {"p1": 8}, nodes=[p], coming=8)).again_s == pytest.approx(0.128)
    assert predict(p, prompt(161, {"p0": 6}, nodes=[p], coming=8)).again_s == pytest.approx(0.032)
    assert predict(p, prompt(161, {"p0": 8}, nodes=[p], coming=8)).again_s == 0.0
    fetched = prompt(161, {}, (Source("k0", 1, 7),), [p], coming=8)
    assert predict(p, fetched).again_s == pytest.approx(0.016)
    dear = node("p0", "prefill", prefill_rate=1000.0, fetch_s_per_block=1.0)
    assert predict(dear, fetched).again_s == pytest.approx(0.128)


# ---------------------------------------------------------------- where prompts start
def test_a_prompt_goes_to_its_blocks() -> None:
    nodes = [node("p0", "prefill", **P), node("p1", "prefill", **P)]
    assert start(nodes, num_tokens=160, cached={"p1": 8}) == "p1"


def test_unless_the_queue_there_is_longer_than_the_work_they_save() -> None:
    nodes = [node("p0", "prefill", **P), node("p1", "prefill", waiting_tokens=100, **P)]
    assert start(nodes, num_tokens=161, cached={"p1": 8}) == "p1"
    nodes[1] = node("p1", "prefill", waiting_tokens=140, **P)
    assert start(nodes, num_tokens=161, cached={"p1": 8}) == "p0"


def test_with_a_cheap_fetch_a_short_queue_is_enough() -> None:
    """What p1 has, p0 can have for 8 ms."""
    nodes = [node("p0", "prefill", **P), node("p1", "prefill", waiting_tokens=30, **P)]
    cached, sources = {"p1": 8}, (Source("p1", 1, 8),)
    assert start(nodes, num_tokens=161, cached=cached, sources=sources) == "p0"
    assert start(nodes, num_tokens=161, cached=cached) == "p1"


def test_near_equal_predictions_go_to_the_blocks() -> None:
    """p0 would be sooner by a millisecond, but that is within what predictions are worth."""
    nodes = [node("p0", "prefill", **P), node("p1", "prefill", waiting_tokens=9, **P)]
    cached, sources = {"p1": 8}, (Source("p1", 1, 8),)
    assert start(nodes, num_tokens=161, cached=cached, sources=sources) == "p1"


def test_a_prompt_in_flight_is_waited_for_rather_than_computed_twice() -> None:
    nodes = [node("p0", "prefill", waiting_tokens=200, **P), node("p1", "prefill", **P)]
    wanted = {"num_tokens": 161, "cached": {"p0": 10}}
    assert start(nodes, **wanted) == "p1"
    assert start(nodes, **wanted, coming=10) == "p0"
    nodes[0] = node("p0", "prefill", waiting_tokens=260, **P)
    assert start(nodes, **wanted, coming=10) == "p1", "within reason"


def test_a_session_stays_where_it_is_while_that_costs_nothing() -> None:
    nodes = [node(f"p{i}", "prefill", **P) for i in range(4)]
    homes = {session: start(nodes, num_tokens=160, session=session) for session in range(200)}
    assert set(homes.values()) == {"p0", "p1", "p2", "p3"}
    busy = homes[7]
    nodes = [
        node(n.node_id, "prefill", waiting_tokens=50 if n.node_id == busy else 0, **P)
        for n in nodes
    ]
    for session, home in homes.items():
        now = start(nodes, num_tokens=160, session=session)
        assert now == home or home == busy
    # Its blocks bind it more than its name does.
    assert start(nodes, num_tokens=160, session=7, cached={"p2": 3}) == "p2"


def test_a_hot_prefix_spreads_once_its_holder_has_a_queue() -> None:
    """Forty prompts of one long system prompt that only p0 has, faster than it can run them: the
    first stay with it, then the others fetch the prefix, and from then on are its holders, too."""
    nodes = {f"p{i}": node(f"p{i}", "prefill", **P) for i in range(4)}
    nodes["d0"] = replace(D0, max_num_seqs=1000)
    holders = {"p0": 100}
    order, fetched = [], 0
    for turn in range(1, 41):
        sources = tuple(Source(holder, 1, 100) for holder in sorted(holders)[:4])
        wanted = prompt(1680, holders, sources, list(nodes.values()))
        placement = route(nodes.values(), wanted, "cache_aware")
        assert placement is not None
        fetched += placement.prefill not in holders
        # 80 tokens of its own; the time to fetch 100 blocks counts like as many tokens.
        tokens = 80 if placement.prefill in holders else 180
        sent(nodes, placement, tokens, turn)
        holders[placement.prefill] = 100
        order.append(placement.prefill)
    assert order[0] == "p0" and set(order) == {"p0", "p1", "p2", "p3"}
    assert fetched == 3, "each node fetches the prefix once"
    assert all(8 <= order.count(f"p{i}") <= 12 for i in range(4)), order


def test_a_prefix_nobody_waits_for_stays_with_its_holder() -> None:
    """The same prompts one at a time: each is over before the next comes."""
    nodes = [node(f"p{i}", "prefill", **P) for i in range(4)]
    for _ in range(10):
        assert start(nodes, num_tokens=1680, cached={"p3": 100}, sources=()) == "p3"
        sources = (Source("p3", 1, 100),)
        assert start(nodes, num_tokens=1680, cached={"p3": 100}, sources=sources) == "p3"


def test_mixed_nodes_are_predicted_with_their_decode_batch() -> None:
    idle, busy = node("m0", "mixed", **P), node("m1", "mixed", num_running=8, **P)
    wanted = prompt(161, {"m1": 5}, nodes=[idle, busy])
    assert route([idle, busy], wanted, "cache_aware") == Placement("m1", "m1")
    wanted = prompt(161, {"m1": 3}, nodes=[idle, busy])
    assert route([idle, busy], wanted, "cache_aware") == Placement("m0", "m0")


# ---------------------------------------------------------------- where they decode
def decode(nodes: list[Candidate], cached: dict[str, int], host: str = "") -> str:
    p0 = node("p0", "prefill", host=host)
    placement = route([p0, *nodes], prompt(160, cached), "cache_aware")
    assert placement is not None
    return placement.decode


def test_a_sequence_decodes_where_much_of_it_lies() -> None:
    nodes = [node("d0", "decode", free_blocks=60), node("d1", "decode", free_blocks=55)]
    assert decode(nodes, {}) == "d0"
    assert decode(nodes, {"d1": 8}) == "d1"
    assert decode(nodes, {"d1": 4}) == "d0", "less than half of it"


def test_but_load_comes_first() -> None:
    nodes = [node("d0", "decode", free_blocks=60), node("d1", "decode", free_blocks=45)]
    assert decode(nodes, {"d1": 10}) == "d0"


def test_near_equal_nodes_are_taken_on_the_host_of_the_prompt() -> None:
    here = node("d1", "decode", free_blocks=55, host="h1")
    there = node("d0", "decode", free_blocks=60, host="h0")
    assert decode([here, there], {}, host="h1") == "d1"
    assert decode([here, there], {}, host="h0") == decode([here, there], {}, host="h2") == "d0"
    assert decode([here, there], {"d0": 8}, host="h1") == "d0", "most of it lies there"
    full = node("d1", "decode", free_blocks=45, host="h1")
    assert decode([full, there], {}, host="h1") == "d0", "load comes first"


# ---------------------------------------------------------------- of many
KINDS = st.fixed_dictionaries(
    {
        "waiting_tokens": st.sampled_from([0, 0, 10, 300]),
        "num_running": st.sampled_from([0, 0, 1, 4]),
        "free_blocks": st.sampled_from([100, 100, 95, 40]),
        "prefill_rate": st.sampled_from([0.0, 1000.0, 1010.0]),
    }
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["prefill", "mixed"]), KINDS, st.integers(0, 12)), min_size=1
    ),
    st.sampled_from([None, 3]),
    st.sampled_from([0, 4, 11]),
)
def test_the_first_of_many_is_that_of_a_plain_order(  # type: ignore[no-untyped-def]
    kinds, session, coming
) -> None:
    """However few of them are ranked."""
    nodes = [
        node(f"n{i}", role, host=f"h{i % 3}", **values) for i, (role, values, _) in enumerate(kinds)
    ]
    cached = {f"n{i}": blocks for i, (_, _, blocks) in enumerate(kinds)}
    sources = (Source("n0", 1, max(cached.values())),)
    wanted = prompt(161, cached, sources, nodes, coming, session=session)

    def cost_s(on: Candidate) -> float:
        predicted = predict(on, wanted)
        return predicted.ttft_s + 0.5 * predicted.again_s

    def order(on: Candidate) -> tuple[object, ...]:
        wants = 0 if session is None else weight(session, on.node_id)
        load = on.decode_load if on.role == "mixed" else 0.0
        return (
            -cached_blocks(on, wanted), -wants, on.role == "mixed", cost_s(on), load, on.node_id
        )  # fmt: skip

    least = min(map(cost_s, nodes))
    near = [on for on in nodes if cost_s(on) <= least + max(0.002, 0.05 * least)]
    assert choose_start(nodes, wanted) is min(near, key=order)

    def decode_order(on: Candidate) -> tuple[object, ...]:
        blocks = cached[on.node_id]
        much = blocks if 2 * blocks * 16 >= 161 else 0
        return -much, on.host != nodes[0].host, on.decode_load, on.num_seqs, on.node_id

    least = min(on.decode_load for on in nodes)
    near = [on for on in nodes if on.decode_load <= least + 0.1]
    assert choose_decode(nodes, wanted, nodes[0]) is min(near, key=decode_order)
