"""A process that hangs is ended, and the next one has time to start."""

from __future__ import annotations

from pd.policies.hang import HangWatch


def test_the_next_process_has_time_to_start() -> None:
    watch = HangWatch(timeout_s=4.0, start_s=30.0)
    assert not watch.hangs(0.1, 10.0)
    assert watch.hangs(4.0, 14.0)
    assert not any(watch.hangs(4.0, now_s) for now_s in (18.0, 30.0, 43.9))
    assert watch.hangs(4.0, 44.0), "it has had its time"


def test_one_that_has_started_and_hangs_again_is_not_waited_for() -> None:
    watch = HangWatch(timeout_s=4.0, start_s=30.0)
    assert watch.hangs(4.0, 14.0)
    assert not watch.hangs(0.2, 18.0)
    assert not watch.hangs(3.9, 21.0)
    assert watch.hangs(4.0, 22.0)
