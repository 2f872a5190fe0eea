"""Clients that leave: `scripts/soak_cancel.py` in short."""

from __future__ import annotations

from cancel_soak import STAGES, CancelSoak
from live_cell import LiveCell

CANCELS = 300


def test_cancelled_requests_leave_nothing_behind(pd_cell: LiveCell) -> None:
    soak = CancelSoak(pd_cell.url, concurrency=24, seed=1)
    try:
        expected = soak.serve_one()
        soak.run(50)
        before = soak.wait_idle()
        soak.run(CANCELS)
        soak.wait_idle(before)
        assert not soak.unexpected
        assert set(soak.stages) == set(STAGES), soak.stages
        assert soak.serve_one() == expected
    finally:
        soak.close()
