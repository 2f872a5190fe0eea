"""Figures out: percentiles, JSON files, tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pd.workload import outcome


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all values, in any order, do not exceed; NaN of nothing."""
    return outcome.percentile(sorted(values), share)


def write_json(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(report), indent=1) + "\n")
    print(f"stored in {path}", flush=True)


def options_of(args: argparse.Namespace, *places: str) -> dict[str, Any]:
    """What a benchmark was told, except the places where it stores what: `--json`, and these."""
    return {key: value for key, value in vars(args).items() if key not in ("json", *places)}


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; its first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    # Into a file a table is as wide as it is; only a terminal knows better.
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)


def milliseconds(seconds: float, digits: int = 1) -> str:
    return f"{seconds * 1e3:.{digits}f}"


def _rounded(value: Any) -> Any:
    """Floats to seven significant digits: what was measured has fewer."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
