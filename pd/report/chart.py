"""Line charts as SVG, written by hand: a few panels that share a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 470, 330  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 64, 52
INK, PALE, GRID = "#0f172a", "#475569", "#e2e8f0"
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
    """One plot. y starts at 0 and ends at `y_top` or above the highest point. x has ticks at
    `x_ticks` (value, label), which are also its ends, or at round values if there are none;
    `log_x` is false for a linear axis."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]] = ()
    lines: Sequence[Line] = field(default_factory=tuple)
    log_x: bool = True
    y_top: float | None = None


def write_chart(path: Path, title: str, panels: Sequence[Panel], columns: int = 0) -> None:
    """`chart_svg` into a file."""
    drawing = chart_svg(title, panels, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawing)


def chart_svg(title: str, panels: Sequence[Panel], columns: int = 0) -> str:
    """The panels in rows of `columns` (0: all in one), and a legend of every line's name.
    ValueError without a point."""
    names = {line.name: line for panel in panels for line in panel.lines if line.points}
    if not names:
        raise ValueError(f"nothing to draw in '{title}': no line has a point")
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    width = _WIDTH * columns
    legend = _legend(list(names.values()), width)
    height = _HEIGHT * rows + 20 * len(legend) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15" font-weight="bold" fill="{INK}">'
        f"{escape(title)}</text>",
    ]
    for place, panel in enumerate(panels):
        x, y = place % columns * _WIDTH, place // columns * _HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel)}</g>')
    for row, line in enumerate(legend):
        parts.append(f'<g transform="translate(0 {_HEIGHT * rows + 12 + 20 * row})">{line}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines for point in line.points]
    y_max = panel.y_top or max((y for _, y in points), default=0.0) or 1.0
    step = _step(y_max)
    y_max = max(1, math.ceil(y_max / step - 1e-9)) * step
    ticks = panel.x_ticks or _x_ticks([x for x, _ in points], panel.log_x)
    along = math.log if panel.log_x else float
    low, high = along(ticks[0][0]), along(ticks[-1][0])

    def x_of(x: float) -> float:
        share = (along(max(x, ticks[0][0])) - low) / ((high - low) or 1.0)
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - min(1.0, y / y_max) * (_HEIGHT - _TOP - _BOTTOM)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<text x="{_LEFT}" y="{_TOP - 12}" fill="{INK}">{escape(panel.title)}</text>']
    for tick in range(round(y_max / step) + 1):
        y = y_of(tick * step)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick * step:g}", "end"))
    for value, label in ticks:
        x = x_of(value)
        parts.append(f'<path d="M{x:.1f} {bottom}v4" stroke="{PALE}"/>')
        parts.append(_text(x, bottom + 17, label))
    parts.append(f'<path d="M{_LEFT} {bottom}H{right}" stroke="{PALE}"/>')
    parts.append(_text((_LEFT + right) / 2, bottom + 36, panel.x_label))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(16 {middle:.1f}) rotate(-90)" text-anchor="middle" '
        f'fill="{PALE}">{escape(panel.y_label)}</text>'
    )
    for line in panel.lines:
        places = [f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points]
        if len(places) > 1:
            parts.append(f'<path d="M{"L".join(places)}" fill="none" {_stroke(line)}/>')
        if line.dots or len(places) == 1:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6" fill="{line.colour}"/>'
                for x, y in line.points
            ]
    return "\n".join(parts)


def _x_ticks(values: Sequence[float], log_x: bool) -> list[tuple[float, str]]:
    """Round values that enclose all of these."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log_x:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        # More than three decades are marked at their powers of ten only.
        factors = (1, 2, 5) if last - first <= 3 else (1,)
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        # One tick at or below the lowest value, one at or above the highest.
        start = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        ends = [i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9)]
        ticks = ticks[start : max(ends[0], start + 1) + 1]
        if len(ticks) == 1:
            ticks.append(ticks[0] * 10)
    else:
        step = _step((high - low) or abs(high) or 1.0)
        start = math.floor(low / step + 1e-9)
        end = max(start + 1, math.ceil(high / step - 1e-9))
        ticks = [tick * step for tick in range(start, end + 1)]
    return [(tick, f"{tick:g}") for tick in ticks]


def _legend(lines: Sequence[Line], width: float) -> list[str]:
    """A key of every line, in as many rows as the width takes."""
    rows: list[list[str]] = [[]]
    x = float(_LEFT)
    for line in lines:
        needed = 58 + 6.4 * len(line.name)
        if rows[-1] and x + needed > width:
            rows.append([])
            x = float(_LEFT)
        rows[-1].append(f'<path d="M{x:.0f} -4h26" {_stroke(line)}/>')
        rows[-1].append(_text(x + 32, 0, line.name, "start"))
        x += needed
    return ["\n".join(row) for row in rows]


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    return f'stroke="{line.colour}" stroke-width="{line.width:g}" stroke-linejoin="round"{dash}'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{PALE}">{escape(text)}</text>'
    )


def _step(top: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    rough = max(top, 1e-9) / _TARGET_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
