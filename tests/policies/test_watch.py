"""What balancing is told: rates over the time between two looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from candidates import node

from pd.policies.balance import NodeLoad
from pd.policies.candidate import Candidate
from pd.policies.watch import LoadWatch


def after(candidate: Candidate, **snapshot: Any) -> Candidate:
    return replace(candidate, snapshot=replace(candidate.snapshot, **snapshot))


def test_work_is_counted_over_the_time_since_the_last_look() -> None:
    watch = LoadWatch()
    p0 = node("p0", "prefill", prefill_rate=100.0, prefill_tokens=1000)
    watch.sent("p0", 1.0)
    assert watch.loads([p0], 10.0, {}) == [NodeLoad("p0", "prefill")]
    watch.sent("p0", 1.5)
    watch.sent("p0", 1.5)
    (load,) = watch.loads([after(p0, prefill_tokens=1100)], 12.0, {})
    assert (load.arrived, load.busy) == (1.5, 0.5)
    (load,) = watch.loads([after(p0, prefill_tokens=1100)], 14.0, {})
    assert (load.arrived, load.busy) == (0.0, 0.0)


def test_a_node_that_was_started_anew_counts_from_there() -> None:
    watch = LoadWatch()
    p0 = node("p0", "prefill", prefill_rate=100.0, prefill_tokens=1000)
    watch.loads([p0], 0.0, {})
    fresh = after(p0, epoch=2, prefill_tokens=50)
    assert watch.loads([fresh], 1.0, {})[0].busy == 0.0
    (load,) = watch.loads([after(fresh, prefill_tokens=80)], 2.0, {})
    assert load.busy == pytest.approx(0.3)


def test_what_waits_and_what_decodes() -> None:
    waiting = node("p0", "prefill", prefill_rate=100.0, waiting_tokens=250, num_waiting=2)
    decoding = node("d0", "decode", num_running=4, step_s=0.02, free_blocks=40)
    idle = node("d1", "decode", step_s=0.02)
    loads = LoadWatch().loads([waiting, decoding, idle], 0.0, {})
    assert [each.wait_s for each in loads] == [2.5, 0.0, 0.0]
    assert [each.step_s for each in loads] == [0.0, 0.02, 0.0]
    assert [each.full for each in loads] == [0.0, 0.6, 0.0]


def test_a_node_under_change_has_its_former_role_and_a_target() -> None:
    changing = node("n0", "prefill", num_running=2, step_s=0.03)
    (load,) = LoadWatch().loads([changing], 0.0, {"n0": "decode"})
    assert (load.role, load.target, load.will_be) == ("decode", "prefill", "prefill")
    assert load.step_s == 0.03 and load.full == 0.25
