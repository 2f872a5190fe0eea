"""Our own log of a run: JSON lines, a heading and then a request each, with what became of it.

The heading is {"pd_workload": 1, "name": ..., "block_tokens": ...}. A request's line has the
fields of `Arrival` as far as they are not the default and, if it was run, those of `Outcome`.
A log can be run again: as a workload, it is the arrivals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, get_args

from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome, Status
from pd.workload.rows import Row, json_rows

MARK = "pd_workload"
VERSION = 1
_DEFAULTS = {each.name: each.default for each in fields(Arrival)}


def write_log(path: Path, workload: Workload, outcomes: Sequence[Outcome] | None = None) -> None:
    """What was run, or what shall be: `outcomes` are of this workload, in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        write_heading(file, workload)
        if outcomes is None:
            file.writelines(json.dumps(_arrival_fields(each)) + "\n" for each in workload)
        else:
            write_outcomes(file, sorted(outcomes, key=lambda each: each.arrival.time_s))


def write_heading(file: IO[str], workload: Workload) -> None:
    heading = {MARK: VERSION, "name": workload.name, "block_tokens": workload.block_tokens}
    file.write(json.dumps(heading) + "\n")


def write_outcomes(file: IO[str], outcomes: Iterable[Outcome]) -> None:
    """A line each; `write_heading` comes before."""
    for each in outcomes:
        file.write(json.dumps(_arrival_fields(each.arrival) | _outcome_fields(each)) + "\n")


def load_log(path: Path) -> Workload:
    """The arrivals of a log. WorkloadError names a bad line."""
    name, block_tokens, rows = _read(path)
    arrivals = [_arrival(row, block_tokens) for row in rows]
    arrivals.sort(key=lambda each: each.time_s)
    return Workload(name, arrivals, block_tokens)


def load_outcomes(path: Path) -> list[Outcome]:
    """What became of the requests of a log. WorkloadError where it has no such thing."""
    _, block_tokens, rows = _read(path)
    return [_outcome(row, block_tokens) for row in rows]


def _read(path: Path) -> tuple[str, int, list[Row]]:
    rows = list(json_rows(path))
    if not rows or MARK not in rows[0]:
        where = rows[0] if rows else Row(path, 1, {})
        raise where.error(f"no heading with '{MARK}': not a log of pd bench")
    heading = rows[0]
    if heading[MARK] != VERSION:
        raise heading.error(f"a log of version {heading[MARK]}; this program reads {VERSION}")
    return heading.text("name"), heading.count("block_tokens", least=1), rows[1:]


def _arrival_fields(arrival: Arrival) -> dict[str, Any]:
    values = asdict(arrival)
    return {key: value for key, value in values.items() if value != _DEFAULTS[key]}


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    values = {each.name: getattr(outcome, each.name) for each in fields(Outcome)}
    del values["arrival"]
    values["output_tokens"] = values.pop("num_output")  # `num_output` is what was asked for
    return {key: value for key, value in values.items() if value not in ("", ())}


def _arrival(row: Row, block_tokens: int) -> Arrival:
    num_prompt = row.count("num_prompt", least=1)
    prefix = row.get("prefix", [])
    expected = -(-num_prompt // block_tokens)
    if not isinstance(prefix, list) or not all(type(each) is int for each in prefix):
        raise row.error("'prefix' must be a list of whole numbers")
    if prefix and len(prefix) != expected:
        raise row.error(
            f"{len(prefix)} ids in 'prefix' for {num_prompt} tokens; blocks of {block_tokens} "
            f"would be {expected}"
        )
    return Arrival(
        row.number("time_s"),
        num_prompt,
        row.count("num_output", least=1),
        tuple(prefix),
        session=row.text("session", ""),
        tenant=row.text("tenant", ""),
        priority=row.count("priority", least=-(2**31)) if "priority" in row else 0,
        slo=_slo(row),
    )


def _slo(row: Row) -> SLO | None:
    value = row.get("slo")
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() - {"ttft_s", "tpot_s"}:
        raise row.error("'slo' must have 'ttft_s', 'tpot_s' or both")
    targets = Row(row.path, row.line, value)
    return SLO(_seconds(targets, "ttft_s"), _seconds(targets, "tpot_s"))


def _outcome(row: Row, block_tokens: int) -> Outcome:
    status: Status = row["status"]
    if status not in get_args(Status):
        raise row.error(f"'status' is {status!r}; it must be {', '.join(get_args(Status))}")
    gaps = row.get("itl_s", [])
    if not isinstance(gaps, list) or not all(isinstance(each, int | float) for each in gaps):
        raise row.error("'itl_s' must be a list of numbers")
    return Outcome(
        _arrival(row, block_tokens),
        _seconds(row, "ttft_s"),
        _seconds(row, "tpot_s"),
        row.count("output_tokens"),
        status,
        row.number("end_s"),
        _seconds(row, "sent_s"),
        tuple(float(each) for each in gaps),
        row.text("detail", ""),
    )


def _seconds(row: Row, name: str) -> float | None:
    return None if row.get(name) is None else row.number(name)
