"""Which pool a node uses: its host's, else an even share of all nodes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pd.policies.pools import Site, assign_pools

SITES = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("xyz"), st.integers(0, 1)),
    max_size=12, unique_by=lambda site: site[0],
)  # fmt: skip


def sites(kind: str, shapes: list[tuple[int, str, int]]) -> list[Site]:
    return [Site(f"{kind}{number}", host, layout) for number, host, layout in shapes]


def test_the_pool_on_the_same_host() -> None:
    nodes = [Site("n0", "x", 1), Site("n1", "y", 1)]
    pools = [Site("k0", "y", 1), Site("k1", "x", 1)]
    assert assign_pools(nodes, pools, {"n0": "k0"}) == {"n0": "k1", "n1": "k0"}


def test_without_one_the_pool_with_least_nodes() -> None:
    nodes = [Site(f"n{i}", "x", 1) for i in range(4)] + [Site("n9", "y", 1)]
    pools = [Site("k0", "y", 1), Site("k1", "z", 1)]
    assigned = assign_pools(nodes, pools, {})
    assert assigned["n9"] == "k0"
    assert Counter(assigned.values()) == {"k0": 3, "k1": 2} or Counter(assigned.values()) == {
        "k0": 2, "k1": 3,
    }  # fmt: skip


def test_no_pool_and_no_pool_of_the_layout() -> None:
    assert assign_pools([Site("n0", "x", 1)], [], {}) == {}
    assert assign_pools([Site("n0", "x", 1)], [Site("k0", "x", 2)], {}) == {}


def test_a_node_keeps_its_pool_when_another_leaves() -> None:
    nodes = [Site(f"n{i}", "x", 1) for i in range(6)]
    pools = [Site(f"k{i}", f"h{i}", 1) for i in range(3)]
    before = assign_pools(nodes, pools, {})
    after = assign_pools(nodes, pools[:2], before)
    assert all(after[n] == before[n] for n in before if before[n] != "k2")


@given(SITES, SITES, st.dictionaries(st.integers(0, 30), st.integers(0, 30)))
def test_everybody_has_a_pool_of_its_layout_and_nobody_too_many(  # type: ignore[no-untyped-def]
    node_shapes, pool_shapes, had
) -> None:
    nodes, pools = sites("n", node_shapes), sites("k", pool_shapes)
    before = {f"n{number}": f"k{pool}" for number, pool in had.items()}
    assigned = assign_pools(nodes, pools, before)
    by_id = {pool.id: pool for pool in pools}
    for node in nodes:
        fitting = [pool for pool in pools if pool.layout == node.layout]
        assert (node.id in assigned) == bool(fitting)
        if fitting:
            pool = by_id[assigned[node.id]]
            assert pool.layout == node.layout
            if any(each.host == node.host for each in fitting):
                assert pool.host == node.host
    assert assign_pools(nodes[::-1], pools[::-1], before) == assigned
    again = assign_pools(nodes, pools, assigned)
    assert assign_pools(nodes, pools, again) == again, "it comes to rest"
