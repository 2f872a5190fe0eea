"""Line charts as SVG, written by hand: a few panels side by side that share a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 470, 330  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 64, 52
_INK, _PALE, _GRID = "#0f172a", "#475569", "#e2e8f0"
_TARGET_TICKS = 6


@dataclass(frozen=True)
class Line:
    """Points (x, y) in ascending x. `dash` is SVG's stroke-dasharray, empty for a solid line."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""
    width: float = 2.0
    dots: bool = True


@dataclass(frozen=True)
class Panel:
    """One plot. x is logarithmic with ticks at `x_ticks` (value, label); y starts at 0."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line] = field(default_factory=tuple)


def write_chart(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """The panels in a row, and a legend of every line's name. ValueError without a point."""
    names = {line.name: line for panel in panels for line in panel.lines if line.points}
    if not names:
        raise ValueError(f"nothing to draw in {path}: no line has a point")
    width, height = _WIDTH * len(panels), _HEIGHT + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15" font-weight="bold" fill="{_INK}">'
        f"{escape(title)}</text>",
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place * _WIDTH} 0)">{_panel(panel)}</g>')
    parts += [_legend(list(names.values()), height - 14), "</svg>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")
    print(f"drawn in {path}", flush=True)


def _panel(panel: Panel) -> str:
    low, high = math.log(panel.x_ticks[0][0]), math.log(panel.x_ticks[-1][0])
    top = max(y for line in panel.lines for _, y in line.points)
    step = _step(top)
    y_max = math.ceil(top / step) * step

    def x_of(x: float) -> float:
        return _LEFT + (math.log(x) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / y_max * (_HEIGHT - _TOP - _BOTTOM)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<text x="{_LEFT}" y="{_TOP - 12}" fill="{_INK}">{escape(panel.title)}</text>']
    for tick in range(round(y_max / step) + 1):
        y = y_of(tick * step)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick * step:g}", "end"))
    for value, label in panel.x_ticks:
        x = x_of(value)
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="{_PALE}"/>')
        parts.append(_text(x, bottom + 17, label))
    parts.append(f'<path d="M{_LEFT} {bottom}H{right}" stroke="{_PALE}"/>')
    parts.append(_text((_LEFT + right) / 2, bottom + 36, panel.x_label))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(16 {middle:.1f}) rotate(-90)" text-anchor="middle" '
        f'fill="{_PALE}">{escape(panel.y_label)}</text>'
    )
    for line in panel.lines:
        points = [f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points]
        parts.append(f'<path d="M{"L".join(points)}" fill="none" {_stroke(line)}/>')
        if line.dots:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6" fill="{line.colour}"/>'
                for x, y in line.points
            ]
    return "\n".join(parts)


def _legend(lines: Sequence[Line], y: float) -> str:
    parts = []
    x = float(_LEFT)
    for line in lines:
        parts.append(f'<path d="M{x:.0f} {y - 4}h26" {_stroke(line)}/>')
        parts.append(_text(x + 32, y, line.name, "start"))
        x += 58 + 6.4 * len(line.name)
    return "\n".join(parts)


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    return f'stroke="{line.colour}" stroke-width="{line.width:g}" stroke-linejoin="round"{dash}'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_PALE}">{escape(text)}</text>'
    )


def _step(top: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    rough = max(top, 1e-9) / _TARGET_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
