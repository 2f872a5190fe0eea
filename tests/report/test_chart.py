"""Charts and pages: well-formed whatever is drawn, everything inside the frame."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.report.chart import Line, Panel, chart_svg, write_chart
from pd.report.page import Page

values = st.just(0.0) | st.floats(1e-6, 1e7)
points = st.lists(st.tuples(values, values), min_size=1, max_size=12).map(sorted)


@given(st.lists(points, min_size=1, max_size=4), st.booleans(), st.integers(0, 3))
def test_any_points_are_drawn_within_the_picture(
    series: list[list[tuple[float, float]]], log_x: bool, columns: int
) -> None:
    panels = [
        Panel(f"<{i}>", "x & y", "y", lines=[Line(f"line {i}", each, "#000")], log_x=log_x)
        for i, each in enumerate(series)
    ]
    svg = chart_svg("a < b", panels, columns)
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert len(series) * 470 >= width >= 470 and height >= 330
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg):
        assert 56 <= float(x) <= 448 and 64 <= float(y) <= 278
    assert "nan" not in svg and "inf" not in svg


@pytest.mark.parametrize(
    ("values", "log_x", "labels"),
    [
        ([0.0, 10.0], False, ["0", "2", "4", "6", "8", "10"]),
        ([1.2, 3.9], False, ["1", "1.5", "2", "2.5", "3", "3.5", "4"]),
        ([30.0, 400.0], True, ["20", "50", "100", "200", "500"]),
        ([1.0, 100_000.0], True, ["1", "10", "100", "1000", "10000", "100000"]),
        ([5.0], True, ["5", "10"]),
        ([5.0], False, ["5", "6"]),
    ],
)
def test_ticks_are_round_and_enclose_the_points(
    values: list[float], log_x: bool, labels: list[str]
) -> None:
    line = Line("l", [(value, 1.0) for value in values], "#000")
    svg = chart_svg("t", [Panel("p", "x", "y", lines=[line], log_x=log_x)])
    assert re.findall(r'y="295.0" text-anchor="middle"[^>]*>([^<]+)<', svg) == labels


def test_a_chart_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line has a point"):
        write_chart(tmp_path / "x.svg", "t", [Panel("p", "x", "y", lines=[Line("l", [], "#000")])])


def test_a_page_escapes_all_text() -> None:
    page = Page("<title>")
    page.heading("<h>")
    page.paragraph("<p>", note=True)
    page.table(["<a>", "b"], [["<script>", "1"]])
    page.drawing("<svg></svg>")
    assert "<script>" not in page.html and "&lt;script&gt;" in page.html
    assert "<svg></svg>" in page.html
