"""A model with what turns its scores into decisions; one folder holds both.

    detector = load("pump")                      # what an estimator has saved
    score, p_value, is_anomaly = detector.judge(new_rows)

`model.load` reads the model of the same folder. Nothing here needs scikit-learn.
"""

import dataclasses
import functools
import os
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import checkpoints, decisions
from deepsad_jax import examples as kept_examples
from deepsad_jax import model as models

WAYS = ("split", "cross", "none")


class Judgement(NamedTuple):
    """What is said of some rows.

    Attributes:
        score: higher = more anomalous, `[n]`.
        p_value: conformal, `[n]`; NaN where there are no held-out rows.
        is_anomaly: whether the score is above the threshold, `[n]` bool.
    """

    score: np.ndarray
    p_value: np.ndarray
    is_anomaly: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A model, and scores of rows that it has not seen.

    Attributes:
        model: trained on all rows but those held out.
        scores: one array of calibration scores, ascending: of held-out rows for the way
            "split", of the training rows for "none"; for "cross" one array for each
            fold, of its rows by the model of the others.
        way: split, cross or none.
        false_alarm_rate: that is asked for, in (0, 1).
        folds: the models of "cross".
        details: what else travels along, as JSON.
        examples: some rows of the training; None in models of version 0.2.
    """

    model: models.Model
    scores: tuple[np.ndarray, ...]
    way: str = "split"
    false_alarm_rate: float = 0.05
    folds: tuple[models.Model, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    examples: kept_examples.Examples | None = None

    def __post_init__(self):
        decisions.check_rate("false_alarm_rate", self.false_alarm_rate)
        if self.way not in WAYS:
            raise ValueError(f"way is {self.way!r}; it must be one of {WAYS}")
        if len(self.scores) != max(1, len(self.folds)):
            raise ValueError("there must be calibration scores for each model")

    @functools.cached_property
    def threshold(self) -> float:
        """Scores above it are alarms: those with p-values up to the rate."""
        return self.threshold_for(self.false_alarm_rate)

    def threshold_for(self, false_alarm_rate: float) -> float:
        """The threshold of another rate; infinite, with a warning, where it is too
        small for so few calibration rows."""
        if self.way == "none":
            return decisions.threshold(self.scores[0], contamination=false_alarm_rate)
        everything = np.concatenate(self.scores)
        found = decisions.threshold(everything, false_alarm_rate=false_alarm_rate)
        if self.way == "split" or np.isinf(found):
            return found
        # Scores of this way are 1 - p, but for less than a step of p.
        size = len(everything)
        return 1 - decisions.steps(size, false_alarm_rate) / (size + 1)

    def score(self, x: Any) -> np.ndarray:
        """Scores of raw rows, `[n]`, higher = more anomalous.

        Those of the model; for the way "cross" one minus the p-value, where the model's
        score decides between equal ones.
        """
        return self._scored(x)[0]

    def p_values(self, x: Any) -> np.ndarray:
        """Conformal p-values of raw rows, `[n]`; see `decisions`.

        Raises:
            ValueError: if no rows were held out.
        """
        if self.way == "none":
            raise ValueError(
                "there are no p-values, since no rows were held out; fit with a "
                "calibration, such as calibration=0.2"
            )
        return self._scored(x)[1]

    def judge(self, x: Any, false_alarm_rate: float | None = None) -> Judgement:
        """All that is said of raw rows, which are scored once.

        Args:
            x: raw rows, as `model.score` takes them.
            false_alarm_rate: another than that of the fit.
        """
        rate = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        is_own = rate == self.false_alarm_rate
        limit = self.threshold if is_own else self.threshold_for(rate)
        score, p_value = self._scored(x)
        return Judgement(score, p_value, score > limit)

    def _scored(self, x):
        own = models.score(self.model, x)
        if self.way == "none":
            return own, np.full(len(own), np.nan)
        if self.way == "split":
            return own, decisions.p_values(own, self.scores[0])
        by_fold = [models.score(fold, x) for fold in self.folds]
        p = decisions.cross_conformal(by_fold, self.scores)
        u = fraction(own, self.details)
        return 1 - p + u / (1 + sum(map(len, self.scores))), p

    def described(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Arrays and JSON, of which `rebuilt` makes it again."""
        leaves, meta = models.described(self.model)
        mine = {
            "way": self.way,
            "false_alarm_rate": self.false_alarm_rate,
            "details": self.details,
            "scores": [[len(leaves), len(leaves) + len(self.scores)]],
            "folds": [],
        }
        leaves = [*leaves, *self.scores]
        for fold in self.folds:
            more, content = models.described(fold)
            mine["folds"].append([len(leaves), content])
            leaves += more
        if self.examples is not None:
            mine["examples"] = len(leaves)
            leaves += self.examples
        return leaves, {**meta, "calibration": mine}

    def __reduce__(self):
        return rebuilt, self.described()

    def __deepcopy__(self, memo):
        return self  # nothing of it changes


def fraction(own: Any, details: dict[str, Any], xp: Any = np) -> Any:
    """The model's own scores for the way "cross", in (0, 1) and in the same order.

    Args:
        own: the scores, `[n]`.
        details: `center` and `width` of such scores.
        xp: NumPy, or jax.numpy where they are traced.
    """
    u = (own.astype(float) - details["center"]) / details["width"]
    return xp.clip(0.5 + 0.5 * u / (1 + xp.abs(u)), 1e-6, 1 - 1e-6)


def save(detector: Calibrated, folder: str | os.PathLike) -> None:
    """Writes it to a new folder, which `model.load` reads, too.

    Raises:
        FileExistsError: if the folder exists.
        OSError: if it cannot be written.
    """
    leaves, meta = detector.described()
    checkpoints.write(folder, leaves, {"format": models.FORMAT, **meta})


def load(
    folder: str | os.PathLike,
    *,
    encoder: Any = None,
    decoder: Any = None,
    loss: Any = None,
) -> Calibrated:
    """Reads what `save` has written; as `model.load`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it does not hold a whole model, or one that is not calibrated.
    """
    found = read(folder, encoder=encoder, decoder=decoder, loss=loss)
    if isinstance(found, models.Model):
        raise ValueError(
            f"{folder} holds a model without calibration; read it with model.load, or "
            "fit an estimator"
        )
    return found


def read(folder: str | os.PathLike, **own: Any) -> Calibrated | models.Model:
    """As `load`, but a model without calibration as a model."""
    leaves, meta = checkpoints.read(folder)
    if "calibration" not in meta:
        return models.load(folder, **own)
    parts = {"encoder": None, "decoder": None, "loss": None, **own}
    with models.refusing(folder):
        models.check_format(meta)
        return rebuilt(leaves, meta, models.parts_of_own(**parts))


def rebuilt(
    leaves: list[np.ndarray], meta: dict[str, Any], own: dict[str, Any] | None = None
) -> Calibrated:
    """What was `described`.

    Raises:
        ValueError: if the content is not that.
    """
    own, mine = own or {}, meta["calibration"]
    ((first, last),) = mine["scores"]
    scores = tuple(np.asarray(leaf) for leaf in leaves[first:last])
    if not all(np.isfinite(one).all() and one.ndim == 1 for one in scores):
        raise ValueError("its calibration scores are not finite numbers")
    folds = [models.rebuilt(leaves[at:], content, own) for at, content in mine["folds"]]
    kept = None
    if at := mine.get("examples"):
        kept = kept_examples.Examples(*map(np.asarray, leaves[at : at + 4]))
    return Calibrated(
        models.rebuilt(leaves, meta, own),
        scores,
        mine["way"],
        mine["false_alarm_rate"],
        tuple(folds),
        mine["details"],
        kept,
    )
