"""Charts: round ticks, places by hand, and markup that cannot be broken."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from deepsad_jax.report import charts

Axis = charts.Axis


@pytest.mark.parametrize(
    ("axis", "ends", "expected"),
    [
        (Axis(""), (0.0, 1.0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis(""), (-0.013, 0.021), [-0.01, 0, 0.01, 0.02]),
        (Axis("", is_whole=True), (1, 3), [1, 2, 3]),
        (Axis("", is_log=True), (0.02, 300.0), [0.1, 1, 10, 100]),
        (Axis("", is_log=True), (0.05, 0.9), [0.05, 0.1, 0.2, 0.5]),
        (Axis("", is_log=True), (2.0, 5.0), [2, 3, 4, 5]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(axis, ends, expected):
    np.testing.assert_allclose(charts.ticks(axis, *ends), expected, atol=1e-12)


def test_values_stand_in_proportion():
    frame = charts.frame()
    left, right = frame["left"], frame["right"]
    places = charts.place_x(Axis(""), (2.0, 6.0), [2, 3, 6])
    np.testing.assert_allclose(places, [left, left + (right - left) / 4, right])
    places = charts.place_x(Axis("", is_log=True), (1.0, 100.0), [1, 10, 100, 0])
    np.testing.assert_allclose(places, [left, (left + right) / 2, right, np.nan])


def test_texts_are_escaped_and_gaps_leave_no_line():
    name = '"><script>alert(1)</script>&'
    lines = [charts.Series(name, [1, 2, 3, 4], [1.0, np.nan, 2.0, 3.0], "own", True)]
    found = charts.chart(name, lines, Axis(name), Axis(name), "reading")
    root = ElementTree.fromstring(str(found.svg))  # well-formed
    assert root.attrib["aria-label"] == f"{name}. reading"
    texts = [element.text for element in root.iter() if element.tag == "text"]
    assert texts.count(name) == 2 and found.legend == [("own", name)]
    (line,) = (e for e in root.iter() if e.get("class") == "line own")
    assert line.get("d").count("M") == 2 and line.get("d").count("L") == 1
    empty = charts.chart(
        "", [charts.Series("", [1], [np.nan], "own")], *2 * [Axis("")], ""
    )
    assert 'd=""' in str(empty.svg)
