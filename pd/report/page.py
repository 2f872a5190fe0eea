"""A report as one HTML file: headings, paragraphs, tables and drawings, nothing to load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --pale: #475569; --line: #e2e8f0;
        --paper: #ffffff; --raised: #f8fafc; }
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: var(--ink); background: var(--paper);
       margin: 2rem auto; max-width: 1180px; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
div.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
div.grid svg { width: 100%; max-width: 560px; }
pre { background: var(--raised); border: 1px solid var(--line); padding: .7rem; overflow-x: auto;
      font-size: 13px; }
p.note, td.note { color: var(--pale); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --pale: #94a3b8; --line: #334155; --paper: #0b1220; --raised: #111a2e; }
  svg [fill="#ffffff"] { fill: #0b1220; } svg [fill="#0f172a"] { fill: #e2e8f0; }
  svg [fill="#475569"] { fill: #a3b1c6; } svg [stroke="#e2e8f0"] { stroke: #263348; }
  svg [stroke="#475569"] { stroke: #64748b; }
}
"""


class Page:
    """Parts are added in order; `html` is the file. All text is escaped."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        kind = ' class="note"' if note else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column is text, the others figures."""
        head = "".join(f"<th>{escape(each)}</th>" for each in headings)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._parts.append(f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>')

    def drawing(self, svg: str) -> None:
        """An SVG made by `pd.report.chart`, as it is."""
        self._parts.append(f"<div>{svg}</div>")

    def grid(self, drawings: Sequence[str]) -> None:
        """Several, side by side as far as there is room."""
        self._parts.append('<div class="grid">' + "\n".join(drawings) + "</div>")

    def code(self, text: str) -> None:
        """A file or commands."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    @property
    def html(self) -> str:
        title = escape(self._title)
        return "\n".join(
            (
                '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title><style>{_STYLE}</style></head><body>",
                f"<h1>{title}</h1>",
                *self._parts,
                "</body></html>\n",
            )
        )
