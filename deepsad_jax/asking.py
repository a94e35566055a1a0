"""The commands `deepsad explain` and `deepsad suggest`: rows to look at, and why."""

import textwrap
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import (
    calibrated,
    console,
    explanations,
    fitting,
    new_rows,
    suggestions,
    writing,
)

# Rows that are kept of a file, of each kind that may be asked about.
_POOL = 1000


class Row(NamedTuple):
    """A row of a file that may be looked at.

    Attributes:
        number: its place in the file, from 1 on, below the names of the columns.
        record: what it was there, see `new_rows.Source.cells`.
        draw: a random number, by which some rows are kept that are nothing special.
        is_known: whether the training, or the file, tells what it is.
    """

    number: int
    record: Any
    x: np.ndarray
    fingerprint: str
    score: float
    p_value: float
    is_anomaly: bool
    draw: float
    is_known: bool


class Asked(NamedTuple):
    """Rows to look at, and why.

    Attributes:
        rows: the first ones first.
        cells: of each row, as they are in the file.
        why: the explanation of their scores.
        total: how many rows the file has.
    """

    rows: list[Row]
    cells: list[dict[str, str]]
    why: explanations.Explanation
    total: int


def explain(folder: str, source: str, options: Any) -> None:
    """Says why the most anomalous rows of a file are.

    Args:
        folder: where the model is.
        source: the file, or a folder of images.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the model, the file or a flag.
        OSError: if the output cannot be written.
    """
    made = _loaded(folder)
    with new_rows.opened(source, made, options, labeled=None) as given:
        rows, total = _pool(given, made, options.top, alone=True)
        rows.sort(key=lambda row: -row.score)
        asked = _asked(given, made, rows, total)
    _tell(asked, options.output, source, made, asks=False)


def suggest(folder: str, source: str, options: Any) -> None:
    """Picks the rows of a file that an expert should label next.

    Args, Raises: as of `explain`.
    """
    made = _loaded(folder)
    with new_rows.opened(source, made, options, labeled=None) as given:
        rows, total = _pool(given, made, max(_POOL, options.number))
        x = np.stack([row.x for row in rows])
        ready = explanations.prepared(made.model.preprocessing, x)
        chosen = suggestions.suggest(
            [row.score for row in rows],
            made.threshold,
            explanations.embedded(made.model, ready),
            number=options.number,
            strategy=options.strategy,
            labeled=[row.is_known for row in rows],
        )
        if not len(chosen):
            raise ValueError(f"all rows of {given.where} are labeled already")
        asked = _asked(given, made, [rows[i] for i in chosen], total)
    _tell(asked, options.output, source, made, asks=True)


def _loaded(folder):
    made = calibrated.load(folder)
    explanations.check(made)
    return made


def _pool(given, made, most, alone=False):
    """Rows of a file: the most anomalous and, unless these alone are wanted, those
    around the threshold and some at random."""
    known = set(made.details.get("command", {}).get("known", []))
    rows, total, rng = [], 0, np.random.default_rng(0)
    with console.bar(given.total, "score", "row") as bar:
        for block in given.blocks():
            found, draws = given.judged(block, None), rng.random(len(block.x))
            kept = _kept(found.score, draws, made.threshold, most, alone)
            texts = fitting.fingerprints(made, block.x[kept])
            rows += [
                Row(
                    total + i + 1,
                    given.record(block, i),
                    block.x[i],
                    text,
                    *(each[i].item() for each in found),
                    draws[i],
                    bool(block.semi_targets[i]) or text in known,
                )
                for i, text in zip(kept.tolist(), texts, strict=True)
            ]
            scores, draws = (np.array([row[i] for row in rows]) for i in (4, 7))
            kept = _kept(scores, draws, made.threshold, most, alone)
            rows, total = [rows[i] for i in kept], total + len(block.x)
            bar.update(len(block.x))
        bar.total = total
    given.warn()
    if not rows:
        raise ValueError(f"{given.where} has no rows")
    return rows, total


def _kept(scores, draws, threshold, most, alone):
    orders = (-scores,) if alone else (-scores, np.abs(scores - threshold), draws)
    parts = [np.argsort(order, kind="stable")[:most] for order in orders]
    return np.unique(np.concatenate(parts))


def _asked(given, made, rows, total):
    why = explanations.explain(made, np.stack([row.x for row in rows]), neighbors=2)
    return Asked(rows, [given.cells(row.record) for row in rows], why, total)


def _tell(asked, output, source, made, *, asks):
    """On the terminal, and as a page."""
    print(*_lines(asked, made), sep="\n")
    if output:
        from deepsad_jax.report import sheet

        text = sheet.page(asked, source, made, asks=asks)
        with writing.atomic(output, replace=False) as file:
            file.write(text.encode())
        print(f"written to {output}")


def _lines(asked, made):
    """A line for each row, and one for each of its reasons."""
    for i, (row, cells) in enumerate(zip(asked.rows, asked.cells, strict=True)):
        alarm = ", an alarm" if row.is_anomaly else ""
        p = "" if np.isnan(row.p_value) else f", p-value {row.p_value:.2g}"
        name = (
            f" ({cells['path']})" if "path" in cells and not asked.why.columns else ""
        )
        yield f"row {row.number}{name}: score {row.score:.4g}{p}{alarm}"
        for reason in asked.why.reasons(i) if asked.why.columns else ():
            share = f"{100 * reason.share:3.0f} %  "
            yield textwrap.fill(
                str(reason), 88, initial_indent=f"  {share}", subsequent_indent=" " * 9
            )
    way = asked.why.way
    yield f"{asked.total} rows; reasons by {way}, which add up to the score"
