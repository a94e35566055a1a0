"""The page of one fit: what was done, how good it is, and what a threshold does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import evaluation, metrics
from deepsad_jax.report import cautions, charts, page, thresholds
from deepsad_jax.report.thresholds import percent

GROUPS = {
    "normal": "known normal",
    "unlabelled": "unlabeled",
    "anomaly": "known anomalous",
}
_LOOKS = {"normal": "normal", "unlabelled": "unlabeled", "anomaly": "anomaly"}
_STAGES = {"pretrain": "Pretraining", "train": "Training"}
_SHARE = {"is_share": True, "range": (0.0, 1.0)}


class Fit(NamedTuple):
    """What is known of one fit.

    Attributes:
        title: of the page.
        method: its name.
        sentences: what was done on what data.
        cautions: what a reader should doubt.
        scores: of examples that it was not trained on, `[n]`.
        labels: 0 normal, 1 anomaly, `[n]`.
        kinds: what these two are called.
        history: for each stage, metrics of each epoch.
        figures: (name, value, what it means) beside those of the scores.
        area: the area under the ROC curve and its interval, if they are not those of
            the scores.
        unit: what else there is to say of the scale of the scores.
        threshold: above which it raises an alarm, if it has one.
        groups: where there is no history of them, (group, rows, mean squared distance
            to the center, entropy bound) after training.
        references: scores of what it is compared with, by name.
        examples: what `examples.shown` gives.
        details: pairs of a name and a value, for the end of the page.
    """

    title: str
    method: str
    sentences: Sequence[str]
    cautions: Sequence[str]
    scores: np.ndarray
    labels: np.ndarray
    kinds: tuple[str, str] = ("normal", "anomalous")
    history: Mapping[str, Mapping[str, np.ndarray]] = {}  # noqa: RUF012 (never changed)
    figures: Sequence[tuple[str, str, str]] = ()
    area: tuple[float, float, float] | None = None
    unit: str = ""
    threshold: float | None = None
    groups: Sequence[tuple[str, int, float, float]] = ()
    references: Mapping[str, np.ndarray] = {}  # noqa: RUF012
    examples: Mapping[str, Sequence[Any]] = {}  # noqa: RUF012
    details: Sequence[tuple[str, str]] = ()


def written(fit: Fit) -> str:
    """The page."""
    sweep = thresholds.counted(fit.scores, fit.labels, fit.threshold)
    start = sweep.usual() if fit.threshold is None else sweep.at(fit.threshold)
    histogram, positions = _histogram(fit, sweep)
    curves = _curves(fit, sweep) if sweep.normal and sweep.anomalous else []
    data = {
        "thresholds": sweep.thresholds.tolist(),
        "x": np.round(positions, 1).tolist(),
        "falseAlarms": sweep.false_alarms.tolist(),
        "hits": sweep.hits.tolist(),
        "normal": sweep.normal,
        "anomalous": sweep.anomalous,
        "start": start,
        "frame": charts.frame(),
    }
    return page.render(
        "fit.html",
        title=fit.title,
        fit=fit,
        figures=[*_figures(fit, sweep), *fit.figures],
        cautions=[*fit.cautions, *cautions.of_scores(fit.scores)],
        histogram=histogram,
        curves=curves,
        losses=_losses(fit.history),
        groups=_groups(fit.history),
        share=sweep.anomalous / (sweep.normal + sweep.anomalous),
        data=data,
    )


def usual_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of a fit that has none of its own."""
    sweep = thresholds.counted(scores, labels)
    return float(sweep.thresholds[sweep.usual()])


def auroc(fit: Fit) -> tuple[float, float, float] | None:
    """The area under the ROC curve and its interval of 95 %; None of one kind."""
    if fit.area is not None:
        return fit.area
    area = metrics.auroc(fit.labels, fit.scores)
    if math.isnan(area):
        return None
    anomalies = int(fit.labels.sum())
    return area, *evaluation.auroc_interval(
        area, anomalies, len(fit.labels) - anomalies
    )


def _figures(fit, sweep) -> list[tuple[str, str, str]]:
    if (area := auroc(fit)) is None:
        return []
    meaning = "how often an anomaly has a higher score than a normal example"
    found = [("AUROC", percent(area[0]), f"{_interval(*area[1:])}: {meaning}")]
    if sweep.normal and sweep.anomalous:
        average = metrics.average_precision(fit.labels, fit.scores)
        ends = evaluation.average_precision_interval(fit.labels, fit.scores)
        chance = percent(sweep.anomalous / len(fit.labels))
        meaning = f"{_interval(*ends)}; a random order has {chance}"
        found.append(("Average precision", percent(average), meaning))
    for name, scores in fit.references.items():
        value = metrics.auroc(fit.labels, scores)
        ends = evaluation.auroc_interval(value, sweep.anomalous, sweep.normal)
        found.append((f"AUROC, {name}", percent(value), _interval(*ends)))
    return found


def _interval(low, high) -> str:
    return f"95 % interval {percent(low)} to {percent(high)}"


def _histogram(fit, sweep) -> tuple[charts.Chart, np.ndarray]:
    edges, is_log = thresholds.bins(fit.scores)
    low, high = float(edges[0]), float(edges[-1])
    axis = charts.Axis(
        f"anomaly score{fit.unit}" + ", logarithmic" * is_log, (low, high), is_log
    )
    series = []
    for label, look in ((0, "normal"), (1, "anomaly")):
        own = fit.scores[fit.labels == label]
        if len(own):
            counts, _ = np.histogram(np.clip(own, low, high), edges)
            x, y = charts.steps(edges, counts / len(own))
            series.append(charts.Series(fit.kinds[label], x, y, look, filled=True))
    top = max(float(np.max(one.y)) for one in series)
    found = charts.chart(
        "Scores by kind",
        series,
        axis,
        charts.Axis("share of the kind", (0.0, 1.05 * top), is_share=True),
        "Bars of one kind add up to 100 %, however many examples it has; right of the "
        "upright line is an alarm.",
        charts.marker("line"),
    )
    return found, np.nan_to_num(
        charts.place_x(axis, (low, high), np.clip(sweep.thresholds, low, high))
    )


def _curves(fit, sweep) -> list[charts.Chart]:
    roc, recall = [], []
    looks = ("other", "unlabeled", "quiet")
    entries = [(fit.method, sweep, "own")]
    for (name, scores), look in zip(fit.references.items(), looks, strict=False):
        entries.append((name, thresholds.counted(scores, fit.labels), look))
    for name, one, look in entries:
        roc.append(charts.Series(name, *thresholds.roc(one), look))
        recall.append(charts.Series(name, *thresholds.precision_recall(one), look))
    base = sweep.anomalous / (sweep.normal + sweep.anomalous)
    roc.append(charts.Series("random order", [0, 1], [0, 1], "chance"))
    recall.append(charts.Series("random order", [0, 1], [base, base], "chance"))
    alarms = charts.Axis("share of the normal that are false alarms", **_SHARE)
    hits = charts.Axis("share of the anomalies that are hit", **_SHARE)
    return [
        charts.chart(
            *("ROC curve", roc, alarms, hits),
            "Each point is a threshold; the nearer to the upper left corner, the "
            "better. The dot is the threshold above.",
            charts.marker("dot"),
        ),
        charts.chart(
            *("Precision and recall", recall, hits),
            charts.Axis("share of the alarms that are right", **_SHARE),
            "The nearer to the upper right corner, the better; precision depends on "
            "how many anomalies there are.",
            charts.marker("dot"),
        ),
    ]


def _losses(history) -> list[charts.Chart]:
    found = []
    for stage, values in history.items():
        loss = np.asarray(values.get("loss", ()), float)
        if not len(loss):
            continue
        known = loss[np.isfinite(loss)]
        is_log = bool(len(known)) and bool(known.min() > 0)
        found.append(
            charts.chart(
                _STAGES.get(stage, stage),
                [charts.Series("", np.arange(1, len(loss) + 1), loss, "own")],
                charts.Axis("epoch", is_whole=True),
                charts.Axis("loss" + ", logarithmic" * is_log, is_log=is_log),
                "The loss should fall and then level off; if it still falls at the "
                "end, more epochs may help.",
            )
        )
    return found


def _groups(history) -> list[charts.Chart]:
    """Section 3 of the paper: how far apart the groups are, and how spread."""
    values = history.get("train", {})
    if not any(f"distance_{group}" in values for group in GROUPS):
        return []
    distance = _of_groups(values, "distance", 1.0)
    entropy, bound = _of_groups(values, "log_det", 0.5), "of a Gaussian as correlated"
    isotropic = _of_groups(values, "isotropic", 0.5)
    if len(entropy) < len(isotropic):  # a group too small for its covariance
        entropy, bound = isotropic, "of a round Gaussian as wide"
    epoch = charts.Axis("epoch", is_whole=True)
    found = []
    if distance:
        found.append(
            charts.chart(
                *("Distance to the center", distance, epoch),
                charts.Axis("mean squared distance, logarithmic", is_log=True),
                "Known anomalies should end far above the others: their distance is "
                "the score. Unlabeled and normal examples should stay low, together.",
            )
        )
    if entropy:
        found.append(
            charts.chart(
                *("Entropy bound of the embeddings", entropy, epoch),
                charts.Axis("nats, up to a constant"),
                f"The entropy {bound}, which that of a group cannot exceed: Deep SAD "
                "wants normal examples packed (low) and anomalies scattered (high). If "
                "all fall without end, the network collapses.",
            )
        )
    return found


def _of_groups(values, quantity, factor) -> list[charts.Series]:
    """A line for each group of which something is known."""
    found = []
    for group, name in GROUPS.items():
        series = factor * np.asarray(values.get(f"{quantity}_{group}", ()), float)
        if np.isfinite(series).any():
            epochs = np.arange(1, len(series) + 1)
            found.append(charts.Series(name, epochs, series, _LOOKS[group]))
    return found
