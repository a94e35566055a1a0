"""The protocol of ADBench (Han et al., NeurIPS 2022): few labels, dirty data.

Of the anomalies of the training part a ratio is labeled; all others stay among the
unlabeled. Draws are those of its code, so that the same seed gives the same splits.
"""

import math
import numbers

import numpy as np

from deepsad_jax import preprocessing
from deepsad_jax.data import protocol, sources

LEAST, MOST = 1000, 10_000
_TEST_SHARE = 0.3


def make(
    source: sources.Source, ratio: float, seed: int, *, duplicates: bool = True
) -> protocol.Problem:
    """Splits and draws.

    Args:
        source: rows and labels, 0 normal and 1 anomaly, without a test part.
        ratio: share of the anomalies of the training part that are labeled, rounded up,
            in [0, 1].
        seed: of all draws.
        duplicates: whether tables of less than 1,000 rows are filled up by drawing rows
            again before they are split, as ADBench does: training and test part then
            share rows. Otherwise the training part alone is filled up, to 700 rows.

    Returns:
        The problem; of more than 10,000 rows, 10,000 are drawn. `index_test` are rows
        of the source.

    Raises:
        ValueError: if the source is another, or a class is too small to be split.
    """
    from sklearn import model_selection

    if not isinstance(ratio, numbers.Real) or not 0 <= ratio <= 1:
        raise ValueError(f"ratio_known_outlier is {ratio!r}; it must be in [0, 1]")
    source = sources.checked(source)
    x, labels = source.x, source.labels
    if source.x_test is not None or labels is None:
        raise ValueError("the protocol adbench splits by itself: give X and y alone")
    if not np.array_equal(np.unique(labels), [0, 1]):
        raise ValueError(
            f"the labels are {np.unique(labels)[:5].tolist()}; the protocol adbench "
            "takes 0 normal and 1 anomaly"
        )
    rng, rows = np.random.RandomState(seed), np.arange(len(x))
    if len(x) < LEAST and duplicates:
        rows = rng.choice(rows, LEAST, replace=True)
    elif len(x) > MOST:
        rows = rng.choice(rows, MOST, replace=False)
    try:
        train, test = model_selection.train_test_split(
            rows, test_size=_TEST_SHARE, stratify=labels[rows], random_state=rng
        )
    except ValueError as error:
        raise ValueError(f"the data cannot be split: {error}") from error
    if len(x) < LEAST and not duplicates:
        missing = round(LEAST * (1 - _TEST_SHARE)) - len(train)
        train = np.r_[train, rng.choice(train, missing, replace=True)]
    anomalies = np.flatnonzero(labels[train] == 1)
    known = rng.choice(anomalies, math.ceil(ratio * len(anomalies)), replace=False)
    targets = np.zeros(len(train), np.int64)
    targets[known] = -1
    scaling = preprocessing.auto(x[train], "the training part")
    return protocol.Problem(
        *(x, train, targets, x[test], labels[test], test, scaling),
    )
