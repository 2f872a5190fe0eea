"""Lines of workload files, plain or gzip, and errors that say which line is wrong and why."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pd.errors import WorkloadError

MOST_TOKENS = 100_000_000  # a length beyond this is a mistake, and would be memory


class Row:
    """One line's fields, which are checked as they are taken."""

    __slots__ = ("path", "line", "_fields")

    def __init__(self, path: Path, line: int, fields: Mapping[str, Any]) -> None:
        self.path = path
        self.line = line
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise self.error(f"has no '{name}'") from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def error(self, what: str) -> WorkloadError:
        """An error to raise: `what` goes after the file and the line."""
        return WorkloadError(f"{self.path}, line {self.line}: {what}")

    def number(self, name: str, least: float = 0.0) -> float:
        """A finite number of at least `least`; CSV has it as text."""
        value: float = self._converted(name, float, "a number")
        if not least <= value < math.inf:
            raise self.error(f"'{name}' is {self[name]}; it must be at least {least:g} and finite")
        return value

    def count(self, name: str, least: int = 0, most: int = MOST_TOKENS) -> int:
        """A whole number from `least` to `most`."""
        value: int = self._converted(name, _whole, "a whole number")
        if not least <= value <= most:
            raise self.error(f"'{name}' is {value}; it must be from {least} to {most}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self[name] if default is None else self._fields.get(name, default)
        if not isinstance(value, str):
            raise self.error(f"'{name}' is {json.dumps(value)}; it must be text")
        return value

    def _converted(self, name: str, convert: Callable[[Any], Any], kind: str) -> Any:
        value = self[name]
        try:
            if isinstance(value, bool):
                raise ValueError
            return convert(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(f"'{name}' is {value!r}; it must be {kind}") from None


def json_rows(path: Path) -> Iterator[Row]:
    """An object a line; empty lines are passed over."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WorkloadError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise WorkloadError(f"{path}, line {number}: {line.strip()[:40]!r} is no JSON object")
        yield Row(path, number, fields)


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows below a heading that must have these columns, in any order and with others."""
    heading: list[str] | None = None
    number = 0
    try:
        for number, line in _lines(path):
            cells = next(csv.reader([line], strict=True), [])
            if not cells:
                continue
            if heading is None:
                heading = [each.strip().lstrip("\ufeff") for each in cells]
                missing = [each for each in columns if each not in heading]
                if missing:
                    raise WorkloadError(
                        f"{path}, line {number}: no column {', '.join(missing)}; "
                        f"the columns are {', '.join(heading)}"
                    )
                continue
            if len(cells) != len(heading):
                raise WorkloadError(
                    f"{path}, line {number}: {len(cells)} values for {len(heading)} columns"
                )
            yield Row(path, number, dict(zip(heading, cells, strict=True)))
    except csv.Error as error:
        raise WorkloadError(f"{path}, line {number}: not CSV: {error}") from None


def first_line(path: Path) -> str:
    """The first line that is not empty, or nothing."""
    return next((line.strip() for _, line in _lines(path) if line.strip()), "")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        opener = gzip.open if zipped else open
        with opener(path, "rt", encoding="utf-8", newline=None) as lines:
            for number, line in enumerate(lines, 1):
                yield number, line
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}, after line {number}: not UTF-8 text: {error}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WorkloadError(f"{path}, after line {number}: damaged gzip file: {error}") from None
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror or error}") from None


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)
