"""From scores to decisions: p-values, thresholds, discoveries, with their guarantees.

    p = p_values(scores, calibration_scores)      # given held-out normals
    alarms = scores > threshold(calibration_scores, false_alarm_rate=0.01)
    found = discoveries(p, rate=0.1)              # a tenth false on average

Pure functions of NumPy arrays; higher scores are more anomalous. Calibration scores are
of rows that took no part in training. All guarantees assume that these rows and new
normal ones are exchangeable: that they could have come in any order. Anomalies among
the calibration rows make p-values larger, and alarms fewer.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import labels

_DRAWS = 1000  # of the bootstrap


class CostThreshold(NamedTuple):
    """The threshold that costs least on labeled examples.

    Attributes:
        value: it; scores above it are alarms.
        low, high: the middle 95 % of the thresholds that resampled examples give.
        cost: of one new row, on average, as estimated from the examples.
    """

    value: float
    low: float
    high: float
    cost: float


def p_values(scores: Any, calibration_scores: Any, *, rng: Any = None) -> np.ndarray:
    """Conformal p-values of new rows, `[m]` in (0, 1].

    A new normal row has a p-value of at most a with a probability of at most a. Bates
    et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 2023.

    Args:
        scores: of the new rows, `[m]`.
        calibration_scores: of held-out normal rows, `[n]`; no p-value is below
            1 / (n + 1).
        rng: a `np.random.Generator` that breaks ties; by default they count against an
            alarm, which is the safe side.

    Raises:
        ValueError: if scores are no finite numbers, or there is none to calibrate with.
    """
    scores, calibration = _scores("scores", scores), _calibration(calibration_scores)
    above, equal = _counts(scores, calibration)
    if rng is None:
        return (1 + above + equal) / (len(calibration) + 1)
    draws = rng.uniform(size=scores.shape)
    return (above + (equal + 1) * draws) / (len(calibration) + 1)


def cross_conformal(
    scores: Sequence[Any], calibration_scores: Sequence[Any]
) -> np.ndarray:
    """Cross-conformal p-values of new rows, `[m]` in (0, 1].

    Each fold of the normal rows is held out once, and scored by the model of the
    others; all rows train and calibrate. A p-value of at most a has, for a normal row,
    a probability of at most about 2 a in the worst case, and in practice of a. Vovk,
    "Cross-conformal predictors", 2015; Barber et al., "Predictive inference with the
    jackknife+", 2021.

    Args:
        scores: of the new rows by the model of each fold, `[folds, m]`.
        calibration_scores: for each fold, those of its rows by the model that has not
            seen them.

    Raises:
        ValueError: as `p_values`, or if the folds of both are not as many.
    """
    if len(scores) != len(calibration_scores) or not len(scores):
        raise ValueError(
            f"scores are of {len(scores)} folds and calibration_scores of "
            f"{len(calibration_scores)}; there must be one of each for each fold"
        )
    total, count = 1, 1
    for one, calibration in zip(scores, calibration_scores, strict=True):
        calibration = _calibration(calibration)
        above, equal = _counts(_scores("scores", one), calibration)
        total, count = total + above + equal, count + len(calibration)
    return total / count


def threshold(
    scores: Any,
    *,
    false_alarm_rate: float | None = None,
    budget: float | None = None,
    of: float | None = None,
    contamination: float | None = None,
    cost_of_miss: float | None = None,
    cost_of_false_alarm: float | None = None,
    semi_targets: Any = None,
) -> float:
    """The threshold above which a score is an alarm, in one of four ways.

    Args:
        scores: of held-out normal rows for the first two ways, of any rows for the
            third, of labeled rows for the last; `[n]`.
        false_alarm_rate: the share of new normal rows that may raise an alarm, in
            (0, 1). Over calibration and new rows, no more do on average: the alarms are
            the rows whose `p_values` are at most this.
        budget, of: so many alarms may be looked at among so many new rows; a false
            alarm rate of budget / of.
        contamination: the share of the scores themselves that lie above, in (0, 1); of
            new rows nothing is promised.
        cost_of_miss, cost_of_false_alarm: see `cost_threshold`, which also tells how
            sure it is; > 0. A `contamination` is then the share of anomalies.
        semi_targets: +1 known normal, -1 known anomaly for each score, for costs.

    Returns:
        The threshold. It is infinite, with a warning, where there are too few scores
        for so small a rate.

    Raises:
        ValueError: for scores that are not finite numbers, for numbers out of their
            range, or unless one way is chosen.
    """
    costs = {"cost_of_miss": cost_of_miss, "cost_of_false_alarm": cost_of_false_alarm}
    has_costs = any(cost is not None for cost in costs.values())
    _check_one_way(
        {
            "false_alarm_rate": false_alarm_rate is not None,
            "budget and of": budget is not None or of is not None,
            "contamination": contamination is not None and not has_costs,
            "cost_of_miss and cost_of_false_alarm": has_costs,
        }
    )
    if has_costs:
        found = cost_threshold(
            scores, semi_targets, contamination=contamination, **costs
        )
        return found.value
    if contamination is not None:
        ordered = np.sort(_calibration(scores, "scores"))
        check_rate("contamination", contamination)
        return float(ordered[len(ordered) - 1 - int(contamination * len(ordered))])
    if false_alarm_rate is None:
        false_alarm_rate = _rate_of(budget, of)
    check_rate("false_alarm_rate", false_alarm_rate)
    return _conformal(_calibration(scores), false_alarm_rate)


def _check_one_way(ways):
    chosen = [name for name, is_chosen in ways.items() if is_chosen]
    if len(chosen) != 1:
        raise ValueError(
            f"{' and '.join(chosen) if chosen else 'nothing'} is given; a threshold "
            f"needs one of {', '.join(ways)}"
        )


def _rate_of(budget, of):
    given = budget is not None and of is not None
    if not (given and _is_number(budget) and _is_number(of) and 0 < budget < of):
        raise ValueError(
            f"budget is {budget!r} and of is {of!r}; both must be given, budget > 0 "
            "and less than of"
        )
    return budget / of


def _conformal(calibration, rate):
    size = len(calibration)
    most = steps(size, rate)
    if not most:
        warnings.warn(
            f"{size} calibration rows are too few for a false alarm rate of {rate:g}, "
            f"so that there will be no alarms: at least {least_rows(rate)} are needed",
            UserWarning,
            stacklevel=3,
        )
        return float("inf")
    return float(np.sort(calibration)[size - most])


def steps(size: int, rate: float) -> int:
    """The largest k for which k / (size + 1), a p-value, is at most the rate."""
    grid = np.arange(size + 1) / (size + 1)
    return int(np.searchsorted(grid, rate, side="right")) - 1


def least_rows(rate: float) -> int:
    """How many calibration rows a false alarm rate needs for any alarm."""
    rows = max(1, int(1 / rate) - 2)
    while 1 / (rows + 1) > rate:
        rows += 1
    return rows


def cost_threshold(
    scores: Any,
    semi_targets: Any,
    *,
    cost_of_miss: float,
    cost_of_false_alarm: float,
    contamination: float | None = None,
    rng: Any = None,
) -> CostThreshold:
    """The threshold of least cost on labeled examples, and how sure it is.

    Args:
        scores: of examples that were not trained on, `[n]`.
        semi_targets: +1 known normal, -1 known anomaly, `[n]`; 0 is left out. There
            must be some of both.
        cost_of_miss, cost_of_false_alarm: of one anomaly without, and one normal row
            with an alarm; > 0 and finite.
        contamination: the share of anomalies among new rows, in (0, 1); by default
            that among the labeled.
        rng: a `np.random.Generator` of the bootstrap; by default of seed 0.

    Raises:
        ValueError: for scores, labels or numbers that are not as said.
    """
    scores = _calibration(scores, "scores")
    targets = labels.check_semi_targets("semi_targets", semi_targets, len(scores))
    normal, anomaly = (np.sort(scores[targets == kind]) for kind in (1, -1))
    if not len(normal) or not len(anomaly):
        raise ValueError(
            f"semi_targets has {len(normal)} known normal and {len(anomaly)} known "
            "anomalies; costs need some of both"
        )
    costs = {"cost_of_miss": cost_of_miss, "cost_of_false_alarm": cost_of_false_alarm}
    for name, cost in costs.items():
        if not (_is_number(cost) and 0 < cost < np.inf):
            raise ValueError(f"{name} is {cost!r}; it must be > 0 and finite")
    if contamination is None:
        contamination = len(anomaly) / (len(anomaly) + len(normal))
    check_rate("contamination", contamination)
    weights = (
        cost_of_miss * contamination,
        cost_of_false_alarm * (1 - contamination),
    )
    value, cost = _cheapest(normal, anomaly, *weights)
    rng = np.random.default_rng(0) if rng is None else rng
    drawn = [
        _cheapest(
            np.sort(rng.choice(normal, len(normal))),
            np.sort(rng.choice(anomaly, len(anomaly))),
            *weights,
        )[0]
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
    return CostThreshold(value, float(low), float(high), cost)


def _cheapest(normal, anomaly, of_miss, of_false_alarm):
    """The threshold of least cost, halfway to the next score above, and its cost."""
    both = np.unique(np.concatenate([normal, anomaly]))
    candidates = np.concatenate([[-np.inf], (both[:-1] + both[1:]) / 2, [np.inf]])
    misses = np.searchsorted(anomaly, candidates, "right") / len(anomaly)
    alarms = 1 - np.searchsorted(normal, candidates, "right") / len(normal)
    costs = of_miss * misses + of_false_alarm * alarms
    best = int(np.argmin(costs))
    return float(candidates[best]), float(costs[best])


def discoveries(p_values: Any, rate: float = 0.1) -> np.ndarray:
    """Which rows are anomalies, so that few of those that are named are not.

    Benjamini and Hochberg's procedure: the mean share of normal rows among the named
    ones, none counting as 0, is at most `rate`. That holds for conformal p-values,
    whose dependence is of the harmless kind (Bates et al. 2023).

    Args:
        p_values: of all rows that are looked at together, `[m]`.
        rate: the false discovery rate, in (0, 1).

    Returns:
        `[m]` bool.

    Raises:
        ValueError: if p_values are not in [0, 1], or the rate is not in (0, 1).
    """
    p_values = _scores("p_values", p_values)
    if ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(
            f"p_values are from {p_values.min():g} to {p_values.max():g}; they must be "
            "in [0, 1]"
        )
    check_rate("rate", rate)
    if not len(p_values):
        return np.zeros(0, bool)
    import scipy.stats

    adjusted = scipy.stats.false_discovery_control(p_values, method="bh")
    return adjusted <= rate * (1 + 1e-12)  # conformal ones are often equal, but rounded


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError unless it is a share in (0, 1)."""
    if not (_is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} is {value!r}; it must be in (0, 1)")


def _is_number(value):
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def _counts(scores, calibration):
    """For each score, how many of the calibration's are above it, and equal."""
    ordered = np.sort(calibration)
    left, right = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return len(ordered) - right, right - left


def _calibration(scores, name="calibration_scores"):
    found = _scores(name, scores)
    if not len(found):
        raise ValueError(f"{name} is empty; there must be at least one")
    return found


def _scores(name, scores):
    found = np.asarray(scores)
    if found.ndim != 1 or (found.dtype.kind not in "iuf" and found.size):
        raise ValueError(
            f"{name} has shape {found.shape} and dtype {found.dtype}; it must hold one "
            "number for each row, [n]"
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"{name} has {found[row]} (of row {row}); it must be finite")
    return found
