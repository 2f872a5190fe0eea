"""A bench in pictures: attainment by rate, TTFT and TPOT, and a run's course."""

from __future__ import annotations

from collections.abc import Sequence

from pd.bench.measure import Measured
from pd.report.chart import Line, Panel
from pd.types import SLO
from pd.workload.curves import before_first_token, cumulative, in_flight, met_over_time

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_GREY = "#94a3b8"


def panels(
    series: Sequence[tuple[str, Sequence[Measured]]], slo: SLO | None, goal: float | None = None
) -> list[Panel]:
    """Every drawing that the runs give something for. A series is a server's name and its runs;
    `goal` is drawn as a line."""
    drawn = [_attainment(series, goal)] if any(_rates(runs) > 1 for _, runs in series) else []
    named = [
        (name if len(series) > 1 else f"{each.rate:.3g} req/s", each)
        for name, runs in series
        for each in _shown(runs, 1 if len(series) > 1 else len(_COLOURS))
    ]
    drawn.append(_distribution("TTFT", named, slo.ttft_s if slo else None))
    drawn.append(_distribution("TPOT", named, slo.tpot_s if slo else None))
    last = named[-1][1]
    drawn.append(_course(last))
    if slo is not None and len(series) == 1:
        points = met_over_time(last.outcomes, slo)
        line = Line("met its targets", _percent(points), _COLOURS[2])
        drawn.append(
            Panel(
                f"in time, by arrival ({last.rate:.3g} req/s)", "seconds", "% of requests",
                lines=[line], log_x=False, y_top=100,
            )
        )  # fmt: skip
    return [each for each in drawn if any(line.points for line in each.lines)]


def _attainment(series: Sequence[tuple[str, Sequence[Measured]]], goal: float | None) -> Panel:
    lines = []
    for (name, runs), colour in zip(series, _COLOURS, strict=False):
        points = []
        for rate in sorted({each.rate for each in runs}):
            same = [each.summary for each in runs if each.rate == rate]
            met, count = sum(s.num_met for s in same), sum(s.num_requests for s in same)
            if count:
                points.append((rate, 100 * met / count))
        lines.append(Line(name if len(series) > 1 else "attainment", points, colour))
    rates = [each.rate for _, runs in series for each in runs]
    if goal is not None:
        ends = [(min(rates), 100 * goal), (max(rates), 100 * goal)]
        lines.append(Line("goal", ends, _GREY, "4 3", dots=False))
    return Panel(
        "requests that met their targets", "requests per second", "% of requests",
        lines=lines, log_x=False, y_top=100,
    )  # fmt: skip


def _distribution(
    name: str, named: Sequence[tuple[str, Measured]], target_s: float | None
) -> Panel:
    lines = []
    for (label, measured), colour in zip(named, _COLOURS, strict=False):
        values = [
            each.ttft_s if name == "TTFT" else each.tpot_s
            for each in measured.outcomes
            if each.status == "ok"
        ]
        points = cumulative(1e3 * value for value in values if value)
        lines.append(Line(label, _percent(points), colour, dots=False))
    if target_s:
        ends = [(1e3 * target_s, 0.0), (1e3 * target_s, 100.0)]
        lines.append(Line("target", ends, _GREY, "4 3", dots=False))
    return Panel(name, "milliseconds", "% of requests", lines=lines, y_top=100)


def _course(measured: Measured) -> Panel:
    outcomes = measured.outcomes
    return Panel(
        f"in flight ({measured.rate:.3g} req/s)", "seconds", "requests",
        lines=[
            Line("in flight", in_flight(outcomes), _COLOURS[0], dots=False),
            Line("of them without a token", before_first_token(outcomes), _COLOURS[3], dots=False),
        ],
        log_x=False,
    )  # fmt: skip


def _shown(runs: Sequence[Measured], most: int) -> list[Measured]:
    """One run of each rate, evenly chosen where there are more than `most` rates."""
    by_rate = {each.rate: each for each in runs}
    chosen = [by_rate[rate] for rate in sorted(by_rate)]
    if len(chosen) <= most:
        return chosen
    if most == 1:
        return chosen[-1:]
    return [chosen[round(i * (len(chosen) - 1) / (most - 1))] for i in range(most)]


def _rates(runs: Sequence[Measured]) -> int:
    return len({each.rate for each in runs})


def _percent(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, 100 * share) for x, share in points]
