"""Ours beside published figures: differences, tests, and tables to print.

Welch's t-test tells for each cell whether two means differ by more than their spreads
explain; Wilcoxon's signed ranks compare over many data sets.
"""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import writing
from experiments import published, workdir

LEVEL = 0.05  # of significance


class Cell(NamedTuple):
    """What is compared.

    Attributes:
        data, method: names.
        setting: what else tells cells apart, such as {"ratio": 0.01}.
        runs: ours, percent, one for each run.
        figure: the published mean, deviation and number of runs, if there is one.
        note: a sentence on the cell.
    """

    data: str
    method: str
    setting: dict[str, Any]
    runs: Sequence[float]
    figure: published.Figure | None = None
    note: str = ""


def compare(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for each cell: ours, published, difference, and whether it is explained.

    `within` is whether Welch's t-test, from means, standard deviations (of samples) and
    numbers of runs, keeps that both means are equal at 5 %; None where either side has
    no spread.
    """
    return [_compared(cell) for cell in cells]


def _compared(cell: Cell) -> dict[str, Any]:
    from scipy import stats

    runs = np.asarray(cell.runs, float)
    std = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    row = {
        "data": cell.data,
        "method": cell.method,
        "setting": cell.setting,
        "mean": float(np.mean(runs)),
        "std": std,
        "runs": len(runs),
        **dict.fromkeys(("published_mean", "published_std", "published_runs")),
        **dict.fromkeys(("difference", "p_value", "within")),
        "note": cell.note,
    }
    if cell.figure is None:
        return row
    mean, spread, count = cell.figure
    row |= {"published_mean": mean, "published_std": spread, "published_runs": count}
    row["difference"] = row["mean"] - mean
    if std is not None and spread is not None and (std > 0 or spread > 0):
        test = stats.ttest_ind_from_stats(
            *(row["mean"], std, len(runs)), *(mean, spread, count), equal_var=False
        )
        row["p_value"] = float(test.pvalue)
        row["within"] = bool(test.pvalue >= LEVEL)
    return row


def signed_ranks(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value of Wilcoxon's test over data sets; 1 where all are equal."""
    from scipy import stats

    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    if not np.any(difference):
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)


def write(folder: pathlib.Path, rows: list[dict], about: dict[str, Any]) -> None:
    """Writes comparison.json, .csv, .md and .tex.

    Args:
        folder: where.
        rows: of `compare`.
        about: what was run: command, seconds, machine; for the JSON.
    """
    workdir.write_json(folder / "comparison.json", {**about, "cells": rows})
    texts = {"csv": as_csv(rows), "md": as_markdown(rows), "tex": as_latex(rows)}
    for suffix, text in texts.items():
        with writing.atomic(folder / f"comparison.{suffix}") as file:
            file.write(text.encode())


def as_csv(rows: list[dict]) -> str:
    """One line a cell."""
    text = io.StringIO()
    names = [name for name in rows[0] if name != "setting"]
    settings = list(rows[0]["setting"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names[:2], *settings, *names[2:]])
    for row in rows:
        values = ["" if row[n] is None else row[n] for n in names]
        writer.writerow([*values[:2], *row["setting"].values(), *values[2:]])
    return text.getvalue()


def as_markdown(rows: list[dict]) -> str:
    """Methods as columns, data and settings as lines.

    A cell is ours, the published figure behind a slash, and a star where they differ by
    more than the spreads explain.
    """
    heads, lines = _laid_out(rows, _plain)
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, marks, *lines])


def as_latex(rows: list[dict]) -> str:
    """The same as a tabular of LaTeX."""
    heads, lines = _laid_out(rows, _tex)
    body = "".join(f"{' & '.join(map(_escaped, line))} \\\\\n" for line in lines)
    return (
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}\n\\hline\n"
        f"{' & '.join(map(_escaped, heads))} \\\\\n\\hline\n{body}\\hline\n"
        "\\end{tabular}\n"
    )


def _laid_out(rows, written) -> tuple[list[str], list[list[str]]]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        place = row["data"], json.dumps(row["setting"])
        found.setdefault(place, {})[row["method"]] = written(row)
    lines = []
    for (data, setting), cells in found.items():
        values = ", ".join(f"{n} {v}" for n, v in json.loads(setting).items())
        name = f"{data}, {values}" if values else data
        lines.append([name, *(cells.get(method, "") for method in methods)])
    return ["", *methods], lines


def _plain(row, sign="±") -> str:
    text = f"{row['mean']:.1f}"
    text += "" if row["std"] is None else f" {sign} {row['std']:.1f}"
    if row["published_mean"] is None:
        return text
    text += f" / {row['published_mean']:.1f}"
    spread = row["published_std"]
    text += "" if spread is None else f" {sign} {spread:.1f}"
    return text + ("*" if row["within"] is False else "")


def _tex(row) -> str:
    return _plain(row, r"$\pm$")


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
