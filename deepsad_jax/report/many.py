"""The page of many runs: means, average ranks, and every run with a link."""

import json
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import evaluation
from deepsad_jax.report import page

_MOST = 4000  # runs of a page
_FEW = 5  # runs of a setting


class Cell(NamedTuple):
    """Of a table.

    Attributes:
        text: what is seen.
        value: by which a column is sorted, the text by default.
        link: a relative address, or empty.
        svg: a picture instead of the text.
    """

    text: str
    value: float | None = None
    link: str = ""
    svg: Any = ""


class Table(NamedTuple):
    """One that can be sorted and filtered.

    Attributes:
        title: its name.
        columns: their names.
        rows: of cells.
        note: a sentence below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return any(row[column].value is not None for row in self.rows)


class Many(NamedTuple):
    """What is known of many runs.

    Attributes:
        title: of the page.
        sentences: what was done.
        cautions: what a reader should doubt.
        tables: in their order.
        details: pairs of a name and a value.
    """

    title: str
    sentences: Sequence[str]
    cautions: Sequence[str]
    tables: Sequence[Table]
    details: Sequence[tuple[str, str]]


def written(many: Many) -> str:
    """The page."""
    return page.render("many.html", title=many.title, many=many)


def runs(
    base: pathlib.Path, folder: pathlib.Path, results: dict[pathlib.Path, dict]
) -> Table:
    """The table of all runs.

    Args:
        base: folder of the page, from which links lead.
        folder: that the runs are in.
        results: content of results.json by folder of a run.
    """
    columns = ["run", "method", "seed", "AUROC, %", "average precision, %", "seconds"]
    rows = []
    for place, found in list(results.items())[:_MOST]:
        name = place.relative_to(folder).as_posix()
        has_page = (place / "report.html").exists()
        address = os.path.relpath(place.absolute(), base.absolute())
        link = urllib.parse.quote(
            pathlib.PurePath(address, "report.html" if has_page else "").as_posix()
        )
        seconds = [found.get(n) or 0.0 for n in ("ae_train_seconds", "train_seconds")]
        rows.append(
            [
                Cell(name, link=link),
                Cell(str(found.get("method", ""))),
                number(found.get("seed"), "d"),
                number(found.get("auroc"), ".2f", 100),
                number(found.get("average_precision"), ".2f", 100),
                number(sum(seconds), ".1f"),
            ]
        )
    note = "" if len(results) <= _MOST else f"{len(results)} runs, of which {_MOST} are"
    return Table("Runs", columns, rows, note and f"{note} shown here.")


def number(value: Any, form: str, factor: float = 1) -> Cell:
    """A number, or nothing."""
    if value is None:
        return Cell("")
    return Cell(f"{factor * value:{form}}", float(factor * value))


def spread(mean: float | None, std: float | None, form: str = ".1f") -> Cell:
    """A mean with its standard deviation, in percent."""
    if mean is None:
        return Cell("")
    return Cell(f"{mean:{form}}" + ("" if std is None else f" ± {std:{form}}"), mean)


def bars(means: Sequence[float | None], stds: Sequence[float | None]) -> list[Cell]:
    """A picture of each mean and its deviation, if there is one, all on one scale."""
    known = [(m, s or 0) for m, s in zip(means, stds, strict=True) if m is not None]
    low = min((m - s for m, s in known), default=0.0)
    high = max((m + s for m, s in known), default=1.0)
    return [
        Cell("") if m is None else Cell("", svg=_bar(m, s or 0, low, high))
        for m, s in zip(means, stds, strict=True)
    ]


def _bar(middle, half, low, high):
    import markupsafe

    def place(value):
        return 6 + 108 * (value - low) / ((high - low) or 1.0)

    svg = (
        f'<svg class="bar" viewBox="0 0 120 16" aria-hidden="true">'
        f'<path class="grid" d="M6 8H114"/><path class="line own" d="'
        f'M{place(middle - half):.1f} 8H{place(middle + half):.1f}"/>'
        f'<circle cx="{place(middle):.1f}" cy="8" r="4"/></svg>'
    )
    return markupsafe.Markup(svg)


def ranked(
    title: str,
    ranks: dict[str, float],
    difference: float,
    more: dict[str, dict[str, float]] | None = None,
) -> Table:
    """Average ranks, and which of them are told apart.

    Args:
        title: what is ranked.
        ranks: average rank of each method, 1 is the best.
        difference: of two ranks, from which on it is significant.
        more: further columns, the numbers of methods by name.
    """
    order, more = sorted(ranks, key=lambda name: ranks[name]), more or {}
    letters, last = dict.fromkeys(order, ""), -1
    groups = iter("abcdefghijklmnopqrstuvwxyz")
    for i, name in enumerate(order):
        same = [n for n in order[i:] if ranks[n] - ranks[name] < difference]
        if i + len(same) - 1 > last:  # a group that is not within one before
            last, letter = i + len(same) - 1, next(groups, "?")
            letters |= {n: letters[n] + letter for n in same}
    pictures = bars([ranks[n] for n in order], [None] * len(order))
    rows = [
        [
            *(Cell(name), number(ranks[name], ".2f"), Cell(letters[name]), picture),
            *(number(values.get(name), ".3g") for values in more.values()),
        ]
        for name, picture in zip(order, pictures, strict=True)
    ]
    columns = ["method", "average rank", "group", "left is better", *more]
    note = (
        "Rank 1 is the best. Methods that share a letter are not told apart: their "
        f"ranks differ by less than the critical difference, {difference:.2f} "
        "(Nemenyi's test at 5 %)."
    )
    return Table(title, columns, rows, note)


def ranks_of(title: str, values: Iterable[tuple[str, str, float]]) -> list[Table]:
    """Ranks over blocks in which all methods have a value; none if there are too few.

    Args:
        title: what is ranked.
        values: method, block (such as a data set) and mean.
    """
    by_block: dict[str, dict[str, float]] = {}
    for method, block, value in values:
        by_block.setdefault(block, {})[method] = value
    methods = list(dict.fromkeys(m for block in by_block.values() for m in block))
    whole = [block for block in by_block.values() if len(block) == len(methods)]
    if len(methods) < 2 or len(whole) < 2:
        return []
    found = {m: [block[m] for block in whole] for m in methods}
    ranks, difference = evaluation.average_ranks(found)
    return [ranked(f"{title}, over {len(whole)} settings", ranks, difference)]


def cautions(
    results: dict[pathlib.Path, dict], unfinished: int, fewest: int
) -> list[str]:
    """What a reader should doubt.

    Args:
        results: of all runs that are finished.
        unfinished: how many are not.
        fewest: runs of the setting that has the fewest.
    """
    said = []
    if unfinished:
        said.append(f"{unfinished} runs are not finished and not counted here.")
    if fewest < _FEW:
        said.append(
            f"Some means are of {fewest} run{'s' * (fewest != 1)} only: their "
            "deviations are rough, and small differences chance."
        )
    below = sum((one.get("auroc") or 1.0) < 0.5 for one in results.values())
    if below:
        said.append(f"{below} of {len(results)} runs have an AUROC below one half.")
    return said


def finished(folder: pathlib.Path) -> tuple[dict[pathlib.Path, dict], int]:
    """The results of all runs below a folder, and how many are not finished.

    Raises:
        ValueError: if one is damaged.
    """
    results, unfinished = {}, 0
    for parent, folders, files in os.walk(folder):
        place = pathlib.Path(parent)
        folders[:] = sorted(f for f in folders if f not in ("model", "checkpoints"))
        if place == folder or "config.json" not in files:
            continue
        if "results.json" not in files:
            unfinished += 1
            continue
        path = place / "results.json"
        try:
            results[place] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return results, unfinished


def described(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of a config or the like, without those that hold nothing."""
    pairs = [(name, plain(value)) for name, value in content.items()]
    return [(name, text) for name, text in pairs if text not in ("", "none")]


def plain(value: Any) -> str:
    """A value of JSON as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}" if np.isfinite(value) else "none"
    return "none" if value is None or value == "" else str(value)
