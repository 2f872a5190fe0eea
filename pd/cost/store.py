"""Cost models as JSON: readable, with units, and checked when they are read.

{"format": "pd cost model 1", "units": "...", "about": {...},
 "step": {"overhead_s": ..., "linear": [[tokens, seconds], ...],
          "output": [[sequences, seconds], ...],
              "attention": {"pair_s": ..., "decode": [[context, seconds], ...], ...}},
 "links": {"shm": {"latency_s": ..., "bytes_per_s": ...}},
 "fit": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pd.cost.curve import Curve
from pd.cost.load import Sample, StepLoad
from pd.cost.model import FACTORS, Attention, CostModel, Link
from pd.errors import ConfigError

FORMAT = "pd cost model 1"
_UNITS = "seconds, bytes and tokens; attention: seconds of all layers for one unit of work"
_CURVES = ("decode", "mixed")
_STEP = {"overhead_s", "linear", "output", "attention"}


def to_json(model: CostModel) -> dict[str, Any]:
    """Plain data, its floats as they are: reading it back gives an equal model."""
    return {
        "format": FORMAT,
        "units": _UNITS,
        "about": dict(model.about),
        "step": {
            "overhead_s": model.overhead_s,
            "linear": [list(point) for point in model.linear.points],
            "output": [list(point) for point in model.output.points],
            "attention": {
                **{name: getattr(model.attention, name) for name in FACTORS},
                **{
                    name: [list(p) for p in getattr(model.attention, name).points]
                    for name in _CURVES
                },
            },
        },
        "links": {
            name: {"latency_s": link.latency_s, "bytes_per_s": link.bytes_per_s}
            for name, link in sorted(model.links.items())
        },
        "fit": dict(model.fit),
    }


def from_json(data: Any) -> CostModel:
    """The opposite; ConfigError names what is wrong or missing."""
    top = _mapping(data, "a cost model")
    if top.get("format") != FORMAT:
        raise ConfigError(f"not a cost model: its format is {top.get('format')!r}, not '{FORMAT}'")
    step = _mapping(top.get("step"), "step")
    _only(step, _STEP, "step")
    attention = _mapping(step.get("attention", {}), "step.attention")
    _only(attention, {*FACTORS, *_CURVES}, "step.attention")
    links = _mapping(top.get("links", {}), "links")
    return CostModel(
        overhead_s=_number(step.get("overhead_s", 0.0), "step.overhead_s"),
        linear=_curve(step.get("linear", []), "step.linear"),
        output=_curve(step.get("output", []), "step.output"),
        attention=_attention(attention),
        links={name: _link(link, f"links.{name}") for name, link in links.items()},
        about=_mapping(top.get("about", {}), "about"),
        fit=_mapping(top.get("fit", {}), "fit"),
    )


def read(path: str | Path) -> CostModel:
    data = _read_json(path)
    try:
        return from_json(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write(model: CostModel, path: str | Path) -> None:
    _write_text(path, dumps(model))


def save_samples(samples: Iterable[Sample], path: str | Path) -> None:
    """Measured steps as a list of objects, one a line: a load's fields and `seconds`."""
    lines = [json.dumps({**asdict(each.load), "seconds": each.seconds}) for each in samples]
    _write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def load_samples(path: str | Path) -> list[Sample]:
    """The opposite."""
    names = {each.name for each in fields(StepLoad)} | {"seconds"}
    samples = []
    for row in _read_json(path):
        if set(row) != names:
            raise ConfigError(f"{path}: a step has {', '.join(sorted(names))}, not {row}")
        seconds = row.pop("seconds")
        samples.append(Sample(StepLoad(**row), seconds))
    return samples


def dumps(model: CostModel) -> str:
    """JSON with a line for each point of a curve."""
    text = json.dumps(to_json(model), indent=1, allow_nan=False)
    return _fold(text) + "\n"


def _read_json(path: str | Path) -> Any:
    path = Path(path).expanduser()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def _write_text(path: str | Path, text: str) -> None:
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _fold(text: str) -> str:
    """Lists of two numbers on one line: [[1, 0.5],\\n [2, 0.6]]."""
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.strip()
        if lines and lines[-1].endswith("[") and _is_number(bare.rstrip(",")):
            lines[-1] += bare
        elif lines and lines[-1].endswith(",") and _in_pair(lines[-1]):
            lines[-1] += " " + bare
        elif lines and _in_pair(lines[-1]) and bare in ("]", "],"):
            lines[-1] += bare
        else:
            lines.append(line)
    return "\n".join(lines)


def _in_pair(line: str) -> bool:
    """Whether the line is an open list with a number in it."""
    start = line.rfind("[")
    if start < 0 or "]" in line[start:]:
        return False
    return all(_is_number(part.strip()) for part in line[start + 1 :].rstrip(",").split(","))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {type(value).__name__}")
    return value


def _only(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in value:
        if key not in known:
            raise ConfigError(f"{where} has no '{key}'; it has {', '.join(sorted(known))}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, not {value!r}")
    return float(value)


def _curve(value: Any, where: str) -> Curve:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list of [count, seconds]")
    points = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            raise ConfigError(f"{where} must be a list of [count, seconds], not of {point!r}")
        points.append((_number(point[0], where), _number(point[1], where)))
    try:
        return Curve(points)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _attention(value: Mapping[str, Any]) -> Attention:
    parts: dict[str, Any] = {}
    for name, part in value.items():
        where = f"step.attention.{name}"
        parts[name] = _curve(part, where) if name in _CURVES else _number(part, where)
    return Attention(**parts)


def _link(value: Any, where: str) -> Link:
    link = _mapping(value, where)
    _only(link, {"latency_s", "bytes_per_s"}, where)
    for name in ("latency_s", "bytes_per_s"):
        if name not in link:
            raise ConfigError(f"{where} lacks {name}")
    return Link(*(_number(link[name], f"{where}.{name}") for name in ("latency_s", "bytes_per_s")))
