"""How well scores and alarms tell labeled rows, and how sure that is."""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deepsad_jax import labels, metrics

_Z = 1.959964  # of 95 %
_LEVEL = 0.05  # of significance of ranks
_FEW = 20  # labeled rows of a kind, below which intervals are wide whatever they are


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measures of labeled rows that were not trained on.

    Attributes:
        auroc: the area under the ROC curve, in [0, 1]; of several models, over pairs
            of rows that the same model has scored. NaN unless there are both kinds.
        low, high: its interval of 95 %, for the rows; that other training rows would
            give another model is not in it.
        anomalies, detected: number of known anomalies, and of alarms among them.
        normals, false_alarms: number of other rows, and of alarms among them.
        against: what the other rows are, "known normal" or "unlabeled".
        false_alarm_rate: that the threshold was made for.
        relative: scores of the other rows and of the known anomalies on a scale that
            several models share, see `held_out.evaluate`; empty if unknown.
    """

    auroc: float
    low: float
    high: float
    anomalies: int
    detected: int
    normals: int
    false_alarms: int
    against: str = "known normal"
    false_alarm_rate: float = 0.05
    relative: tuple[Any, Any] = dataclasses.field(
        default=((), ()), repr=False, compare=False
    )

    def sentences(self) -> list[str]:
        """All of it in words; small numbers are called small."""
        kinds = f"{self.anomalies} known anomalies against {self.normals} "
        kinds += f"{self.against} rows"
        said = []
        if not math.isnan(self.auroc):
            said.append(
                f"AUROC {self.auroc:.3f} (95 % interval {self.low:.3f} to "
                f"{self.high:.3f}), {kinds}"
            )
        asked = f"at a false alarm rate of {self.false_alarm_rate:g}"
        if self.anomalies:
            part = _share(self.detected, self.anomalies)
            said.append(f"{part} known anomalies raise an alarm {asked}")
        if self.normals:
            part = _share(self.false_alarms, self.normals)
            said.append(f"{part} {self.against} rows raise an alarm")
        if self.against == "unlabeled":
            said.append(
                "unlabeled rows count as normal here; anomalies among them make all of "
                "this look worse than it is"
            )
        if min(self.anomalies, self.normals) < _FEW:
            said.append(f"these are few rows ({kinds}): a rough guess")
        return said


def _share(part, whole):
    low, high = share_interval(part, whole)
    percent = f"{100 * part / whole:.0f} %, 95 % interval {100 * low:.0f} to "
    return f"{part} of {whole} ({percent}{100 * high:.0f} %)"


def measured(
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    against: str = "known normal",
    false_alarm_rate: float = 0.05,
) -> Evaluation:
    """The measures of labeled rows.

    Args:
        parts: for each model scores, whether rows are known anomalies, and whether they
            raise an alarm, all `[n]`.
        against, false_alarm_rate: see `Evaluation`.
    """
    area, pairs, counts = 0.0, 0, np.zeros(4, int)
    for scores, is_anomaly, is_alarm in parts:
        anomalies = int(is_anomaly.sum())
        normals = len(is_anomaly) - anomalies
        if anomalies and normals:
            here = metrics.auroc(is_anomaly.astype(int), scores)
            area, pairs = area + here * anomalies * normals, pairs + anomalies * normals
        alarms = int((is_alarm & is_anomaly).sum()), int((is_alarm & ~is_anomaly).sum())
        counts += (anomalies, alarms[0], normals, alarms[1])
    auroc = area / pairs if pairs else math.nan
    interval = (math.nan, math.nan)
    if pairs:
        interval = auroc_interval(auroc, int(counts[0]), int(counts[2]))
    return Evaluation(
        auroc,
        *interval,
        *counts.tolist(),
        against=against,
        false_alarm_rate=false_alarm_rate,
    )


def auroc_interval(auroc: float, anomalies: int, normals: int) -> tuple[float, float]:
    """The interval of 95 % of an area under the ROC curve.

    Newcombe's method 5 ("Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic, part 2", Statistics in Medicine 2006): the areas whose own
    standard error does not exclude what was found. It has a width even at 1.

    Args:
        auroc: in [0, 1].
        anomalies, normals: how many rows, >= 1.
    """

    def excess(area):
        both = (anomalies + normals) / 2 - 1
        more = both * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) / (anomalies * normals) * (1 + more)
        return (auroc - area) ** 2 - _Z**2 * variance

    return _root(excess, 0.0, auroc), _root(excess, 1.0, auroc)


def average_precision_interval(
    labels: np.ndarray, scores: np.ndarray
) -> tuple[float, float]:
    """The interval of 95 % of an average precision, by its log-odds.

    Boyd, Eng and Page, "Area under the Precision-Recall Curve", ECML 2013: it covers
    few anomalies, too, where the bootstrap does not.

    Args:
        labels: 0 normal, 1 anomaly, `[n]`; some of both.
        scores: higher = more anomalous, `[n]`.
    """
    count = int(np.sum(labels))
    least = 0.5 / count  # whose log-odds are finite
    found = metrics.average_precision(labels, scores)
    share = float(np.clip(found, least, 1 - least))
    middle = math.log(share / (1 - share))
    spread = _Z / math.sqrt(count * share * (1 - share))
    low, high = (1 / (1 + math.exp(s - middle)) for s in (spread, -spread))
    return min(low, found), max(high, found)


def _root(excess, outside, inside):
    """Where the excess, >= 0 outside and <= 0 inside, changes its sign."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excess(middle) >= 0 else (outside, middle)
    return (outside + inside) / 2


def share_interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson's interval of 95 % of a share, `part` of `whole` >= 1."""
    share, weight = part / whole, _Z**2 / whole
    center = (share + weight / 2) / (1 + weight)
    half = (
        _Z / (1 + weight) * math.sqrt(share * (1 - share) / whole + weight / 4 / whole)
    )
    return max(0.0, center - half), min(1.0, center + half)


def average_ranks(values: dict[str, Sequence[float]]) -> tuple[dict[str, float], float]:
    """Average ranks over data sets, 1 for the highest value, and their critical
    difference (Nemenyi's test at 5 %; Demsar, JMLR 2006).

    Args:
        values: for each method a value for each data set.

    Returns:
        The average rank of each method, and the difference from which on two differ.
    """
    from scipy import stats

    table = np.array(list(values.values()), float).T
    ranks = np.mean(stats.rankdata(-table, axis=1), axis=0)
    count, k = table.shape
    quantile = stats.studentized_range.ppf(1 - _LEVEL, k, np.inf) / np.sqrt(2)
    difference = quantile * np.sqrt(k * (k + 1) / (6 * count))
    return dict(zip(values, ranks.tolist(), strict=True)), float(difference)


def labeled_auroc(estimator: Any, X: Any, y: Any) -> float:
    """A scorer for partly labeled y, as `scoring` of `GridSearchCV` and the like.

    The area under the ROC curve of known anomalies (-1) against known normal rows (+1),
    or against the unlabeled (0) where none is known to be normal, of which it warns.
    Parts that hold both are made by `cv=StratifiedKFold(5, shuffle=True)`.

    Args:
        estimator: anything with `score_samples`.
        X, y: as of `estimators.Detector.fit`.

    Returns:
        The area; NaN, with a warning, unless there are both.
    """
    targets = labels.check_semi_targets("y", y, len(y), warn=False)
    other = 1 if (targets == 1).any() else 0
    kept = (targets == -1) | (targets == other)
    area = metrics.auroc(targets[kept] == -1, -estimator.score_samples(X)[kept])
    said = ""
    if math.isnan(area):
        said = (
            "this part does not hold both known anomalies and other rows, so that it "
            "has no AUROC; use cv=StratifiedKFold(5, shuffle=True)"
        )
    elif not other:
        said = (
            "no row of this part is known to be normal: known anomalies are compared "
            "with unlabeled rows"
        )
    if said:
        warnings.warn(said, UserWarning, stacklevel=2)
    return area
