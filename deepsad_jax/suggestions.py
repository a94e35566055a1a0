"""Which rows are worth an expert's minute: the next ones to be labeled.

    rows = suggest(scores, threshold, embeddings, number=20)

Pure functions of NumPy arrays; higher scores are more anomalous.
"""

from typing import Any

import numpy as np

STRATEGIES = ("mixture", "anomalous", "uncertain", "diverse")
# Of the mixture: the share of the rows, by their scores, among which it looks for
# groups, and the least number of rows for each of them.
_UPPER, _FEWEST = 0.4, 3


def suggest(
    scores: Any,
    threshold: float,
    embeddings: Any,
    *,
    number: int,
    strategy: str = "mixture",
    labeled: Any = None,
) -> np.ndarray:
    """Rows to label next, the first ones first.

    Args:
        scores: `[n]`.
        threshold: scores above it are alarms.
        embeddings: `[n, d]`; prepared rows, where a model has no embeddings.
        number: how many rows, >= 1.
        strategy: "anomalous", those of the highest scores; "uncertain", those around
            the threshold, as many above as below; "diverse", each as far as can be from
            all before and from those that are labeled; or "mixture", which is all of
            that: of the upper two fifths of the scores, one row from the middle of
            each of `number` groups (k-means), the most anomalous ones first.
        labeled: which rows an expert has seen, `[n]` bool; they are left out.

    Returns:
        Row numbers, `[number]`, or as many as are not labeled.

    Raises:
        ValueError: for another strategy, or arguments of unlike length.
    """
    scores, embeddings = np.asarray(scores), np.asarray(embeddings)
    seen = np.zeros(len(scores), bool) if labeled is None else np.array(labeled, bool)
    if strategy not in STRATEGIES:
        raise ValueError(
            f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}"
        )
    if number < 1:
        raise ValueError(f"number is {number}; it must be at least 1")
    sizes = len(scores), len(embeddings), len(seen)
    if len({*sizes}) > 1:
        raise ValueError(
            "there are {} scores, {} embeddings and {} marks of what is labeled; they "
            "must be as many".format(*sizes)
        )
    free = np.flatnonzero(~seen)
    number = min(number, len(free))
    by_score = free[np.argsort(-scores[free], kind="stable")]
    if strategy == "anomalous":
        return by_score[:number]
    if strategy == "uncertain":
        return _around(scores[by_score], by_score, threshold)[:number]
    if strategy == "diverse":
        return _unlike(embeddings, free, embeddings[seen], number)
    upper = by_score[: max(_FEWEST * number, round(_UPPER * len(by_score)))]
    return _middles(embeddings, upper, number)


def _around(scores, rows, threshold):
    """Rows by how many others lie between them and the threshold."""
    place = np.sum(scores > threshold) - 0.5
    return rows[np.argsort(np.abs(np.arange(len(rows)) - place), kind="stable")]


def _unlike(embeddings, rows, before, number):
    """Of some rows, each as far as can be from those before; ties by their order."""
    points, chosen = embeddings[rows].astype(np.float64), []
    nearest = np.full(len(rows), np.inf)
    for other in before:
        nearest = np.minimum(nearest, np.square(points - other).sum(axis=1))
    for _ in range(min(number, len(rows))):
        one = int(np.argmax(nearest))
        chosen.append(one)
        nearest = np.minimum(nearest, np.square(points - points[one]).sum(axis=1))
        nearest[chosen] = -1
    return rows[chosen]


def _middles(embeddings, rows, number):
    """Of each of so many groups of rows the one nearest to its middle, in their order.

    Equal rows make fewer groups; then the first ones of the others fill up.
    """
    from sklearn import cluster

    points = embeddings[rows].astype(np.float64)
    count = min(number, len(np.unique(points, axis=0)))
    groups = cluster.KMeans(count, n_init=1, random_state=0).fit(points)
    far = np.square(points - groups.cluster_centers_[groups.labels_]).sum(axis=1)
    middles = [
        own[np.argmin(far[own])]
        for own in (np.flatnonzero(groups.labels_ == i) for i in range(count))
    ]
    rest = np.setdiff1d(np.arange(len(rows)), middles)[: number - count]
    return rows[np.sort(np.concatenate([middles, rest]).astype(int))]
