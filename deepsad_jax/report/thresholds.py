"""What a threshold on scores does: alarms of each kind, as counts.

Pure functions of arrays. A page embeds `Sweep`, so that what is dragged there are
numbers counted here.
"""

from typing import NamedTuple

import numpy as np

_MOST = 1000  # thresholds of a page
_USUAL = 0.05  # share of normal examples that may be alarms where nothing else is said


class Sweep(NamedTuple):
    """Alarms, examples whose score is above a threshold, for many thresholds.

    Attributes:
        thresholds: ascending, `[k]`.
        false_alarms: alarms among the normal, `[k]`.
        hits: alarms among the anomalous, `[k]`.
        normal, anomalous: how many there are.
    """

    thresholds: np.ndarray
    false_alarms: np.ndarray
    hits: np.ndarray
    normal: int
    anomalous: int

    def at(self, threshold: float) -> int:
        """The place of the nearest threshold that is not below a given one."""
        place = int(np.searchsorted(self.thresholds, threshold))
        return min(place, len(self.thresholds) - 1)

    def usual(self) -> int:
        """The place of the lowest threshold with few false alarms: 5 %."""
        return int(np.argmax(self.false_alarms <= _USUAL * self.normal))


def counted(
    scores: np.ndarray, labels: np.ndarray, also: float | None = None, most: int = _MOST
) -> Sweep:
    """The alarms for each score as threshold; of many scores, for some.

    The highest scores, of which decisions are made, are kept before others.

    Args:
        scores: `[n]`, finite.
        labels: 0 normal, 1 anomaly, `[n]`.
        also: a threshold that must be among them.
        most: how many there may be.
    """
    normal, anomalous = (np.sort(scores[labels == kind]) for kind in (0, 1))
    found = np.unique(scores)
    found = np.concatenate([[np.nextafter(found[0], -np.inf)], found])
    if len(found) > most:
        rest, top = found[: -most // 2], found[-most // 2 :]
        places = np.linspace(0, len(rest) - 1, most - len(top)).astype(int)
        found = np.concatenate([rest[places], top])
    extra = [] if also is None or not np.isfinite(also) else [also]
    if len(normal):
        extra.append(normal[len(normal) - 1 - int(_USUAL * len(normal))])
    found = np.unique(np.append(found, extra))
    above = (
        len(kind) - np.searchsorted(kind, found, side="right")
        for kind in (normal, anomalous)
    )
    return Sweep(found, *above, len(normal), len(anomalous))


def bins(scores: np.ndarray, count: int = 40) -> tuple[np.ndarray, bool]:
    """Edges of a histogram in which most scores can be told apart, and whether they are
    logarithmic, as distances spread over orders of magnitude.

    Few that lie far from all others are left to the outermost bins.

    Args:
        scores: `[n]`, finite.
        count: of bins.
    """
    is_log = bool(scores.min() > 0 and scores.max() / scores.min() > 50)
    x = np.log(scores) if is_log else scores.astype(np.float64)
    low, high = np.quantile(x, (0.05, 0.95))
    far = 3 * (high - low) or np.inf
    low, high = max(x.min(), low - far), min(x.max(), high + far)
    if low == high:
        high = low + (abs(low) or 1.0) * 1e-3
    edges = np.linspace(low, high, count + 1)
    return (np.exp(edges), True) if is_log else (edges, False)


def roc(sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """False alarm rates and hit rates, from none to all."""
    x, y = sweep.false_alarms / sweep.normal, sweep.hits / sweep.anomalous
    return x[::-1], y[::-1]


def precision_recall(sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """Recall, and precision where there are alarms."""
    alarms = sweep.false_alarms + sweep.hits
    kept = alarms > 0
    precision = sweep.hits[kept] / alarms[kept]
    return (sweep.hits[kept] / sweep.anomalous)[::-1], precision[::-1]


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.1f} %"
