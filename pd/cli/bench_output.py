"""What `pd bench` shows: progress while it runs, tables, and the report page."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pd.bench.measure import Measured
from pd.bench.pictures import panels
from pd.bench.results import problems
from pd.cli.cell import console, table
from pd.cli.files import write_text
from pd.errors import ConfigError
from pd.report.chart import chart_svg
from pd.report.page import Page
from pd.types import SLO
from pd.workload.outcome import Spread, Summary

HEADINGS = (
    "", "req/s", "requests", "met", "goodput/s", "ttft mean", "p50", "p90", "p99",
    "tpot mean", "p50", "p90", "p99", "rejected", "failed", "sent late p99",
)  # fmt: skip
_LATE_S = 0.05  # beyond this the figures say as much about the sender as about the server


class RunProgress:
    """A bar for the run under way on a terminal; a line for each that has ended."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Progress | None = None

    def begin(self, what: str, num_requests: int) -> None:
        if not self._console.is_terminal:
            return
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[flying]} in flight"), TimeElapsedColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._bars.start()
        self._bars.add_task(what, total=num_requests, flying=0)

    def update(self, sent: int, ended: int) -> None:
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=ended, flying=sent - ended)

    def end(self, measured: Measured) -> None:
        self.close()
        summary = measured.summary
        stopped = "" if measured.stopped_s is None else f", given up at {measured.stopped_s:.0f} s"
        print(
            f"==> {measured.rate:.3g} req/s: {summary.attainment:.1%} of {summary.num_requests} "
            f"met their targets{stopped}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def show(rows: Sequence[tuple[str, float, Summary]]) -> None:
    """A line of the table for each (name, rate, summary); times in ms."""
    made = table(*HEADINGS, text=1)
    for row in rows:
        made.add_row(*row_of(*row))
    console().print(made)


def row_of(name: str, rate: float, summary: Summary) -> tuple[str, ...]:
    return (
        name, f"{rate:.3g}", str(summary.num_requests), f"{summary.attainment:.1%}",
        f"{summary.goodput:.3g}", *_times(summary.ttft_s), *_times(summary.tpot_s),
        str(summary.num_rejected), str(summary.num_errors), _ms(summary.late_s.p99),
    )  # fmt: skip


def warnings(runs: Sequence[Measured]) -> list[str]:
    """What a reader of the figures has to know."""
    said = []
    for each in runs:
        where = f"{each.url} at {each.rate:.3g} req/s"
        if each.summary.late_s.p99 > _LATE_S:
            said.append(
                f"{where}: requests went out up to {_ms(each.summary.late_s.p99)} ms late (p99): "
                "this machine is too slow to send that load, or is shared with the server"
            )
        for problem, count in problems(each).most_common(3):
            said.append(f"{where}: {count} x {problem}")
    return said


def write_report(
    path: Path,
    title: str,
    series: Sequence[tuple[str, Sequence[Measured]]],
    slo: SLO | None,
    goal: float | None,
    notes: Sequence[str],
) -> None:
    """An HTML page, or its drawings alone where the file's name ends in .svg."""
    drawn = panels(series, slo, goal)
    svg = chart_svg(title, drawn, columns=2) if drawn else ""
    if path.suffix == ".svg":
        if not svg:
            raise ConfigError(f"nothing to draw in {path}: no request got a token")
        write_text(path, svg)
        return
    page = Page(title)
    for note in notes:
        page.paragraph(note)
    rows = [row_of(name, each.rate, each.summary) for name, runs in series for each in runs]
    page.table(HEADINGS, rows)
    page.paragraph("Times are in milliseconds, of finished requests.", note=True)
    if svg:
        page.drawing(svg)
    for warning in warnings([each for _, runs in series for each in runs]):
        page.paragraph(warning, note=True)
    write_text(path, page.html)


def _times(spread: Spread) -> tuple[str, ...]:
    return tuple(_ms(value) for value in (spread.mean, spread.p50, spread.p90, spread.p99))


def _ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"
