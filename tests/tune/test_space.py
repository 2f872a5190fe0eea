"""What is tried: every layout spends the budget, nothing fixed is changed, words are checked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning import make_fleet, make_problem

from pd.cost import library
from pd.errors import ConfigError
from pd.tune.candidate import FAMILIES, Candidate, Group, check_families
from pd.tune.fleet import find_kinds, parse_gpus
from pd.tune.space import layouts, moves, starting_points
from pd.types import SLO


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.booleans())
def test_every_layout_spends_the_budget(gpus: int, both: bool) -> None:
    fleet = make_fleet(gpus, both=both)
    found = list(layouts(fleet, FAMILIES))
    assert len(set(found)) == len(found), "no layout twice"
    for groups in found:
        candidate = Candidate.of(groups, {})
        used = candidate.num_gpus(fleet)
        smallest = min(fleet.kind(group.kind).gpus for group in groups)
        assert gpus - smallest < used <= gpus, groups
        assert all(group.count > 0 for group in groups)
        assert candidate.family in FAMILIES and candidate.layout(fleet)
    assert {Candidate.of(groups, {}).family for groups in found} >= {"mixed", "split"}


def test_very_many_nodes_are_thinned_out() -> None:
    assert len(list(layouts(make_fleet(64, both=True), FAMILIES))) < 1500
    splits = list(layouts(make_fleet(64), ["split"]))
    assert splits[0][0].count == 1 and splits[-1][0].count == 63


def test_two_kinds_of_gpus_each_keep_to_their_budget() -> None:
    kinds = find_kinds(["llama-3.1-8b-h100", "llama-3.1-8b-a100"])
    fleet = make_fleet().__class__(tuple(kinds), parse_gpus("h100=4,a100=2", kinds))
    found = list(layouts(fleet, FAMILIES))
    for groups in found:
        used = {"h100": 0, "a100": 0}
        for group in groups:
            used[fleet.kind(group.kind).hardware] += group.count
        assert used["h100"] <= 4 and used["a100"] <= 2
    words = [Candidate.of(groups, {}).layout(fleet) for groups in found]
    assert "4P:h100x1+2D:a100x1" in words


def test_what_is_fixed_is_not_searched() -> None:
    fixed = {"max_num_batched_tokens": 512, "block_size": 16, "routing": "affinity"}
    points = starting_points(make_fleet(), FAMILIES, fixed, 5000.0)
    assert points and all(not point.options for point in points)
    defaults = {"max_num_seqs": 256, "admission": "queue", "disaggregate": "auto",
                "prefill_order": "fcfs"}  # fmt: skip
    changed = {
        key for each in moves(points[0], defaults, fixed, SLO(1.0)) for key, _ in each.options
    }
    assert changed and not changed & set(fixed)


def test_a_move_changes_one_option() -> None:
    problem = make_problem()
    defaults = {key: value for section in problem.base.to_dict().values()
                for key, value in section.items()}  # fmt: skip
    for point in starting_points(problem.fleet, FAMILIES, {}, 300.0):
        for moved in moves(point, defaults, {}, problem.slo):
            assert len(set(moved.options) - set(point.options)) == 1
            moved.config(problem.base, problem.fleet)


def test_long_prompts_begin_with_large_blocks() -> None:
    sizes = [dict(starting_points(make_fleet(), ["mixed"], {}, mean)[0].options)["block_size"]
             for mean in (300.0, 6000.0, 14000.0, 1e6)]  # fmt: skip
    assert sizes == [16, 32, 64, 128]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("many", "write a number"),
        ("0", "at least one"),
        ("h100=8,b=2", "no cost model is of 'b'"),
        ("h100", "write a number"),
        ("h100=2", "fewer than one node takes, which is 4"),
    ],
)
def test_budgets_that_are_none(text: str, said: str) -> None:
    kinds = find_kinds(["llama-3.1-70b-h100-*"])
    with pytest.raises(ConfigError, match=said):
        make_fleet().__class__(tuple(kinds), parse_gpus(text, kinds))


def test_a_budget_of_two_kinds_names_them() -> None:
    kinds = find_kinds(["llama-3.1-8b-h100", "llama-3.1-8b-a100"])
    with pytest.raises(ConfigError, match="a100=8,h100=8"):
        parse_gpus("8", kinds)


def test_names_of_kinds_and_families() -> None:
    assert len(find_kinds(["llama-3.1-70b-*"])) == sum(
        name.startswith("llama-3.1-70b-") for name in library.names()
    )
    with pytest.raises(ConfigError, match="no shipped cost model is like"):
        find_kinds(["gpt-*"])
    assert check_families(["split", "mixed"]) == ("mixed", "split")
    with pytest.raises(ConfigError, match="no family 'pd'"):
        check_families(["pd"])


def test_a_candidate_is_a_configuration() -> None:
    fleet = make_fleet(4, both=True)
    candidate = Candidate.of(
        (Group("prefill", 1, "twice"), Group("decode", 2, "small")), {"block_size": 32}
    )
    problem = make_problem()
    config = candidate.config(problem.base, fleet)
    assert (config.cluster.prefill, config.cluster.decode, config.cluster.mixed) == (1, 2, 0)
    assert config.cache.block_size == 32 and config.slo.ttft_ms == 500
    spec = candidate.spec(problem.base, fleet)
    assert [group.num_blocks for group in spec.groups] == [40000 // 32, 16000 // 32]
    assert spec.groups[0].per_host == 4
