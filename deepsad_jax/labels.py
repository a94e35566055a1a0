"""Labels of experts: +1 known normal, 0 unlabeled, -1 known anomaly.

Other libraries write 1 for an anomaly; what could be meant so is refused or warned of.
"""

import collections
import math
import numbers
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import checks
from deepsad_jax.data import frames

MEANINGS = {1: "known normal", 0: "unlabeled", -1: "known anomaly"}


def check_semi_targets(
    name: str, values: Any, expected: int, *, warn: bool = True
) -> np.ndarray:
    """Labels of which the rest of the library can be sure.

    Args:
        name: what they are called, for messages.
        values: +1, 0 or -1 for each example, of any real type; `[n]`, `[n, 1]` or
            `[1, n]`.
        expected: n.
        warn: whether to warn of 1 without any -1, which elsewhere means anomalies.

    Returns:
        `[n]` int8.

    Raises:
        ValueError: if they are anything else, booleans included.
    """
    labels = integers(name, values, expected, MEANINGS)
    if warn:
        warn_of_ones(name, (labels == 1).any(), (labels == -1).any())
    return labels.astype(np.int8)


def warn_of_ones(name: str, has_ones: bool, has_anomalies: bool) -> None:
    """Warns of 1 without any -1, which elsewhere means anomalies."""
    if has_ones and not has_anomalies:
        warnings.warn(
            f"{name} has 1 and no -1: here, 1 means known normal and -1 known anomaly, "
            "while other libraries write 1 for an anomaly; if that is meant, give "
            f"-np.asarray({name}) instead",
            UserWarning,
            stacklevel=4,
        )


def semi_targets(labels: Any, *, normal: Any = (), anomaly: Any = ()) -> np.ndarray:
    """Turns labels of any kind into +1, 0 and -1.

        semi_targets(["ok", "", "broken"], normal="ok", anomaly="broken")  # [1, 0, -1]
        semi_targets(y, anomaly=1)      # where 1 is an anomaly and the rest is unknown

    Args:
        labels: numbers, texts or booleans, `[n]`.
        normal: the value, or the values, of the examples that are known to be normal.
        anomaly: those of the known anomalies. What is neither is unlabeled.

    Returns:
        `[n]` int8.

    Raises:
        ValueError: if a value means both, or does not occur.
    """
    labels = np.asarray(labels, None if isinstance(labels, np.ndarray) else object)
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; it must be [n]")
    result = np.zeros(len(labels), np.int8)
    for name, chosen, meaning in (("normal", normal, 1), ("anomaly", anomaly, -1)):
        for value in _values(chosen):
            same = (_is_same(label, value) for label in labels.tolist())
            rows = np.fromiter(same, bool, len(labels))
            if not rows.any():
                raise ValueError(f"{name} is {value!r}, which no label is")
            if (result[rows] == -meaning).any():
                raise ValueError(f"{value!r} is both normal and anomaly; choose one")
            result[rows] = meaning
    return result


class Split(NamedTuple):
    """A table without its column of labels.

    Attributes:
        semi_targets: `[n]` int8.
        rest: the other columns.
        others: values of the column that mean nothing, and how often they occur; such
            rows are unlabeled, like those of empty cells.
    """

    semi_targets: np.ndarray
    rest: frames.Frame
    others: dict[str, int]


def split_labels(
    table: Any,
    label: str,
    *,
    normal: Any = (),
    anomaly: Any = (),
    must_occur: bool = True,
) -> Split:
    """Takes what an expert knows of the rows from a column of a table.

    Numbers and texts are equal that are written alike: "1", 1 and 1.0.

    Args:
        table: of any kind that `frames.read` takes.
        label: name of the column.
        normal: the value, or the values, of the rows that are known to be normal.
        anomaly: those of the known anomalies.
        must_occur: whether each of these must be there.

    Raises:
        ValueError: if there is no such column, or a value means both or does not occur.
    """
    frame = frames.read(table, "the table")
    if label not in frame.columns:
        known = ", ".join(map(repr, frame.names[:20]))
        raise ValueError(f"label is {label!r}, but the columns are {known}")
    meanings: dict[str, int] = {}
    for name, chosen, meaning in (("normal", normal, 1), ("anomaly", anomaly, -1)):
        for value in _values(chosen):
            text = written(value)
            if text is None:
                raise ValueError(
                    f"{name} is {value!r}, but empty cells are always unlabeled"
                )
            if meanings.setdefault(text, meaning) != meaning:
                raise ValueError(f"{value!r} is both normal and anomaly; choose one")
    values, inverse = np.unique(
        np.array([written(v) or "" for v in frame[label].tolist()], object),
        return_inverse=True,
    )
    found = collections.Counter(values[inverse].tolist())
    found.pop("", None)
    for text, meaning in meanings.items():
        if must_occur and text not in found:
            name = "normal" if meaning == 1 else "anomaly"
            known = ", ".join(f"{v} ({n} times)" for v, n in found.most_common(10))
            raise ValueError(
                f"{name} is {text!r}, which does not occur in column {label!r}; its "
                f"values are {known or 'all empty'}"
            )
    codes = np.array([meanings.get(value, 0) for value in values], np.int8)
    others = {v: n for v, n in found.most_common() if v not in meanings}
    return Split(codes[inverse], frame.without(label), others)


def written(value: Any) -> str | None:
    """A label as a text: "1" for 1, 1.0 and "1", "true" for True, "true" and "yes";
    None if empty."""
    if value is None or type(value).__name__ == "NAType":
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in frames.WORDS:  # what files hold as one is one here
            return "true" if frames.WORDS[value.lower()] else "false"
        try:
            number = float(value) if "_" not in value else math.nan
        except ValueError:
            return value or None
        if not math.isfinite(number):
            return value
        value = number
    if isinstance(value, numbers.Real):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return repr(float(value))
        return str(int(value)) if value == int(value) else repr(float(value))
    return str(value)


def _values(chosen: Any) -> list[Any]:
    is_one = isinstance(chosen, (str, bytes)) or not isinstance(chosen, Iterable)
    return [chosen] if is_one else list(chosen)


def _is_same(label: Any, value: Any) -> bool:
    text = written(label)
    return text is not None and (label == value or text == written(value))


def integers(
    name: str, values: Any, expected: int, meanings: dict[int, str] | None = None
) -> np.ndarray:
    """Whole numbers, one for each example, as `[n]` int64.

    Args:
        name: what they are called, for messages.
        values: whole numbers of any real type, `[n]`, `[n, 1]` or `[1, n]`.
        expected: n.
        meanings: the numbers that are allowed, and what they mean; all by default.

    Raises:
        ValueError: if they are anything else. Booleans are refused where meanings are
            given that they could turn around.
    """
    labels = checks.unmasked(name, values)
    if labels.size != expected or max(labels.shape, default=1) != expected:
        shape = f" of shape {labels.shape}" if labels.ndim > 1 else ""
        raise ValueError(
            f"{name} has {labels.size} entries{shape} for {expected} examples"
        )
    labels = labels.reshape(-1)
    allowed = "integers, one for each example"
    if meanings:
        allowed = ", ".join(f"{value} {meaning}" for value, meaning in meanings.items())
    if labels.dtype.kind == "b" and meanings == MEANINGS:
        raise ValueError(
            f"{name} holds booleans, which may mean either; give {allowed}"
        )
    if labels.dtype.kind not in "iufb":
        raise ValueError(
            f"{name} must hold integers, one for each example, but has dtype "
            f"{labels.dtype}"
        )
    with np.errstate(invalid="ignore"):  # NaN, and what int64 does not hold
        whole = labels.astype(np.int64)
    strange = labels[whole != labels]
    if np.isnan(strange).any():
        raise ValueError(
            f"{name} must hold integers, one for each example, but has nan (of row "
            f"{int(np.argmax(np.isnan(labels)))}; {int(np.isnan(labels).sum())} in all)"
        )
    if len(strange):
        raise ValueError(
            f"{name} must hold integers, one for each example, but has {strange[0]}"
        )
    strange = np.setdiff1d(whole, list(meanings)) if meanings else []
    if len(strange):
        raise ValueError(f"{name} contains {strange[0]}; allowed are {allowed}")
    return whole
