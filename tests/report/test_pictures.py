"""Bars and grids: well-formed, within the frame, and saying what they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.report.bars import bars_svg
from pd.report.heatmap import versus_svg

amounts = st.just(0.0) | st.floats(1e-3, 1e6)


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=6))
def test_bars_stay_within_the_picture(values: list[tuple[float, float]]) -> None:
    names = [f"<{i}>" for i in range(len(values))]
    parts = [("a & b", "#111111", [a for a, _ in values]), ("c", "#222222", [b for _, b in values])]
    root = ElementTree.fromstring(bars_svg("a < b", names, parts, "s"))
    width = float(root.attrib["viewBox"].split()[2])
    for each in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(each.attrib.get("x", 0)) + float(each.attrib["width"]) <= width + 0.2


def test_parts_have_a_value_for_every_bar() -> None:
    with pytest.raises(ValueError, match="'a' has 1 values for 2 bars"):
        bars_svg("t", ["x", "y"], [("a", "#111111", [1.0])], "s")


def test_a_cell_says_how_far_ahead_and_who() -> None:
    values = [[(3.0, 1.5), (1.0, 2.0)], [(1.0, 0.0), (0.0, 0.0)]]
    columns, rows = ("TTFT", ["1 s", "2 s"]), ("TPOT", ["10 ms", "20 ms"])
    svg = versus_svg("who", "split", "mixed", columns, rows, values)
    root = ElementTree.fromstring(svg)
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("2.00x") == 2 and "only" in words and "none" in words
    assert svg.count('fill="#2563eb"') == 3, "two cells in full colour, and the legend"
    assert "1 s, 10 ms: split 3, mixed 1.5 requests/s" in svg
