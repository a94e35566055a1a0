"""Fits that hold rows out: to calibrate the scores, and to evaluate them.

Rows are raw, an array or a `frames.Frame`. What is fitted again and again, to parts of
the same rows, has the programs of the first fit, or is fitted as runs in one.
"""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np

from deepsad_jax import (
    calibrated,
    checks,
    decisions,
    evaluation,
    examples,
    methods,
    model,
    preprocessing,
    tables,
    training,
)
from deepsad_jax.data import frames

FOLDS = 5
_SHARE = 0.2  # held out for the thresholds of an evaluation, if nothing else is said


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all fits share.

    Attributes:
        method: its options; batches are at most as large as the training set.
        scaling: of numbers, see `tables.learn`; or a preprocessing as it is, for rows
            that are encoded.
        false_alarm_rate: in (0, 1).
        share: of the rows that are not known anomalies, to be held out; 0 for none.
        seed: of the rows that are held out, and of the fits.
    """

    method: methods.Method
    scaling: str | preprocessing.Preprocessing = "minmax"
    false_alarm_rate: float = 0.05
    share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        decisions.check_rate("false_alarm_rate", self.false_alarm_rate)

    def learn(self, rows: Any, kept: Any = slice(None)) -> preprocessing.Preprocessing:
        """The preprocessing that suits some of the rows, unless it is given."""
        if isinstance(self.scaling, str):
            among = rows if isinstance(rows, frames.Frame) else None
            some = chosen(rows, kept)
            return tables.learn(some, scaling=self.scaling, among=among)
        return self.scaling


Fitted = tuple[calibrated.Calibrated, methods.Record]


def split(
    settings: Settings,
    rows: Any,
    targets: np.ndarray,
    observe: methods.Observe | None = None,
    held: np.ndarray | None = None,
) -> Fitted:
    """One fit, calibrated by rows that it does not see; without a share, by none.

    Args:
        settings: what to fit.
        rows: raw, `[n, ...]`.
        targets: +1, 0 or -1 for each.
        observe: see `methods.Method.fit_many`.
        held: numbers of the rows that calibrate, ascending; drawn by default.

    Raises:
        ValueError: if rows are too few, or something does not fit the method.
    """
    if held is None:
        held = _calibration_rows(targets, settings.share, settings.seed)
    kept = np.setdiff1d(np.arange(len(targets)), held)
    if len(kept) < 2 or not (targets[kept] >= 0).any():
        raise ValueError(
            f"{len(targets)} rows, {int((targets >= 0).sum())} of them no known "
            "anomalies, are too few to train on some and hold out others; give more"
        )
    scaling, key = settings.learn(rows, kept), jax.random.key(settings.seed)
    runs = _runs(settings, [scaling], rows, targets, [held], [key])
    ((fitted, record),) = _fit(settings.method, runs, observe)
    way, seen = "split", held
    if not settings.share:
        way, seen = "none", np.flatnonzero(targets >= 0)
    scores = np.sort(_scores(fitted, chosen(rows, seen)))
    rate = float(settings.false_alarm_rate)
    some = examples.choose(fitted, rows, targets, settings.seed, held)
    made = calibrated.Calibrated(fitted, (scores,), way, rate, examples=some)
    return made, record


def cross(
    settings: Settings,
    rows: Any,
    targets: np.ndarray,
    observe: methods.Observe | None = None,
) -> Fitted:
    """Cross-conformal: one fit to all rows, and one without each of five folds.

    Args, Raises: as of `split`. The scaling is that of all rows, and known anomalies
    are in no fold.
    """
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(np.flatnonzero(targets >= 0))
    if len(order) < FOLDS:
        raise ValueError(
            f"{len(order)} rows that are not known anomalies are too few for {FOLDS} "
            "folds; give more"
        )
    folds = [np.sort(part) for part in np.array_split(order, FOLDS)]
    without = [np.zeros(0, int), *folds]
    scalings = [settings.learn(rows)] * len(without)
    found = _refits(settings, scalings, rows, targets, without, observe)
    (fitted, record), *others = found
    models = tuple(one for one, _ in others)
    scores = tuple(
        np.sort(_scores(one, chosen(rows, fold)))
        for one, fold in zip(models, folds, strict=True)
    )
    own = _scores(fitted, chosen(rows, np.sort(order))).astype(np.float64)
    first, center, third = np.quantile(own, (0.25, 0.5, 0.75)).tolist()
    details = {"center": center, "width": (third - first) or 1.0}
    rate = float(settings.false_alarm_rate)
    none = np.zeros(0, int)
    some = examples.choose(fitted, rows, targets, settings.seed, none)
    made = calibrated.Calibrated(fitted, scores, "cross", rate, models, details, some)
    return made, record


def evaluate(
    settings: Settings,
    rows: Any,
    targets: np.ndarray,
    observe: methods.Observe | None = None,
) -> evaluation.Evaluation:
    """Cross-validation on the labeled rows; see `estimators.Detector.evaluate`.

    Relative scores are multiples of the threshold of the row's fold; where some are
    below 0, of the way from the median of the held-out rows to it.

    Args, Raises: as of `split`.
    """
    share = settings.share or _SHARE
    held = _calibration_rows(targets, share, settings.seed)
    free = np.ones(len(targets), bool)
    free[held] = False
    anomalies = np.flatnonzero(targets == -1)
    kind = 1 if (targets[free] == 1).sum() >= 2 else 0
    others = np.flatnonzero((targets == kind) & free)
    if len(anomalies) < 2 or len(others) < 2:
        raise ValueError(
            f"there are {len(anomalies)} known anomalies and {len(others)} other rows "
            f"besides the {len(held)} held out for thresholds; an evaluation needs at "
            "least 2 of each"
        )
    count = min(FOLDS, len(anomalies), len(others))
    rng = np.random.default_rng(settings.seed)
    parts = [np.array_split(rng.permutation(r), count) for r in (anomalies, others)]
    folds = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
    without = [np.concatenate([held, fold]) for fold in folds]
    kept = (np.setdiff1d(np.arange(len(targets)), part) for part in without)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table as a whole is what a fit warns of
        scalings = [settings.learn(rows, part) for part in kept]
        fitted = _refits(settings, scalings, rows, targets, without, observe)
    found, relative, rate = [], [], settings.false_alarm_rate
    for (one, _), fold in zip(fitted, folds, strict=True):
        scores, others = (_scores(one, chosen(rows, part)) for part in (fold, held))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an infinite threshold: no alarms
            limit = decisions.threshold(others, false_alarm_rate=rate)
        is_anomaly = targets[fold] == -1
        found.append((scores, is_anomaly, scores > limit))
        relative.append(_relative(scores, is_anomaly, limit, others))
    against = "known normal" if kind else "unlabeled"
    normals, anomalous = (np.concatenate(each) for each in zip(*relative, strict=True))
    measured = evaluation.measured(found, against, rate)
    return dataclasses.replace(measured, relative=(normals, anomalous))


def _relative(scores, is_anomaly, limit, others):
    """Scores as multiples of the threshold; where some are below 0, as those of the way
    to it from the median. Nothing where there is no threshold."""
    base = 0.0 if min(scores.min(), others.min()) >= 0 else float(np.median(others))
    if not base < limit < np.inf:
        return np.zeros(0), np.zeros(0)
    relative = (scores.astype(np.float64) - base) / (limit - base)
    return relative[~is_anomaly], relative[is_anomaly]


def chosen(rows: Any, indices: np.ndarray) -> Any:
    """Some rows of an array or a frame."""
    return rows.rows(indices) if isinstance(rows, frames.Frame) else rows[indices]


def _calibration_rows(targets, share, seed) -> np.ndarray:
    """Rows to be held out, ascending: no known anomalies."""
    if not share:
        return np.zeros(0, int)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(targets >= 0))
    return np.sort(order[: max(1, round(share * len(order)))])


def _refits(settings, scalings, rows, targets, without, observe):
    """A fit without each of some sets of rows, each with a scaling."""
    key = jax.random.key(settings.seed)
    keys = [jax.random.fold_in(key, i) for i in range(len(without))]
    runs = _runs(settings, scalings, rows, targets, without, keys)
    return _fit(settings.method, runs, observe)


def _runs(settings, scalings, rows, targets, without, keys):
    """A run without each of some sets of rows, all of one shape: padded, and with the
    rows left out among its examples, where they are not looked at. So one program can
    train them all, if their columns make as many features."""
    encoded, runs = {}, []
    for scaling, left_out, key in zip(scalings, without, keys, strict=True):
        if scaling not in encoded:
            x = checks.rows(scaling.encoded(rows), "X")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # labels were warned of as a whole
                encoded[scaling] = training.training_set(x, targets)
        data = encoded[scaling]
        kept = np.setdiff1d(np.arange(len(targets)), left_out).astype(np.int32)
        one = data._replace(
            indices=kept,
            semi_targets=data.semi_targets[kept],
            size=np.int32(len(kept)),
        )
        one = training.padded(one, len(targets))
        runs.append(methods.Run(key, one, scaling, settings.seed))
    return runs


def _scores(fitted, rows):
    """Scores of rows of the same table, which are not scaled in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.score(fitted, rows)


def _fit(method, runs, observe):
    """Fits runs with batches that they fill, together where that is faster: not one
    after the other on one device, for which a program of any one serves all."""
    smallest = min(int(run.data.size) for run in runs)
    stages = {
        name: dataclasses.replace(stage, batch_size=min(stage.batch_size, smallest))
        for name in ("train", "pretrain")
        if isinstance(stage := getattr(method, name, None), training.Stage)
    }
    method = dataclasses.replace(method, **stages)
    for run in runs:
        method.check(run)
    shapes = {r.preprocessing.features(tuple(r.data.x.shape[1:])) for r in runs}
    plan = method.plan_for(runs) if len(runs) > 1 and len(shapes) == 1 else None
    if plan is None or (plan.devices == 1 and not plan.together):
        return [method.fit_many([run], observe=observe)[0] for run in runs]
    return method.fit_many(runs, plan=plan, observe=observe)
