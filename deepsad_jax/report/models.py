"""The page of a model that `deepsad fit` has made, from its folder and its rows."""

import os
import pathlib
import warnings
from typing import Any

import numpy as np

from deepsad_jax import calibrated, explanations, facts, held_out, metrics
from deepsad_jax import model as models
from deepsad_jax.data import frames
from deepsad_jax.detectors import committee
from deepsad_jax.report import cautions, examples, fits, folders, many

_MOST = 20_000  # rows of which the groups are measured
_WIDEST = 200  # columns whose part in scores is told
_KINDS = {
    1: ("known normal", "normal"),
    0: ("unlabeled", "unlabeled"),
    -1: ("known anomaly", "anomaly"),
}


def write(folder: str | os.PathLike, given: Any) -> pathlib.Path:
    """Writes the page of a new model into its folder; where it is.

    Args:
        folder: where the model is.
        given: `rows` and `semi_targets` of its training, as a `fitting.Given` has them.

    Raises:
        OSError: if it cannot be written.
    """
    path = pathlib.Path(folder, folders.NAME)
    folders.put(path, fits.written(known(folder, given)))
    return path


def known(folder: str | os.PathLike, given: Any = None) -> fits.Fit:
    """What is known of a model, and of its rows if they are given.

    Raises:
        ValueError: if the folder holds no whole model with its calibration.
    """
    made = calibrated.load(folder)
    command = made.details.get("command", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was fitted
        limit = made.threshold if np.isfinite(made.threshold) else None
    scores, labels, kinds = _scores(made, command)
    is_relative = "relative" in command
    counts = facts.Counts(*command["counts"]) if command else None
    area = command.get("area")
    return fits.Fit(
        title=facts.pairs(made)[0][0],
        method=made.model.info["method"],
        sentences=_sentences(made, counts, given),
        cautions=_doubts(made, counts, labels, area),
        scores=scores,
        labels=labels,
        kinds=kinds,
        history=_history(made.details),
        area=area and tuple(area),
        figures=_threshold(made, limit),
        threshold=1.0 if is_relative else limit,
        groups=[] if given is None else _groups(made, given),
        unit=", 1 is the threshold" * is_relative,
        examples={} if given is None else _examples(made, given, limit),
        details=_details(made),
    )


def _sentences(made, counts, given) -> list[str]:
    command, said = made.details.get("command", {}), []
    method = made.model.info["method"]
    if counts is None:
        said.append(f"A model of {method}; its folder does not tell on what data.")
    else:
        said.append(
            f"{method} was trained on the rows of {command['source']}, {counts}."
        )
    if "relative" in command:
        said.append(
            "The scores below are of labeled rows, by other fits that had not seen "
            "them, each on the scale of its own threshold."
        )
    elif made.way == "none":
        said.append("The scores below are of rows that it was trained on.")
    else:
        said.append("The scores below are of rows that it was not trained on.")
    if counts is not None and "area" not in command:
        said += [f"An evaluation was {e}." for e in command["evaluation"]]
    if given is None:
        said.append("Training rows are not kept with a model, so that none are shown.")
    else:
        said.append("The examples are unlabeled rows of the training, counted from 1.")
    return said


def _threshold(made, limit) -> list[tuple[str, str, str]]:
    if limit is None:
        return []
    rate = f"{100 * made.false_alarm_rate:g} %"
    meaning = (
        f"a score above it is an alarm: at most {rate} of new normal rows, on average"
    )
    if made.way == "none":
        meaning = f"above it are {rate} of the training rows"
    return [("Threshold", f"{limit:.4g}", meaning)]


def _details(made) -> list[tuple[str, str]]:
    found: dict[str, Any] = {}
    name = ""
    for own, text in facts.pairs(made)[1:]:
        name = own or name
        found[name] = f"{found[name]}; {text}" if name in found else text
    return many.described({**found, "made with": dict(made.model.info["versions"])})


def _scores(made, command):
    """Scores of rows that were held out: of labeled ones, where there are any."""
    if "relative" not in command:
        kind = "held-out rows" if made.way != "none" else "training rows"
        found = np.concatenate(made.scores).astype(np.float64)
        return found, np.zeros(len(found), int), (kind, "known anomalies")
    parts = [np.array(part) for part in command["relative"]]
    labels = np.repeat([0, 1], [len(part) for part in parts])
    return (
        np.concatenate(parts),
        labels,
        (f"{command['against']} rows", "known anomalies"),
    )


def _doubts(made, counts, labels, area) -> list[str]:
    known = None if counts is None else counts.anomalies
    said = cautions.of_numbers(made.model.info["method"], known, labels)
    return [*said, *(cautions.of_figures(area[0], area[1], None) if area else ())]


def _history(details) -> dict[str, dict[str, np.ndarray]]:
    stages = details.get("history", {})
    return {
        stage: {name: np.array(v, float) for name, v in values.items()}
        for stage, values in stages.items()
    }


def _groups(made, given) -> list[tuple[str, int, float, float]]:
    """Section 3 of the paper, of the rows of the training, once it is over."""
    network, *_ = committee.networks_of(made.model)
    center = network.variables.get("center")
    if center is None:
        return []
    targets = given.semi_targets
    places = np.arange(len(targets))
    if len(places) > _MOST:
        places = np.sort(np.random.default_rng(0).choice(places, _MOST, replace=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are rows of the training
        z = models.embed(made.model, held_out.chosen(given.rows, places))
    found = metrics.Moments.of(z, targets[places], center).compute()
    said = []
    for group, kind in metrics.GROUPS.items():
        if count := int((targets[places] == kind).sum()):
            values = (found[f"{name}_{group}"] for name in ("distance", "isotropic"))
            distance, bound = map(float, values)
            said.append((fits.GROUPS[group], count, distance, bound / 2))
    return said


def _examples(made, given, limit) -> dict[str, list[examples.Shown]]:
    """Unlabeled rows, which are those that nobody has looked at, if there are any."""
    free = np.flatnonzero(given.semi_targets == 0)
    free = free if len(free) else np.arange(len(given.semi_targets))
    rows = held_out.chosen(given.rows, free)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are rows of the training
        scores = models.score(made.model, rows)
    # The threshold of the other way is not on the scale of the model.
    groups = examples.picked(scores, limit if made.way != "cross" else None)
    places = np.unique(np.concatenate([*groups.values()]))
    reasons = _reasons(made, held_out.chosen(rows, places), places)
    kinds = [_KINDS[int(given.semi_targets[row])] for row in free]
    kept = _kept(rows, places)
    return examples.shown(groups, kept, scores, kinds, free + 1, reasons)


def _reasons(made, rows, places) -> dict[int, list[examples.Reason]] | None:
    """Why rows of a table have their scores, by place; of wide ones that takes long."""
    width = made.model.info["shape"]
    if made.examples is None or len(width) > 1 or width[0] > _WIDEST:
        return None
    found = explanations.explain(made, rows)
    return {
        int(place): [
            (one.column, one.value, one.usual, one.share) for one in found.reasons(i)
        ]
        for i, place in enumerate(places)
    }


def _kept(rows, places) -> examples.Kept:
    if not isinstance(rows, frames.Frame):
        return examples.kept(rows, places)
    few = rows.rows(places)
    x = np.empty((len(places), len(few.names)), object)
    for i, values in enumerate(few.columns.values()):
        gaps = frames.is_missing(values)
        x[:, i] = [np.nan if gap else v for v, gap in zip(values, gaps, strict=True)]
    return examples.Kept(places, x, list(few.names))
