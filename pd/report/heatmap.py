"""A grid of coloured cells as SVG: which of two things is ahead, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pd.report.chart import INK, PALE

_WIDTH, _CELL = 470, 46
_LEFT, _TOP = 92, 84
_FIRST, _SECOND, _NEITHER = (37, 99, 235), (217, 119, 6), (226, 232, 240)
_STRONGEST = 1.0  # a factor of 2 or more has the full colour


def versus_svg(
    title: str,
    first: str,
    second: str,
    columns: tuple[str, Sequence[str]],
    rows: tuple[str, Sequence[str]],
    values: Sequence[Sequence[tuple[float, float]]],
) -> str:
    """`values[row][column]` is what the two reach, 0 where they reach nothing. A cell has the
    colour of the greater and says how many times the other it is."""
    (x_label, x_names), (y_label, y_names) = columns, rows
    width = min(_CELL * 2, (_WIDTH - _LEFT - 14) / max(1, len(x_names)))
    height = _TOP + _CELL * len(y_names) + 34
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="14" y="22" font-weight="bold" fill="{INK}">{escape(title)}</text>',
        _text(_LEFT + width * len(x_names) / 2, 50, x_label, "middle"),
        _text(14, _TOP - 8, y_label, "start"),
    ]
    for i, name in enumerate(x_names):
        drawn.append(_text(_LEFT + width * (i + 0.5), _TOP - 8, name, "middle"))
    for j, name in enumerate(y_names):
        y = _TOP + _CELL * j
        drawn.append(_text(_LEFT - 8, y + _CELL / 2 + 4, name, "end"))
        for i, (one, other) in enumerate(values[j]):
            colour, strength, word = _cell(one, other)
            said = f"{x_names[i]}, {name}: {first} {one:.3g}, {second} {other:.3g} requests/s"
            drawn.append(
                f'<rect x="{_LEFT + width * i + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" '
                f'height="{_CELL - 2}" rx="3" fill="{colour}"><title>{escape(said)}</title></rect>'
            )
            ink = "#f8fafc" if strength > 0.45 else "#0b1220"
            drawn.append(
                f'<text x="{_LEFT + width * (i + 0.5):.1f}" y="{y + _CELL / 2 + 4:.1f}" '
                f'text-anchor="middle" fill="{ink}">{word}</text>'
            )
    y = height - 12
    legend = (
        (14, f"{first} ahead", _FIRST), (170, f"{second} ahead", _SECOND),
        (326, "neither", _NEITHER),
    )  # fmt: skip
    for x, words, shade in legend:
        drawn.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{_hex(shade)}"/>')
        drawn.append(_text(x + 17, y, words, "start"))
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _cell(one: float, other: float) -> tuple[str, float, str]:
    """(colour, how strong it is from 0 to 1, what is written there)."""
    if one <= 0 and other <= 0:
        return _hex(_NEITHER), 0.0, "none"
    ahead = _FIRST if one >= other else _SECOND
    low, high = sorted((one, other))
    if low <= 0:
        return _hex(ahead), 1.0, "only"
    strength = min(1.0, math.log2(high / low) / _STRONGEST)
    mixed = tuple(round(n + (a - n) * strength) for a, n in zip(ahead, _NEITHER))
    return _hex(mixed), strength, f"{high / low:.2f}x"


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{each:02x}" for each in colour)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{PALE}">{escape(text)}</text>'
    )
