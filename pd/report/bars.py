"""Stacked horizontal bars as SVG: what something consists of, one bar for each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pd.report.chart import GRID, INK, PALE

_WIDTH, _ROW, _TOP = 470, 34, 40
_LEFT, _RIGHT = 112, 14


def bars_svg(
    title: str,
    names: Sequence[str],
    parts: Sequence[tuple[str, str, Sequence[float]]],
    unit: str,
) -> str:
    """`parts` are (name, colour, a value for each of `names`), none of them negative. ValueError
    where a part has not as many values as there are bars."""
    for name, _, values in parts:
        if len(values) != len(names):
            raise ValueError(f"'{name}' has {len(values)} values for {len(names)} bars")
    totals = [sum(values[i] for _, _, values in parts) for i in range(len(names))]
    scale = (_WIDTH - _LEFT - _RIGHT - 60) / (max(totals, default=0.0) or 1.0)
    rows = -(-len(parts) // 3)
    height = _TOP + _ROW * len(names) + 20 * rows + 16
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="14" y="22" font-weight="bold" fill="{INK}">{escape(title)}</text>',
    ]
    for i, name in enumerate(names):
        y, x = _TOP + _ROW * i, float(_LEFT)
        drawn.append(
            f'<text x="{_LEFT - 8}" y="{y + 17}" text-anchor="end" fill="{PALE}">'
            f"{escape(name)}</text>"
        )
        for part, colour, values in parts:
            width = values[i] * scale
            if width > 0:
                label = f"{name}, {part}: {values[i]:.3g} {unit}"
                drawn.append(
                    f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 12}" '
                    f'fill="{colour}"><title>{escape(label)}</title></rect>'
                )
            x += width
        drawn.append(
            f'<text x="{x + 6:.1f}" y="{y + 17}" fill="{PALE}">{totals[i]:.3g} '
            f"{escape(unit)}</text>"
        )
    bottom = _TOP + _ROW * len(names)
    drawn.append(f'<path d="M{_LEFT} {_TOP - 4}V{bottom}" stroke="{GRID}"/>')
    for place, (part, colour, _) in enumerate(parts):
        x, y = 14 + place % 3 * 150, bottom + 16 + place // 3 * 20
        drawn.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 16}" y="{y}" fill="{PALE}">{escape(part)}</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"
