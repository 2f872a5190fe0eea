"""Whole simulated cells: times that can be worked out, and runs that must not depend on how they
were computed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sim_cells import BLOCK_BYTES, COST, check_idle, make_spec, random_workload

from pd.cost.load import StepLoad
from pd.cost.model import Link
from pd.errors import ConfigError
from pd.node.core import NodeCore
from pd.sim.cell import SimCell
from pd.sim.simulate import Run, simulate
from pd.sim.spec import CellSpec, Failure, PoolGroup
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome

LATENCY_S = 0.0002


def one(num_prompt: int, num_output: int, at_s: float = 1.0) -> Workload:
    return Workload("one", [Arrival(at_s, num_prompt, num_output)])


def finish(spec: CellSpec, workload: Workload, seed: int = 0) -> tuple[Run, list[Outcome]]:
    """A run to its end and a little longer, by when nothing must be left anywhere."""
    run = Run(spec, workload, seed, None, None)
    outcomes = list(run.result().outcomes)
    check_idle(run.cell)
    return run, outcomes


def test_a_prompt_alone_on_a_mixed_node() -> None:
    """Two messages, two chunks, one message; then a step a token."""
    _, (outcome,) = finish(make_spec(0, 0, 1), one(600, 11))
    chunks = COST.step_s(StepLoad.chunk(512)) + COST.step_s(StepLoad.chunk(88, 512))
    assert outcome.ttft_s == pytest.approx(3 * LATENCY_S + chunks)
    assert outcome.tpot_s == pytest.approx(COST.decode_steps_s(1, 601, 10) / 10)
    assert outcome.status == "ok" and outcome.num_output == 11


def test_a_prompt_alone_through_both_phases() -> None:
    """The first token waits for room on the decode node, and nothing else; the second for the
    blocks of the last chunk."""
    _, (outcome,) = finish(make_spec(group={"per_host": 1}), one(600, 11))
    chunks = COST.step_s(StepLoad.chunk(512)) + COST.step_s(StepLoad.chunk(88, 512))
    assert outcome.ttft_s == pytest.approx(4 * LATENCY_S + chunks)
    # The blocks of the first chunk are on their way when the second has been computed.
    pushes = COST.transfer_s(38 * BLOCK_BYTES, "tcp")
    push = pushes - COST.step_s(StepLoad.chunk(88, 512))
    decoding = COST.decode_steps_s(1, 601, 10)
    assert outcome.tpot_s == pytest.approx((push + decoding) / 10)


def test_pushes_share_links() -> None:
    """Two prefill nodes that send to one decode node at once take turns."""
    spec = make_spec(2, 1, options={"routing": "round_robin"}, group={"per_host": 1})
    spec = replace(spec, links={"tcp": Link(0.0, 1e8)})
    workload = Workload("two", [Arrival(1.0, 400, 5), Arrival(1.0, 400, 5)])
    run, outcomes = finish(spec, workload)
    push_s = 25 * BLOCK_BYTES / 1e8
    first, second = sorted(each.end_s for each in outcomes)
    assert second - first == pytest.approx(push_s, rel=0.2)
    assert run.cell.links.num_bytes == 50 * BLOCK_BYTES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "spec",
    [
        make_spec(), make_spec(2, 2), make_spec(0, 0, 2), make_spec(1, 1, 1),
        make_spec(1, 2, num_blocks=60),
        make_spec(2, 2, pools=PoolGroup(1, 100, 200)),
        make_spec(0, 0, 2, num_blocks=60, pools=PoolGroup(1, 50, 200)),
        make_spec(2, 2, jitter=0.3),
        make_spec(2, 2, options={"prefill_order": "sjf"}),
        *(make_spec(2, 2, options={"routing": each})
          for each in ("round_robin", "least_loaded", "affinity")),
    ],
)  # fmt: skip
def test_every_request_ends_and_nothing_is_left(spec: CellSpec, seed: int) -> None:
    workload = random_workload(seed)
    _, outcomes = finish(spec, workload, seed)
    assert [each.status for each in outcomes] == ["ok"] * len(workload)
    assert all(each.num_output == each.arrival.num_output for each in outcomes)
    assert all(each.ttft_s is not None and each.ttft_s > 0 for each in outcomes)


@pytest.mark.parametrize("spec", [make_spec(), make_spec(0, 0, 1), make_spec(num_blocks=60)])
def test_steps_taken_together_are_the_same_steps(
    spec: CellSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = random_workload(7, rate=1.0)
    together, outcomes = finish(spec, workload)
    monkeypatch.setattr(NodeCore, "steps_ahead", lambda core: 1)
    one_by_one, expected = finish(spec, workload)
    assert [each.arrival for each in outcomes] == [each.arrival for each in expected]
    for outcome, other in zip(outcomes, expected):
        assert outcome.ttft_s == pytest.approx(other.ttft_s)
        assert outcome.tpot_s == pytest.approx(other.tpot_s)
    for node, other_node in zip(together.cell.nodes(), one_by_one.cell.nodes()):
        a, b = node.core.snapshot(0.0), other_node.core.snapshot(0.0)
        for name in ("steps", "decode_tokens", "prefill_tokens", "preemptions", "cached_blocks"):
            assert getattr(a, name) == getattr(b, name), name
    assert together.cell.queue.num_events < one_by_one.cell.queue.num_events / 2


def test_the_same_seed_gives_the_same_bytes() -> None:
    spec = make_spec(2, 2, jitter=0.1, failures=(Failure(3.0, "decode-1", "kill", 2.0),))
    workload, slo = random_workload(1), SLO(1.0, 0.05)
    texts = [json.dumps(simulate(spec, workload, seed=seed).to_dict(slo)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sequences_are_preempted_where_memory_is_short() -> None:
    spec = make_spec(num_blocks=40, options={"watermark": 0.0})
    workload = Workload("long", [Arrival(0.1 * i, 64, 300) for i in range(8)])
    run, outcomes = finish(spec, workload)
    assert [each.status for each in outcomes] == ["ok"] * 8
    assert sum(node.core.decode.scheduler.preemptions for node in run.cell.nodes()) > 0
    assert run.cell.gateway.interruptions > 0


def test_what_never_fits_and_what_is_too_much_is_rejected() -> None:
    spec = make_spec(num_blocks=40, options={"max_waiting_per_node": 2})
    crowd = [Arrival(1.0, 500, 10) for _ in range(6)]
    _, outcomes = finish(spec, Workload("crowd", [Arrival(0.5, 5000, 10), *crowd]))
    details = [each.detail for each in outcomes if each.status == "rejected"]
    assert len(details) == 5 and "more than" in details[0] and "waiting" in details[1]
    assert sum(each.status == "ok" for each in outcomes) == 2


@pytest.mark.parametrize("kind", ["kill", "freeze", "slow"])
@pytest.mark.parametrize("node", ["prefill-0", "decode-1"])
def test_requests_survive_failures(kind: str, node: str) -> None:
    failure = Failure(4.0, node, kind, for_s=20.0, factor=4.0)  # type: ignore[arg-type]
    spec = make_spec(2, 2, failures=(failure,), restart_s=5.0, options={"node_timeout_s": 3.0})
    run, outcomes = finish(spec, random_workload(3))
    assert [each.status for each in outcomes] == ["ok"] * 60
    assert len(run.cell.lost) == (kind != "slow")
    calm = simulate(make_spec(2, 2), random_workload(3)).outcomes
    assert sum(each.end_s for each in outcomes) > sum(each.end_s for each in calm)


def test_a_short_freeze_loses_nothing() -> None:
    failure = Failure(4.0, "decode-0", "freeze", for_s=1.0)
    run, outcomes = finish(make_spec(failures=(failure,)), random_workload(3, rate=2.0))
    assert [each.status for each in outcomes] == ["ok"] * 60
    assert not run.cell.lost and not run.cell.gateway.interruptions


def test_a_pool_that_was_killed_finds_its_disk_again() -> None:
    spec = make_spec(
        num_blocks=60, pools=PoolGroup(1, 40, 1000), failures=(Failure(6.0, "pool-0", "kill", 1.0),)
    )
    run, outcomes = finish(spec, random_workload(5))
    assert all(each.status == "ok" for each in outcomes)
    (pool,) = [m for m in run.cell.members.values() if m.id == "pool-0"]
    assert pool.core.counters["recovered"] > 0  # type: ignore[attr-defined]


def test_a_cancelled_request_gives_everything_back() -> None:
    for at_s in (1.0003, 1.005, 1.05, 1.2, 2.0):
        ended: list[Outcome] = []
        cell = SimCell(make_spec(), on_end=ended.append)
        cell.queue.at(1.0, cell.gateway.submit, Arrival(0.0, 600, 200))
        cell.queue.at(at_s, cell.gateway.cancel, "r0")
        check_idle(cell)
        assert [each.status for each in ended] == ["error"] and ended[0].detail == "cancelled"


def test_a_client_that_leaves_has_what_was_drawn_until_then() -> None:
    """In the middle of steps that are taken together."""
    whole = finish(make_spec(), one(100, 200, 0.0))[1][0]
    assert whole.ttft_s is not None and whole.tpot_s is not None
    ended: list[Outcome] = []
    cell = SimCell(make_spec(), on_end=ended.append)
    cell.queue.at(0.0, cell.gateway.submit, one(100, 200, 0.0).arrivals[0])
    at_s = whole.ttft_s + 100.5 * whole.tpot_s
    cell.queue.at(at_s, cell.gateway.cancel, "r0")
    cell.queue.run_until(at_s)
    assert 98 <= ended[0].num_output <= 102


def test_cached_prompts_are_found_where_they_lie() -> None:
    prefix = tuple(range(8))
    workload = Workload("twice", [Arrival(t, 512, 4, prefix) for t in (1.0, 5.0)], 64)
    result = simulate(make_spec(2, 1), workload)
    cold, warm = sorted(result.outcomes, key=lambda each: each.arrival.time_s)
    assert warm.ttft_s < 0.5 * cold.ttft_s  # type: ignore[operator]
    assert result.hits.rate == pytest.approx(496 / 1024)
    assert result.hits.found_local > 0 and not result.hits.found_remote


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="mixed nodes, or both"):
        make_spec(1, 0, options={"prefill": 1, "decode": 1})
    with pytest.raises(ConfigError, match="decode-7"):
        make_spec(failures=(Failure(1.0, "decode-7", "kill"),))
    with pytest.raises(ConfigError, match="no path 'rdma'"):
        make_spec(far="rdma")
