"""Which rows are worth an expert's minute: the next ones to be labeled.

    rows = suggest(scores, threshold, embeddings, number=20)

Pure functions of NumPy arrays; higher scores are more anomalous.
"""

from typing import Any

import numpy as np

STRATEGIES = ("mixture", "anomalous", "uncertain", "diverse", "spread")
# Of the mixture: in each four, by which strategy. What is found by high scores alone is
# unlike the anomalies that are missed.
_TURNS = ("spread", "anomalous", "spread", "uncertain")
_SPREAD = 5  # times as many of the most anomalous rows are looked at as are wanted


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
            all before and from those that are labeled; "spread", evenly over the ranks
            of the scores; or "mixture", half of the last kind, a quarter around the
            threshold, and a quarter of the most anomalous that are unlike each other.
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
    around = _around(scores[by_score], by_score, threshold)
    if strategy == "uncertain":
        return around[:number]
    if strategy == "spread":
        return _spread(by_score, number)
    before = embeddings[seen]
    if strategy == "diverse":
        return _unlike(embeddings, free, before, number)
    queues = {
        "anomalous": _unlike(embeddings, by_score[: _SPREAD * number], before, number),
        "uncertain": around,
        "spread": [*_spread(by_score, -(-number // 2)), *by_score],
    }
    return _in_turns(queues, number)


def _spread(rows, number):
    """Rows at the middles of so many equal parts."""
    return rows[((np.arange(number) + 0.5) * len(rows) / number).astype(int)]


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


def _in_turns(queues, number):
    """The first of each queue in turn that no other has given before."""
    chosen, waiting = [], {name: iter(rows) for name, rows in queues.items()}
    while len(chosen) < number:
        for name in _TURNS:
            new = next((row for row in waiting[name] if row not in chosen), None)
            if new is not None and len(chosen) < number:
                chosen.append(new)
    return np.array(chosen, int)
