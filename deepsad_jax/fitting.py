"""The commands `deepsad fit` and `deepsad info`: from a file to a model."""

import dataclasses
import math
import os
import pathlib
import warnings
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import (
    calibrated,
    console,
    examples,
    facts,
    held_out,
    labels,
    training,
)
from deepsad_jax.data import delimited, folders, frames, parquet

PARQUET = (".parquet", ".pq")
_MOST = 5000  # rows of each kind whose scores are kept for the page
# A column of such a name may be meant to hold labels.
_LABELS = ("label", "labels", "y", "target", "class", "status", "anomaly", "outlier")


class Given(NamedTuple):
    """What a file says of the rows of a training.

    Attributes:
        rows: a frame, or images.
        semi_targets: +1, 0 or -1 for each.
    """

    rows: Any
    semi_targets: np.ndarray


def fit(source: str, options: Any) -> None:
    """Trains a model on a file, writes it, and says what it is.

    Args:
        source: the file, or a folder of images.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the file or a flag.
        OSError: if the model cannot be written.
    """
    given = read(source, options)
    counts = facts.Counts.of(given.semi_targets)
    from deepsad_jax import estimators

    detector = estimators.METHODS[options.method](
        random_state=options.seed,
        false_alarm_rate=options.false_alarm_rate,
        calibration=_calibration(options.calibration),
        scaling=options.scaling,
        **_stages(options),
    )
    stages = detector.options().stages()
    is_cross = options.calibration == "cross"
    bars = _many(stages, held_out.FOLDS + 1, "fit") if is_cross else None
    with bars or console.Stages(stages) as observer:
        detector.fit(given.rows, given.semi_targets, observe=observer)
    found = _evaluated(detector, given, counts, stages) if options.evaluate else {}
    made = detector.calibrated_
    command = {
        "source": pathlib.Path(source).name if source != "-" else "standard input",
        "label": options.label,
        "anomaly": options.anomaly,
        "normal": options.normal,
        "ignored": options.ignore,
        "decimal": options.decimal or ".",
        "counts": list(counts),
        "seed": options.seed,
        "evaluation": [],
        **found,
        "known": _fingerprints(made, given),
    }
    details = {**made.details, "command": command}
    details["history"] = _jsonable(detector.record_.history)
    detector.calibrated_ = made = dataclasses.replace(made, details=details)
    detector.save(options.model)
    from deepsad_jax.report import models

    page = models.write(options.model, given)
    lines = [
        *facts.described(made),
        facts.line("written to", f"{options.model}; see {page}"),
    ]
    print("\n".join(lines))


def info(folder: str, options: Any) -> None:
    """Says what a model is.

    Args:
        folder: where it is.
        options: none.

    Raises:
        ValueError: if it holds no whole model.
    """
    del options
    made = calibrated.load(folder)
    print("\n".join(facts.described(made)))
    versions = made.model.info["versions"]
    print(facts.line("made with", ", ".join(f"{n} {v}" for n, v in versions.items())))


def read(source: str, options: Any) -> Given:
    """Reads the rows of a training, and what is known of them.

    Args:
        source, options: as of `fit`.

    Raises:
        ValueError: if the file cannot be read, or has not the columns that are named.
    """
    if os.path.isdir(source):
        for name in ("label", "ignore"):
            if getattr(options, name):
                raise ValueError(f"--{name} names columns, but {source} is a folder")
        images = folders.read(source)
        return Given(images.x, images.semi_targets)
    if source.endswith(PARQUET):
        frame = parquet.read(source)
    else:
        frame = delimited.read(source, **notation(options))
    for name in options.ignore:
        if name not in frame.names:
            known = ", ".join(map(repr, frame.names[:20]))
            raise ValueError(f"--ignore={name}, but the columns are {known}")
    frame = frame.without(*options.ignore)
    if options.label is None:
        _warn_of_labels(frame)
        return Given(frame, np.zeros(frame.n_rows, np.int8))
    found = labels.split_labels(
        frame, options.label, normal=options.normal, anomaly=options.anomaly
    )
    warn_of_others(options.label, found.others)
    return Given(found.rest, found.semi_targets)


def notation(options: Any, decimal: str = ".") -> dict[str, Any]:
    """How a file is written, for `delimited.Reader`.

    Args:
        options: the flags.
        decimal: the mark that is used where none is given.
    """
    return {"separator": options.separator, "decimal": options.decimal or decimal}


def warn_of_others(label: str, others: dict[str, int]) -> None:
    """Warns of values of a column of labels that mean nothing.

    Args:
        label: name of the column.
        others: the values, and how often they occur.
    """
    if others:
        shown = ", ".join(f"{v} ({n} times)" for v, n in list(others.items())[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(
            f"column {label!r} also holds {shown}{more}, which count as unlabeled",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_labels(frame: frames.Frame) -> None:
    found = [name for name in frame.names if name.lower() in _LABELS]
    if found:
        warnings.warn(
            f"column {found[0]!r} is read as a feature; if it holds labels, say "
            f"--label={found[0]} and --anomaly= or --normal=, else --ignore it",
            UserWarning,
            stacklevel=3,
        )


def _calibration(written: str) -> float | str | None:
    if written == "none":
        return None
    return written if written == "cross" else float(written)


def _stages(options: Any) -> dict[str, training.Stage]:
    """The stages of the method with the number of epochs that is asked for."""
    from deepsad_jax import detectors

    if options.epochs is None:
        return {}
    fields = dataclasses.fields(detectors.METHODS[options.method])
    stages = {
        f.name: f.default for f in fields if isinstance(f.default, training.Stage)
    }
    if not stages:
        raise ValueError(f"--epochs is given, but {options.method} has none")
    return {
        name: dataclasses.replace(stage, epochs=options.epochs)
        for name, stage in stages.items()
    }


def _many(stages, runs, label) -> console.ManyRuns:
    steps = runs * sum(stages.values())
    return console.ManyRuns(steps, runs, label).starts(runs, stages, steps)


def _jsonable(history) -> dict[str, dict[str, list[float | None]]]:
    """The metrics of each epoch; what is not finite is null."""
    return {
        stage: {
            name: [v if math.isfinite(v) else None for v in np.asarray(series).tolist()]
            for name, series in values.items()
        }
        for stage, values in history.items()
    }


def _evaluated(detector, given, counts, stages) -> dict[str, Any]:
    """What the evaluation by other fits says, in sentences and in numbers, if there are
    labels for it."""
    if not counts.anomalies:
        return {"evaluation": ["not possible, since no anomaly is known"]}
    folds = min(held_out.FOLDS, counts.anomalies)
    try:
        with _many(stages, folds, "evaluate") as observer:
            found = detector.evaluate(given.rows, given.semi_targets, observe=observer)
    except (ValueError, training.TrainingError) as error:
        return {"evaluation": [f"not possible: {error}"]}
    said = {"evaluation": found.sentences(), "against": found.against}
    if not math.isnan(found.auroc):
        said["area"] = [found.auroc, found.low, found.high]
    if min(map(len, found.relative)):
        said["relative"] = [_few(values).tolist() for values in found.relative]
    return said


def _few(values: np.ndarray) -> np.ndarray:
    """As many as a page needs, drawn at random."""
    if len(values) <= _MOST:
        return values
    return np.random.default_rng(0).choice(values, _MOST, replace=False)


def _fingerprints(made: calibrated.Calibrated, given: Given) -> list[str]:
    labeled = np.flatnonzero(given.semi_targets)
    rows = held_out.chosen(given.rows, labeled)
    return fingerprints(made, rows) if len(labeled) else []


def fingerprints(made: calibrated.Calibrated, rows: Any) -> list[str]:
    """A text for each row, the same for rows that are equal for the model.

    Args:
        made: the model.
        rows: raw.
    """
    return [f"{one:016x}" for one in examples.fingerprints(made.model, rows).tolist()]
