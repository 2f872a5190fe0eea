"""The coordinator changes roles by itself: on what it sees, and with a reason."""

from __future__ import annotations

import itertools
from dataclasses import replace

from coordinating import Driver

from pd.messages import Finished, SetRole
from pd.outbox import Decided
from pd.policies.balance import BalanceOptions
from pd.types import SLO

OPTIONS = BalanceOptions(ttft_s=1.0, tpot_s=0.1, window_s=2.0, patience_s=3.0, cooldown_s=10.0,
                         mixed=False)  # fmt: skip


def driver(**more: object) -> Driver:
    return Driver(
        ("p0", "prefill"), ("d0", "decode"), ("d1", "decode"), balance=OPTIONS, **more
    )  # fmt: skip


def crowd(cell: Driver, seconds: int, *, queue: int, computed: int = 1000) -> None:
    """The prefill node has a queue of so many tokens and computes some a second, of the thousand
    that it can; the decode nodes have next to nothing."""
    for _ in range(seconds):
        tokens = cell.coordinator.members.nodes["p0"].snapshot.prefill_tokens
        cell.snapshot("p0", waiting_tokens=queue, num_waiting=9, prefill_rate=1000.0,
                      prefill_tokens=tokens + computed)  # fmt: skip
        for node_id in ("d0", "d1"):
            cell.snapshot(node_id, num_running=1, running_tokens=10, steps=1, step_s=0.01,
                          step_seqs=1)  # fmt: skip
        cell.tick(1.0)


def decided(cell: Driver) -> list[Decided]:
    return [effect for effect in cell.coordinator.drain() if isinstance(effect, Decided)]


def test_an_idle_decode_node_helps_with_the_prompts() -> None:
    cell = driver()
    crowd(cell, 10, queue=3000)
    assert len(cell.sent(SetRole)) >= 1
    roles = {node.id: node.hello.role for node in cell.coordinator.members.serving}
    assert sorted(roles.values()) == ["decode", "prefill", "prefill"] and roles["p0"] == "prefill"


def test_why_is_said_with_its_numbers() -> None:
    cell = driver()
    for _ in range(10):
        crowd(cell, 1, queue=3000)
        said = decided(cell)
        if said:
            break
    (change,) = said
    assert change.what in ("d0 becomes a prefill node", "d1 becomes a prefill node")
    assert "prefill is at" in change.reason
    assert change.numbers["prefill"] > 0.9 > change.numbers["prefill_then"] / 2
    assert change.numbers["decode"] < 0.9


def test_a_cell_at_ease_stays_as_it_is() -> None:
    cell = driver()
    crowd(cell, 60, queue=0, computed=200)
    assert not cell.sent(SetRole)


def test_without_being_asked_to_nothing_changes() -> None:
    cell = Driver(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"))
    crowd(cell, 30, queue=9000)
    assert not cell.sent(SetRole)


def test_the_pause_after_a_change_is_kept() -> None:
    cell = Driver(("p0", "prefill"), ("d0", "decode"), ("d1", "decode"), ("d2", "decode"),
                  balance=OPTIONS)  # fmt: skip
    changes: list[float] = []
    for _ in range(60):
        crowd(cell, 1, queue=30_000)
        changes += [cell.now] * len(decided(cell))
        for node in cell.coordinator.members.serving:
            if node.hello.role == "prefill" and node.id != "p0":
                cell.snapshot(node.id)
    assert 1 <= len(changes) <= 2
    assert all(b - a >= OPTIONS.cooldown_s for a, b in itertools.pairwise(changes))


def busy_pair(cell: Driver, seconds: int, slo: SLO, start: int = 0) -> None:
    """Eight requests a second for nodes that take 20 ms a step and a millisecond for every token
    of a prompt, as these tell of their steps."""
    for second in range(start, start + seconds):
        for number in range(8):
            prompt = (8 * second + number,) * 200  # none has blocks of another
            cell.submit(f"{second}-{number}", prompt=prompt, max_tokens=60, slo=slo)
            if second:
                cell.hear("g", Finished(f"{second - 1}-{number}", (0,), None, 45))
        for turn, node_id in enumerate(("m0", "m1")):
            node = cell.coordinator.members.nodes[node_id]
            tokens = 0 if node.hello.role == "decode" else 100 * ((second + turn) % 2)
            seqs = 0 if node.hello.role == "prefill" else 1 + second % 4
            cell.snapshot(
                node_id, num_blocks=10_000, steps=second + 1, step_seqs=seqs,
                step_context=220 * seqs, step_prompt_tokens=tokens, step_prompt_context=tokens,
                step_s=0.02 + 0.0015 * seqs + 0.001 * tokens,
            )  # fmt: skip
        cell.tick(1.0)


def test_nodes_that_may_have_any_role_get_those_that_the_requests_targets_want() -> None:
    cell = Driver(balance=replace(OPTIONS, mixed=True))
    for node_id in ("m0", "m1"):
        cell.join(node_id, "mixed", num_blocks=10_000, max_model_len=1000, max_num_seqs=64)
    busy_pair(cell, 20, SLO(6.0, 0.036))
    roles = {node.id: node.hello.role for node in cell.coordinator.members.serving}
    assert sorted(roles.values()) == ["decode", "prefill"]
    first, second = decided(cell)
    assert first.kind == "balance" and first.reason == second.reason
    assert "1 prefill + 1 decode" in first.reason
    assert first.numbers["asked_per_s"] > 5.0
    busy_pair(cell, 30, SLO(1.0, 0.2), start=20)
    roles = {node.id: node.hello.role for node in cell.coordinator.members.serving}
    assert sorted(roles.values()) == ["mixed", "mixed"]
