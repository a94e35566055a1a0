"""Differences and tests against SciPy on the raw numbers, and the written tables."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from experiments import comparison, figures, published

RNG = np.random.default_rng(0)


def cell(runs, figure=None, **names):
    names = {"data": "cardio", "method": "deep_sad", "setting": {"ratio": 0.1}} | names
    return comparison.Cell(runs=runs, figure=figure, **names)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_cell_is_compared_as_by_welch_on_the_runs(shift):
    ours, theirs = RNG.normal(90, 1, 10), RNG.normal(90 + shift, 3, 90)
    known = published.Figure(theirs.mean(), theirs.std(ddof=1), 90)
    (row,) = comparison.compare([cell(ours, known)])
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    np.testing.assert_allclose(row["p_value"], expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(row["difference"], ours.mean() - theirs.mean())
    assert row["within"] == (shift == 0)


def test_without_spread_or_figure_nothing_is_claimed():
    known = published.Figure(90.0, None, 3)
    rows = comparison.compare([cell([91.0]), cell([91.0, 92.0], known)])
    assert [row["within"] for row in rows] == [None, None]
    assert rows[0]["difference"] is None and rows[1]["difference"] == 1.5


def test_signed_ranks_are_those_of_scipy():
    values = {name: RNG.normal(i, 1, 20) for i, name in enumerate("ae")}
    assert comparison.signed_ranks([1.0, 2.0], [1.0, 2.0]) == 1.0
    found = comparison.signed_ranks(values["a"], values["e"])
    np.testing.assert_allclose(found, stats.wilcoxon(values["a"], values["e"]).pvalue)


def test_tables_are_written_in_four_ways(tmp_path):
    known = published.Figure(99.0, 0.1, 90)
    rows = comparison.compare(
        [
            cell([90.0, 91.0], known, method="a_b"),
            cell([90.0, 91.0], method="c"),
            cell([80.0, 82.0], method="c", setting={"ratio": 0.2}),
        ]
    )
    comparison.write(tmp_path, rows, {"command": "x"})
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["command"] == "x" and content["cells"] == rows
    lines = list(csv.DictReader(io.StringIO(comparison.as_csv(rows))))
    assert [line["ratio"] for line in lines] == ["0.1", "0.1", "0.2"]
    assert float(lines[0]["published_mean"]) == 99 and lines[1]["p_value"] == ""
    markdown = (tmp_path / "comparison.md").read_text().splitlines()
    assert markdown[0] == "|  | a_b | c |"
    assert (
        markdown[2] == "| cardio, ratio 0.1 | 90.5 ± 0.7 / 99.0 ± 0.1* | 90.5 ± 0.7 |"
    )
    assert markdown[3] == "| cardio, ratio 0.2 |  | 81.0 ± 1.4 |"
    latex = (tmp_path / "comparison.tex").read_text()
    assert r"a\_b" in latex and r"90.5 $\pm$ 0.7 / 99.0" in latex


def test_pictures_hold_what_they_compare(tmp_path):
    rows = comparison.compare(
        cell(RNG.normal(90, 1, 3), published.Figure(95, 1, 3), setting={"ratio": ratio})
        for ratio in (0.0, 0.1)
    )
    drawing = figures.curves(rows, "ratio", "ratio of labeled anomalies")
    (axis,) = drawing.axes
    ours, theirs = (line.get_ydata() for line in axis.lines[:2])
    np.testing.assert_allclose(ours, [row["mean"] for row in rows])
    np.testing.assert_allclose(theirs, [95, 95])
    drawing = figures.average_ranks({"a": 1.2, "b": 1.9, "c": 3.0}, 1.0, "title")
    texts = [text.get_text() for text in drawing.axes[0].texts]
    assert texts == ["a  1.20", "b  1.90", "c  3.00"]
    bars = [line for line in drawing.axes[0].lines if line.get_linewidth() == 3]
    assert len(bars) == 1  # a and b are not told apart
    figures.save(tmp_path / "ranks.png", drawing)
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
