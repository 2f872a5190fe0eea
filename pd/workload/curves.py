"""Curves through a run's outcomes, as points to draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pd.types import SLO
from pd.workload.outcome import Outcome

Point = tuple[float, float]


def cumulative(values: Iterable[float], most_points: int = 400) -> list[Point]:
    """(value, share of all that are no greater), thinned out evenly to `most_points`."""
    ordered = sorted(values)
    count = len(ordered)
    step = max(1.0, count / most_points)
    places = sorted({min(count - 1, int(i * step)) for i in range(min(count, most_points))})
    if count and places[-1] != count - 1:
        places.append(count - 1)
    return [(ordered[i], (i + 1) / count) for i in places]


def in_flight(outcomes: Sequence[Outcome], num_points: int = 200) -> list[Point]:
    """(seconds, requests sent and not ended)."""
    spans = [(_sent(each), each.end_s) for each in outcomes]
    return _counted(spans, num_points)


def before_first_token(outcomes: Sequence[Outcome], num_points: int = 200) -> list[Point]:
    """(seconds, requests sent that had no token yet)."""
    spans = [
        (_sent(each), each.end_s if each.ttft_s is None else _sent(each) + each.ttft_s)
        for each in outcomes
    ]
    return _counted(spans, num_points)


def met_over_time(
    outcomes: Sequence[Outcome], slo: SLO | None, num_windows: int = 20
) -> list[Point]:
    """(middle of a stretch of time, share of the requests arriving in it that met the targets).
    Stretches without arrivals have no point."""
    if not outcomes:
        return []
    start = min(each.arrival.time_s for each in outcomes)
    width = (max(each.arrival.time_s for each in outcomes) - start) / num_windows or 1.0
    met, all_ = [0] * num_windows, [0] * num_windows
    for each in outcomes:
        place = min(num_windows - 1, int((each.arrival.time_s - start) / width))
        all_[place] += 1
        met[place] += each.meets(slo)
    return [(start + (i + 0.5) * width, met[i] / all_[i]) for i in range(num_windows) if all_[i]]


def _sent(outcome: Outcome) -> float:
    return outcome.arrival.time_s if outcome.sent_s is None else outcome.sent_s


def _counted(spans: Sequence[Point], num_points: int) -> list[Point]:
    """How many of the spans each of `num_points` moments, evenly apart, is in."""
    if not spans:
        return []
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    points, running, place = [], 0, 0
    for i in range(num_points + 1):
        now = first + (last - first) * i / num_points
        while place < len(changes) and changes[place][0] <= now:
            running += changes[place][1]
            place += 1
        points.append((now, float(running)))
    return points
