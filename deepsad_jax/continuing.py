"""The command `deepsad fit --from`: a model learns what an expert has said since."""

import collections
import csv
import dataclasses
import os
import warnings
from typing import Any

import numpy as np

from deepsad_jax import (
    calibrated,
    console,
    detectors,
    estimators,
    examples,
    facts,
    fitting,
    held_out,
    new_rows,
)

ANSWERS = {"normal": 1, "anomaly": -1, "unknown": 0}
_HEADER = ["row", "fingerprint", "label"]
# Of a model that no command has made.
_NOTHING = {"label": None, "anomaly": [], "normal": [], "ignored": [], "seed": 0}
_SHARE = 3  # one in so many epochs of a whole training is enough


def fit(source: str, options: Any) -> None:
    """Goes on from a model with more labels, writes it, and says what it is.

    It learns the rows of the file, and the known rows that the model has kept. The
    preprocessing is that of the model; the threshold is found anew, by the rows that
    the model has not learned, either.

    Args:
        source: the file of which `deepsad suggest` has picked rows.
        options: the flags of the command, see `cli`.

    Raises:
        ValueError: for what is wrong with the model, a file or a flag.
        OSError: if the model cannot be written.
    """
    folder = options["from"].value
    detector = estimators.load(folder)
    made = detector.calibrated_
    _check(made, folder)
    x, targets = _rows(source, made, options)
    prints = examples.fingerprints(made.model, x)
    answers = _answers(options.labels, prints, source)
    numbers = np.array(sorted(answers), int)
    said = np.array([answers[row] for row in numbers.tolist()], np.int8)
    _warn_of_changes(targets[numbers], said)
    targets[numbers] = np.where(said, said, targets[numbers])
    known = made.examples.semi_targets != 0
    known &= ~np.isin(examples.fingerprints(made.model, made.examples.x), prints)
    rows = np.concatenate([x, made.examples.x[known]])
    targets = np.concatenate([targets, made.examples.semi_targets[known]])
    fitted, record = _fit(detector, rows, targets, len(x), prints, options.epochs)
    command = _NOTHING | made.details.get("command", {})
    asked = [f"{one:016x}" for one in prints[numbers].tolist()]
    names = (os.path.basename(os.path.normpath(path)) for path in (source, folder))
    command |= {
        "source": ", going on from ".join(names),
        "counts": list(facts.Counts.of(targets)),
        "evaluation": ["not made: the model it went on from has seen the labels"],
        "known": sorted({*command.get("known", []), *asked}),
    }
    detector.calibrated_, detector.record_ = fitted, record
    details = {**fitted.details, "command": command}
    detector.calibrated_ = fitted = dataclasses.replace(fitted, details=details)
    detector.save(options.model)
    from deepsad_jax.report import models

    page = models.write(options.model, fitting.Given(x, targets[: len(x)]))
    written = facts.line("written to", f"{options.model}; see {page}")
    print("\n".join([*facts.described(fitted), written]))


def _check(made: calibrated.Calibrated, folder: str) -> None:
    method = made.model.info["method"]
    learn = [name for name, kind in detectors.METHODS.items() if kind.uses_labels]
    if method not in learn:
        raise ValueError(
            f"{folder} is a model of {method}, which learns nothing from labels; "
            f"choose one of {', '.join(learn)}"
        )
    if made.examples is None:
        raise ValueError(
            f"{folder} was made by a version that kept no rows, so that nothing can go "
            "on from it; fit it again"
        )
    if made.way == "cross":
        raise ValueError(
            f"{folder} is calibrated by all of its rows in turn, which has to be done "
            "without what it learned of them; fit again, with --calibration=cross"
        )


def _rows(source, made, options) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a file as the model takes them, and what the file tells of them."""
    with new_rows.opened(source, made, options, labeled=None) as given:
        blocks = list(given.blocks())
    given.warn()
    if not blocks:
        raise ValueError(f"{given.where} has no rows")
    x, targets = zip(*((b.x, b.semi_targets) for b in blocks), strict=True)
    return np.concatenate(x), np.concatenate(targets)


def _answers(path: str, prints: np.ndarray, source: str) -> dict[int, int]:
    """What an expert has said, by row number from 0 on."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines or lines[0] != _HEADER:
        raise ValueError(
            f"{path} begins with {','.join(lines[0]) if lines else 'nothing'!r}; it "
            f"must be what the page of `deepsad suggest` saves, {','.join(_HEADER)}"
        )
    found = {}
    for place, line in enumerate(lines[1:], 2):
        if len(line) != 3 or line[2] not in ANSWERS or not line[0].isdecimal():
            raise ValueError(
                f"{path}, line {place} is {','.join(line)!r}; it must have a row, its "
                f"fingerprint and one of {', '.join(ANSWERS)}"
            )
        row = int(line[0]) - 1
        if not 0 <= row < len(prints) or f"{prints[row]:016x}" != line[1]:
            raise ValueError(
                f"{path}, line {place}: row {line[0]} of {source} is not the one that "
                "was labeled; give the file and the model of `deepsad suggest`"
            )
        found[row] = ANSWERS[line[2]]
    if not any(found.values()):
        raise ValueError(f"{path} has no row that is normal or an anomaly")
    return found


def _warn_of_changes(before, said):
    count = int(((before * said) == -1).sum())
    if count:
        warnings.warn(
            f"{count} rows are said to be the opposite of what the file says; what the "
            "expert has said counts",
            UserWarning,
            stacklevel=3,
        )


def _fit(detector, rows, targets, own, prints, epochs):
    """The fit, calibrated by rows that the model before has not learned.

    Args:
        own: so many of the rows are those of the file; the others are known to the
            model, and are learned.
    """
    made = detector.calibrated_
    method = detector.options()
    if hasattr(method, "initial"):
        method = dataclasses.replace(method, initial=made.model)
        for name in method.stages():
            stage = getattr(method, name)
            stage = dataclasses.replace(
                stage, epochs=epochs or max(1, stage.epochs // _SHARE)
            )
            method = dataclasses.replace(method, **{name: stage})
    elif epochs is not None:
        raise ValueError(f"--epochs is given, but {method.method} has none")
    seed = int(detector.random_state or 0)
    share = 0.0 if made.way == "none" else float(detector.calibration)
    settings = held_out.Settings(
        method, made.model.preprocessing, made.false_alarm_rate, share, seed
    )
    held = _same(prints[:own], made.examples.held)
    if held is None:  # another file than that of the training
        held = np.random.default_rng(seed).permutation(own)[: round(share * own)]
    held = np.sort(held[targets[held] >= 0])
    with console.Stages(method.stages()) as observer:
        return held_out.split(settings, rows, targets, observer, held)


def _same(prints, held) -> np.ndarray | None:
    """Numbers of rows that are those that calibrated before, each as often; None if
    the file has not got them all: some equal rows may be in any file."""
    missing, found = collections.Counter(held.tolist()), []
    for row, one in enumerate(prints.tolist()):
        if missing[one] > 0:
            missing[one] -= 1
            found.append(row)
    return np.array(found) if found and not any(missing.values()) else None
