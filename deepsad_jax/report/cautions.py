"""What a careful reader would doubt: sentences for a page, empty if all seems well."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsad_jax import detectors
from deepsad_jax.report.thresholds import percent

_FEW_KNOWN = 10  # known anomalies in training
_FEW_TESTED = 20  # of a kind, below which intervals are wide whatever they are
_DRIFT = 0.2  # distance of two distribution functions, and no less than by chance
_SAMPLE = 20_000  # rows of either part


def of_scores(scores: np.ndarray) -> list[str]:
    """Whether a network has collapsed: it gives all examples nearly the same score."""
    low, middle, high = np.quantile(scores.astype(np.float64), (0.05, 0.5, 0.95))
    if high - low > 1e-4 * abs(middle) and high > low:
        return []
    return [
        f"Nine in ten scores lie between {low:.6g} and {high:.6g}: the network may "
        "have collapsed to a constant, and its order of the examples means little."
    ]


def of_numbers(method: str, known: int | None, labels: np.ndarray) -> list[str]:
    """Whether there are too few labels.

    Args:
        method: its name.
        known: known anomalies of the training, if that is known.
        labels: of the evaluation, 0 normal, 1 anomaly, `[n]`.
    """
    said = []
    anomalous = int((labels == 1).sum())
    normal = len(labels) - anomalous
    learns = method in detectors.METHODS and detectors.METHODS[method].uses_labels
    if learns and known is not None and known < _FEW_KNOWN:
        said.append(
            f"Only {known} anomalies were known in training: another choice of them "
            "may give another result."
        )
    if not normal or not anomalous:
        said.append(
            "Nothing can be said of hits and false alarms together: the evaluation has "
            f"{normal} normal and {anomalous} anomalous examples."
        )
    elif min(normal, anomalous) < _FEW_TESTED:
        said.append(
            f"The evaluation has {normal} normal and {anomalous} anomalous examples: "
            "these are few, and all figures a rough guess."
        )
    return said


def of_figures(
    auroc: float, low: float, untrained: float | None, what: str = "untrained network"
) -> list[str]:
    """Whether an area under the ROC curve shows that something was learned.

    Args:
        auroc, low: the area and the lower end of its interval.
        untrained: that of the network before training, if it is known.
        what: what that is called.
    """
    said = []
    if auroc < 0.5:
        said.append(
            f"AUROC {percent(auroc)} is below one half: normal examples have higher "
            "scores than anomalies, and a coin would do better."
        )
    if untrained is not None and low <= untrained:
        relation = "is no better than" if auroc <= untrained else "is not clear of"
        said.append(
            f"The trained network (AUROC {percent(auroc)}) {relation} the {what} "
            f"({percent(untrained)}): training may have taught it nothing."
        )
    return said


def few(rows: np.ndarray) -> np.ndarray:
    """As many rows as `drift` looks at, or their numbers, drawn at random."""
    if len(rows) <= _SAMPLE:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), _SAMPLE, False)]


def drift(train: np.ndarray, test: np.ndarray) -> list[tuple[int, float]]:
    """Columns whose values in two parts are not of one distribution.

    Args:
        train, test: rows that should be alike, such as normal ones, `[n, columns]`.

    Returns:
        The column and the largest distance of the two distribution functions in [0, 1]
        (Kolmogorov and Smirnov), where that is above 0.2 and not by chance, the
        farthest first.
    """
    if len(train) < 2 or len(test) < 2:
        return []
    train, test, found = few(train), few(test), []
    for i in range(train.shape[1]):
        one, other = (part[:, i][~np.isnan(part[:, i])] for part in (train, test))
        if len(one) and len(other):
            distance = _distance(one, other)
            effective = len(one) * len(other) / (len(one) + len(other))
            # The first term of Kolmogorov's series, which is above the others' sum;
            # the whole would be an import of a second.
            p = 2 * np.exp(-2 * effective * distance**2)
            if distance > _DRIFT and p < 1e-3 / train.shape[1]:
                found.append((i, distance))
    return sorted(found, key=lambda pair: -pair[1])


def _distance(one, other) -> float:
    """The largest distance of two samples' distribution functions."""
    places = np.concatenate([one, other])
    shares = [
        np.searchsorted(np.sort(part), places, side="right") / len(part)
        for part in (one, other)
    ]
    return float(np.max(np.abs(shares[0] - shares[1])))


def of_drift(found: Sequence[Any]) -> list[str]:
    """The same in words.

    Args:
        found: pairs of a column's name and the distance.
    """
    if not found:
        return []
    shown = ", ".join(f"{name} ({distance:.2f})" for name, distance in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return [
        "Normal test rows differ from the training rows in some columns (largest "
        f"distance of the distributions, 0 to 1): {shown}{more}. Scores may be high "
        "for that alone."
    ]
