"""What requests are like lately."""

from __future__ import annotations

from typing import Any

import pytest

from pd.policies.demand import DemandWatch
from pd.policies.lengths import OutputLengths
from pd.types import SLO


class Watch(DemandWatch):
    """With the lengths that the coordinator keeps beside it."""

    def __init__(self, *, sheds: bool = False) -> None:
        self.lengths = OutputLengths()
        super().__init__(self.lengths, sheds=sheds)


def ask(watch: Watch, count: int, start: float = 0.0, max_tokens: int = 40, **more: Any) -> float:
    """Two a second: when the last came."""
    values: dict[str, Any] = {
        "num_tokens": 100,
        "num_computed": 60,
        "outputs": 1,
        "slo": SLO(),
    }
    now = start
    for number in range(count):
        now = start + number / 2
        watch.asked(**{**values, **more}, now=now)
        watch.lengths.asked(max_tokens, now)
    return now


def test_nothing_is_said_of_few() -> None:
    watch = Watch()
    now = ask(watch, 7)
    assert watch.demand(now, 1.0, 0.1) is None
    now = ask(watch, 1, now + 0.5)
    assert watch.demand(now, 1.0, 0.1) is not None


def test_what_came_is_told() -> None:
    watch = Watch()
    now = ask(watch, 80, outputs=2, slo=SLO(3.0, None))
    demand = watch.demand(now, 1.0, 0.1)
    assert demand is not None
    assert demand.per_s == pytest.approx(2.0, rel=0.1)
    found = (demand.prompt_tokens, demand.outputs, demand.output_tokens, demand.context)
    assert found == pytest.approx((60, 2, 40, 120))
    assert demand.prompt_spread == pytest.approx(0.0, abs=1e-9)
    assert (demand.ttft_s, demand.tpot_s) == pytest.approx((3.0, 0.1))


def test_outputs_that_end_early_count_for_what_they_were() -> None:
    watch = Watch()
    now = ask(watch, 20)
    for _ in range(20):
        watch.lengths.ended(10, 40, now)
    # Of an earlier coordinator: what it might have been is not known.
    watch.lengths.ended(5, 0, now)
    demand = watch.demand(now, 1.0, 0.1)
    assert demand is not None and demand.output_tokens == pytest.approx(10)
    now = ask(watch, 100, now, max_tokens=400)
    demand = watch.demand(now, 1.0, 0.1)
    assert demand is not None and demand.output_tokens == pytest.approx(100, rel=0.15)


def test_prompts_of_different_lengths_have_a_spread() -> None:
    watch = Watch()
    now = 0.0
    for number in range(200):
        now = ask(watch, 1, now + 0.5, num_computed=1000 if number % 10 == 0 else 10)
    demand = watch.demand(now, 1.0, 0.1)
    assert demand is not None and 3.0 < demand.prompt_spread <= 4.0


def test_where_late_ones_are_rejected_the_longest_tenth_is_not_reckoned_with() -> None:
    """But for the room that they take while they are there, since not only they are rejected."""
    serves, sheds = Watch(), Watch(sheds=True)
    for watch in (serves, sheds):
        now = 0.0
        for number in range(200):
            long = number % 10 == 0
            now = ask(watch, 1, now + 0.5, num_tokens=2000 if long else 20,
                      num_computed=1000 if long else 10)  # fmt: skip
    every, short = serves.demand(now, 1.0, 0.1), sheds.demand(now, 1.0, 0.1)
    assert every is not None and short is not None
    assert every.prompt_tokens == pytest.approx(109, rel=0.2)
    assert short.prompt_tokens == pytest.approx(10) and short.prompt_spread == pytest.approx(0.0)
    assert every.context == short.context == pytest.approx(218 + 20, rel=0.2)
    assert every.context_spread == short.context_spread == 4.0


def test_what_came_long_ago_is_forgotten() -> None:
    watch = Watch()
    now = ask(watch, 500, num_computed=1000)
    now = ask(watch, 48, now + 0.5, num_computed=10)
    demand = watch.demand(now, 1.0, 0.1)
    assert demand is not None and demand.prompt_tokens == 10


def test_other_targets_are_believed_within_seconds() -> None:
    """Lengths are averaged over many, since they differ from one request to the next."""
    watch = Watch()
    now = ask(watch, 60, slo=SLO(6.0, 0.036), num_computed=100)
    now = ask(watch, 20, now + 0.5, slo=SLO(1.0, 0.2), num_computed=10)
    demand = watch.demand(now, 9.0, 9.0)
    assert demand is not None
    assert demand.ttft_s < 1.6 and demand.tpot_s > 0.18
    assert demand.prompt_tokens > 40
