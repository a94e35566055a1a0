"""Whether rows look scaled in another way than those of the training."""

import math
from collections.abc import Sequence

import numpy as np

FEWEST = 8  # rows that may look so
_ROWS, _VALUES = 4096, 2**20  # so many say how a column is distributed


def sample(x: np.ndarray) -> np.ndarray:
    """Some of the rows, which say how the columns are distributed."""
    size = math.prod(x.shape)
    return x[:: max(1, min(len(x) // FEWEST, max(len(x) // _ROWS, size // _VALUES)))]


def unlike(
    x: np.ndarray,
    z: np.ndarray,
    low: Sequence[float],
    high: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    few_columns_tell: bool = False,
) -> str:
    """In which way they do; empty if they do not.

    Held-out rows, anomalies alone and small batches of 28 real tables pass; most of the
    same tables do not once they are standardized, min-maxed or in another unit.

    Args:
        x: some rows, `[n, columns]`.
        z: the same, scaled as the training was, to [0, 1] or standardized.
        low, high: these ranges.
        lower, upper: 5th and 95th percentiles of the training's z; empty if unknown.
        few_columns_tell: whether one column is enough: an image says much of its one
            channel.
    """
    fewest = 1 if few_columns_tell else 3
    quarters = np.quantile(z, (0.25, 0.75), axis=0)
    width = np.subtract(*np.quantile(z, (0.95, 0.05), axis=0))
    typical = np.subtract(upper, lower) if len(lower) else 0.0 * width
    bottom, top = 0.0, 1.0
    if len(lower):  # beyond 0 and 1 where rows are standardized
        bottom = np.where(np.less(lower, 0), lower - typical, 0)
        top = np.where(np.greater(upper, 1), upper + typical, 1)
    off = (quarters[0] < bottom) | (quarters[1] > top)
    off |= ((typical > 0) & (width > 50 * typical)) | (np.abs(z).max(axis=0) > 50)
    if off.mean() >= 0.2:
        return f"{off.sum()} of {len(off)} columns lie mostly outside of its range"
    # Constant columns say nothing of their width, and few columns too little.
    moving = (typical > 0) & (z.max(axis=0) > z.min(axis=0))
    if moving.sum() < fewest:
        return ""
    width, x = width[moving] / typical[moving], x[:, moving].astype(np.float64)
    if len(x) >= 50 and np.mean(width < 0.01) >= 0.9:
        return "nearly all columns fill less than 1 % of its range"
    in_unit = x.min() >= -0.1 and x.max() <= 1.1
    was_in_unit = min(low) >= -0.1 and max(high) <= 1.1
    if in_unit and not was_in_unit and np.mean(width < 0.3) >= 0.8:
        return "they lie in [0, 1], as if they had been scaled already"
    mean, deviation = np.abs(x.mean(axis=0)), x.std(axis=0)
    standard = (mean < 0.5) & (deviation > 0.5) & (deviation < 2)
    if standard.mean() >= 0.8 and np.mean(width < 0.3) >= 0.5:
        return "they have mean 0 and deviation 1, as if they had been standardized"
    return ""
