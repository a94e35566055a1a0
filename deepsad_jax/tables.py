"""What suits the columns of a table: `learn(X)` finds it, `describe` says it.

scaling = tables.learn(frame)            # of training rows, labels left out
data = training.training_set(scaling.encode(frame), semi_targets)
model, record = deep_sad.fit(key, data, preprocessing=scaling)
model.score(fitted, new_frame)
"""

import math
import re
from typing import Any

import numpy as np

from deepsad_jax import checks, columns, fields, preprocessing
from deepsad_jax.data import frames

SCALINGS = ("minmax", "robust")
_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ].*)?$"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp][Mm])?$"
)
# What nobody has named: pandas' index in a CSV or Parquet file.
_UNNAMED = re.compile(r"(Unnamed: .*|__index_level_\d+__)?")
_MOST_LEVELS = 4096  # the most frequent texts that are told apart


def learn(
    X: Any, *, scaling: str = "minmax", max_levels: int = 16, among: Any = None
) -> preprocessing.Preprocessing:
    """The preprocessing that suits some training rows.

    Args:
        X: a table of any kind that `frames.read` takes, or an array of examples of any
            rank. An array of finite numbers gets `preprocessing.auto`, unless the
            scaling is robust.
        scaling: of numbers: "minmax" to [0, 1], or "robust" by median and quartiles, in
            which far values tell less.
        max_levels: up to so many different texts have a feature each; of more, their
            frequency is the feature.
        among: all rows of the table, of which X are some: whether texts are all yes or
            no, and whether a column without a name numbers the rows, is seen by them.

    Raises:
        ValueError: if X is none of these, or no column of it carries anything.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is {scaling!r}; it must be minmax or robust")
    if isinstance(max_levels, bool) or not isinstance(max_levels, (int, np.integer)):
        raise ValueError(f"max_levels is {max_levels!r}; it must be an integer")
    if max_levels < 1:
        raise ValueError(f"max_levels is {max_levels}; it must be at least 1")
    if not frames.is_table(X):
        x = checks.rows(X, "X")
        if x.ndim > 2 and scaling == "robust":
            raise ValueError("scaling is robust, which is for tables [n, columns]")
        is_plain = x.dtype.kind in "iu" or bool(np.isfinite(x).all())
        if x.ndim > 2 or (is_plain and scaling == "minmax"):
            return preprocessing.auto(x, "X")
        X = x
    frame = frames.read(X)
    if frame.n_rows < 2:
        raise ValueError(f"X has {frame.n_rows} rows; it must have at least 2")
    everything = frame if among is None else frames.read(among)
    found, seen = [], {}
    for name, values in frame.columns.items():
        column = _column(name, values, everything.columns[name], scaling, max_levels)
        if not isinstance(column, fields.Dropped):
            content = column.kind, (column.encode(values) + 0.0).tobytes()
            first = seen.setdefault((*content, getattr(column, "levels", ())), name)
            if first != name:
                column = fields.Dropped(name, reason=f"is the same as {first!r}")
        found.append(column)
    try:
        return columns.Columns(tuple(found), frame.named)
    except ValueError as error:
        raise ValueError(f"X: {error}") from error


def describe(scaling: preprocessing.Preprocessing) -> list[str]:
    """Sentences on what is dropped, filled and encoded."""
    if not isinstance(scaling, columns.Columns):
        return []
    said = []
    for column in scaling.columns:
        name = f"column {column.name!r}"
        if isinstance(column, fields.Dropped):
            said.append(f"{name} is dropped: it {column.reason}")
            continue
        if isinstance(column, fields.Categorical):
            how = (
                "the frequency of" if column.frequencies else "one feature for each of"
            )
            said.append(f"{name} becomes {how} its {len(column.levels)} texts")
        if column.missing:
            said.append(f"{name} has missing values, which a feature tells")
    return said


def _column(name, values, among, scaling, max_levels) -> fields.Column:
    kind = frames.kind_of(values)
    missing = frames.is_missing(values)
    has_missing = bool(missing.any())
    if kind == frames.MISSING:
        return fields.Dropped(name, reason="has no values")
    if kind == frames.NUMBER:
        if _UNNAMED.fullmatch(name) and _are_numbers_of_rows(among):
            return fields.Dropped(name, reason="has no name and counts the rows")
        return _numeric(name, values, missing, scaling)
    if kind == frames.TEXT:
        if np.isnan(frames.words(among[~frames.is_missing(among)])).any():
            return _categorical(name, values[~missing], has_missing, max_levels)
        kind, values = frames.BOOLEAN, frames.words(values)
    known = values[~missing].astype(np.float64)
    if known.min() == known.max() and not has_missing:
        return fields.Dropped(name, reason="has one value only")
    return fields.Boolean(name, has_missing, float(known.mean() >= 0.5))


def _are_numbers_of_rows(values) -> bool:
    """Whether they are whole, and no two are equal; some rows may be left out."""
    is_whole = np.isfinite(values).all() and (values == np.floor(values)).all()
    return bool(is_whole) and len(np.unique(values)) == len(values)


def _numeric(name, values, missing, scaling) -> fields.Column:
    known = values[~missing].astype(np.float64)
    if not np.isfinite(known).all():
        row = int(np.flatnonzero(~missing)[np.argmin(np.isfinite(known))])
        raise ValueError(
            f"X: column {name!r} contains {values[row]} (row {row}), infinity; remove "
            "or impute such values"
        )
    low, high = float(known.min()), float(known.max())
    if values[~missing].min() == values[~missing].max() and not missing.any():
        return fields.Dropped(name, reason="has one value only")
    _check_range(name, values, low, high)
    lower, fill, upper = np.quantile(known, (0.05, 0.5, 0.95)).tolist()
    span = (high - low) or 1.0
    ranges = {
        "low": low,
        "high": high,
        "fill": fill,
        "lower": (lower - low) / span,
        "upper": (upper - low) / span,
    }
    if scaling == "robust":
        first, third = np.quantile(known, (0.25, 0.75)).tolist()
        ranges["center"] = fill
        ranges["width"] = (third - first) or (upper - lower) or span
    return fields.Numeric(name, bool(missing.any()), **ranges)


def _check_range(name, values, low, high) -> None:
    """Raises ValueError for a range that is too wide, or too narrow for the digits that
    integers have."""
    if not math.isfinite(high - low):
        raise ValueError(
            f"X: column {name!r} has values from {low} to {high}, too far apart for "
            "float64; rescale it"
        )
    if values.dtype.kind not in "iu" or max(abs(low), abs(high)) <= 2**53:
        return
    if np.spacing(max(abs(low), abs(high))) > (high - low) * 2.0**-24:
        raise ValueError(
            f"X: column {name!r} has integers from {values.min()} to {values.max()}, "
            "too close to each other for float64; subtract an offset"
        )


def _categorical(name, values, has_missing, max_levels) -> fields.Column:
    levels, counts = np.unique(values.astype(str), return_counts=True)
    if all(_DATE.match(level) for level in levels):
        raise ValueError(
            f"X: column {name!r} holds dates or times, such as {str(levels[0])!r}; "
            f"leave it out, or {frames.ADVICE}"
        )
    if len(levels) == 1 and not has_missing:
        return fields.Dropped(name, reason="has one value only")
    if len(levels) <= max_levels:
        return fields.Categorical(name, has_missing, tuple(levels.tolist()))
    if len(values) < 2 * len(levels):
        return fields.Dropped(name, reason="has another text in nearly every row")
    kept = np.sort(np.argsort(-counts, kind="stable")[:_MOST_LEVELS])
    frequencies = counts[kept] / counts.max()
    return fields.Categorical(
        name, has_missing, tuple(levels[kept].tolist()), tuple(frequencies.tolist())
    )
