"""What a model of the command is, in words: for the terminal, and for its page."""

import textwrap
import warnings
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import calibrated, columns, tables


class Counts(NamedTuple):
    """How many rows there are of each kind."""

    rows: int
    normal: int
    anomalies: int

    @classmethod
    def of(cls, semi_targets: np.ndarray) -> "Counts":
        """Those of labels."""
        ones = [int((semi_targets == kind).sum()) for kind in (1, -1)]
        return cls(len(semi_targets), *ones)

    def __str__(self) -> str:
        rest = self.rows - self.normal - self.anomalies
        return (
            f"{self.rows}: {self.normal} known normal, {self.anomalies} known "
            f"anomalies, {rest} unlabeled"
        )


def described(made: calibrated.Calibrated) -> list[str]:
    """Lines for the terminal on what a model is.

    Args:
        made: the model.
    """
    (head, _), *rest = pairs(made)
    return [head, *(line(name, text) for name, text in rest)]


def pairs(made: calibrated.Calibrated) -> list[tuple[str, str]]:
    """What a model is: its head, then names and texts, which go on where a name is
    empty.

    Args:
        made: the model.
    """
    model, command = made.model, made.details.get("command", {})
    head = model.info["method"]
    if command:
        head += f" on {command['source']}, seed {command['seed']}"
    found = [(head, "")]
    if command:
        found.append(("rows", str(Counts(*command["counts"]))))
        if command["label"]:
            meant = [f"{n}={','.join(command[n])}" for n in ("anomaly", "normal")]
            found.append(("label", f"{command['label']}: {'; '.join(meant)}"))
    found += _of_columns(model, command.get("ignored", []))
    found += _of_threshold(made)
    for i, sentence in enumerate(command.get("evaluation", [])):
        found.append(("" if i else "evaluation", sentence))
    return found


def _of_columns(model: Any, ignored: list[str]) -> list[tuple[str, str]]:
    scaling = model.preprocessing
    if not isinstance(scaling, columns.Columns):
        return [("examples", "x".join(map(str, model.info["shape"])))]
    kinds = list(scaling.kinds.values())
    shown = [f"{kinds.count(kind)} of {kind}" for kind in dict.fromkeys(kinds)]
    found = [("columns", f"{', '.join(shown)}; {len(scaling.feature_names)} features")]
    found += [("", sentence) for sentence in tables.describe(scaling)]
    found += [("", f"column {name!r} is ignored") for name in ignored]
    return found


def _of_threshold(made: calibrated.Calibrated) -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was fitted
        limit = made.threshold
    rate, count = f"{100 * made.false_alarm_rate:g} %", sum(map(len, made.scores))
    if made.way == "none":
        meaning = f"above it are {rate} of the training rows; of others it says nothing"
        return [("threshold", f"{limit:.6g}"), ("", meaning)]
    held = f"{count} rows held out for it" + " in turn" * (made.way == "cross")
    if np.isinf(limit):
        return [("threshold", f"none for a false alarm rate of {rate}: {held}")]
    meaning = (
        f"a score above it is an alarm: at most {rate} of new normal rows, on average, "
        "provided that they are like those"
    )
    return [("threshold", f"{limit:.6g}, by {held}"), ("", meaning)]


def line(name: str, text: Any) -> str:
    """A name and a text, of as many lines of the terminal as it needs."""
    return textwrap.fill(
        str(text), 88, initial_indent=f"  {name:14s} ", subsequent_indent=" " * 17
    )
