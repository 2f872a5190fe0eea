"""The virtual clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pd.sim.events import EventQueue


@given(st.lists(st.integers(0, 5)))
def test_everything_happens_in_order(times: list[int]) -> None:
    queue = EventQueue()
    seen: list[tuple[float, int]] = []
    for number, time_s in enumerate(times):
        queue.at(time_s, lambda n: seen.append((queue.now, n)), number)
    queue.run()
    assert seen == sorted((float(t), n) for n, t in enumerate(times))
    assert queue.num_events == len(times) and not len(queue)


def test_the_past_is_now() -> None:
    queue = EventQueue(5.0)
    seen: list[float] = []
    queue.at(1.0, lambda: seen.append(queue.now))
    queue.run_until(9.0)
    assert seen == [5.0] and queue.now == 9.0


def test_it_stops_when_told_to() -> None:
    queue = EventQueue()
    seen: list[int] = []
    for number in range(5):
        queue.at(number, seen.append, number)
    queue.at(2, setattr, queue, "over", True)
    queue.run()
    assert seen == [0, 1, 2]
    queue.run_until(3.5)
    assert seen == [0, 1, 2, 3] and queue.now == 3.5
