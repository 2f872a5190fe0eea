"""Requests that missed a target: a line each that says where the time went, and never too many."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from pd.gateway.slowlog import SlowLog
from pd.gateway.stream import Outcome, RunningRequest, TokenStream
from pd.logs import TextFormatter
from pd.types import SLO, Request, SamplingParams, TokenEvent

LOGGER = "pd.gateway.slowlog"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, as JSON has it."""
    text = TextFormatter("gateway-0").format(record)
    return json.loads(text.partition(" slow_request ")[2])


def ended(ttft_s: float, slo: SLO, outcome: Outcome | None = None) -> RunningRequest:
    """A request of two tokens that came at 10 s."""
    request = Request("r", "g", (1, 2, 3), SamplingParams(max_tokens=2), tenant="t", slo=slo)
    stream = TokenStream([request], 10.0, max_backlog=9, cancel=lambda running, indices: None)
    (running,) = stream.requests
    for position in (0, 1):
        finish = "length" if position else None
        running.record.on_token(TokenEvent("r", 0, 0, position, 5, finish))  # type: ignore[arg-type]
        running.timeline.clocks[0].arrived(10.0 + ttft_s + position)
    running.timeline.prefilled(0.0, ttft_s / 2)
    running.outcome = outcome
    running.timeline.end_s = 10.0 + ttft_s + 1
    return running


def test_a_late_request_is_described_by_stages(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        SlowLog().ended(ended(4.0, SLO(1.0, 9.0)), 20.0)
    (record,) = caplog.records
    line = fields_of(record)
    assert (record.getMessage(), record.request_id) == ("slow_request", "r")  # type: ignore[attr-defined]
    assert [(each["name"], each["start_s"], each["end_s"]) for each in line["spans"]] == [
        ("admit", 0.0, 2.0), ("compute", 2.0, 4.0), ("first_step", 4.0, 5.0)
    ]  # fmt: skip
    assert (line["ttft_s"], line["ttft_target_s"], line["tpot_target_s"]) == (4.0, 1.0, 9.0)
    assert line["stages_s"] == {
        "queue": 2.0, "fetch": 0.0, "compute": 2.0, "transfer": 0.0, "first_step": 1.0
    }  # fmt: skip
    assert (line["prompt_tokens"], line["output_tokens"], line["tenant"]) == (3, 2, "t")


@pytest.mark.parametrize(
    ("slo", "outcome"),
    [(SLO(9.0, 9.0), None), (SLO(), None), (SLO(1.0), "cancelled"), (SLO(1.0), "rejected")],
)
def test_nothing_is_said_of_others(
    slo: SLO, outcome: Outcome | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        SlowLog().ended(ended(4.0, slo, outcome), 20.0)
    assert not caplog.records


def test_an_overload_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    slow, late = SlowLog(), ended(4.0, SLO(1.0))
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(1000):
            slow.ended(late, 20.0)
        assert len(caplog.records) == 20
        slow.ended(late, 21.0)
    assert fields_of(caplog.records[-1])["left_out"] == 980
