"""TTFT, TPOT and the verdict on an SLO, by their definitions."""

from __future__ import annotations

import pytest

from pd.timeline import Timeline
from pd.types import SLO


def timeline(*sequences: list[float], arrival_s: float = 10.0) -> Timeline:
    result = Timeline(arrival_s, len(sequences))
    for clock, arrivals in zip(result.clocks, sequences, strict=True):
        for now in arrivals:
            clock.arrived(now)
    return result


def test_nothing_is_known_before_the_first_token():
    empty = timeline([])
    assert empty.ttft_s is None
    assert empty.tpot_s is None
    assert not empty.meets(SLO(ttft_s=100.0))


def test_ttft_is_the_first_token_of_any_sequence():
    assert timeline([12.0, 13.0], [11.5]).ttft_s == pytest.approx(1.5)


def test_tpot_leaves_the_first_token_out():
    assert timeline([11.0, 11.2, 12.0]).tpot_s == pytest.approx(0.5)
    assert timeline([11.0]).tpot_s is None
    assert timeline([11.0, 12.0], [11.0, 14.0], [11.0]).tpot_s == pytest.approx(2.0)


def test_tokens_that_come_together_count_one_by_one():
    one = timeline([11.0])
    one.clocks[0].arrived(13.0, count=4)
    assert one.tpot_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (SLO(), True),
        (SLO(ttft_s=1.0), True),
        (SLO(ttft_s=0.9), False),
        (SLO(tpot_s=2.0), True),
        (SLO(tpot_s=1.9), False),  # one sequence of the two is slower
        (SLO(ttft_s=1.0, tpot_s=2.0), True),
        (SLO(ttft_s=0.9, tpot_s=2.0), False),
    ],
)
def test_every_target_has_to_be_met(slo: SLO, met: bool):
    assert timeline([11.0, 12.0], [11.0, 13.0]).meets(slo) is met


def test_stages_add_up_to_what_the_client_waited() -> None:
    one = timeline([12.0, 12.5, 12.6])
    one.prefilled(0.25, 1.0)
    one.moved(0.125)
    stages = one.stages
    assert stages == pytest.approx(
        {"queue": 0.75, "fetch": 0.25, "compute": 1.0, "transfer": 0.125, "first_step": 0.375}
    )
    assert stages["queue"] + stages["fetch"] + stages["compute"] == pytest.approx(one.ttft_s)


def test_stages_that_are_not_known_are_left_out() -> None:
    assert timeline([]).stages == {}
    assert timeline([11.0]).stages == {}
    assert set(timeline([11.0, 12.0]).stages) == {"transfer", "first_step"}
    first_only = timeline([11.0])
    first_only.prefilled(0.0, 0.5)
    assert set(first_only.stages) == {"queue", "fetch", "compute"}


def test_a_first_token_is_explained_once() -> None:
    """A resumed prompt is computed again, and its KV moves again: that is not TTFT."""
    one = timeline([12.0, 13.0])
    one.prefilled(0.0, 1.0)
    one.prefilled(5.0, 5.0)
    one.moved(0.25)
    one.moved(9.0)
    assert one.stages["compute"] == 1.0 and one.stages["transfer"] == 0.25


def test_no_stage_is_negative_or_longer_than_all() -> None:
    one = timeline([10.5, 10.6])
    one.prefilled(0.4, 0.4)
    one.moved(7.0)
    assert one.stages == pytest.approx(
        {"queue": 0.0, "fetch": 0.4, "compute": 0.1, "transfer": 0.1, "first_step": 0.0}
    )


def test_the_second_token_may_come_with_the_first() -> None:
    one = timeline([])
    one.clocks[0].arrived(11.0, count=3)
    assert one.stages["first_step"] == 0.0
