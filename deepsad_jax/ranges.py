"""The scaling of rows that are seen block by block, in one pass."""

from typing import Any

import numpy as np

from deepsad_jax import checks, likeness, preprocessing, stored


class Ranges:
    """Minima and maxima of columns, block by block.

    Args:
        moments: whether to find the means and deviations of tables, too.
    """

    def __init__(self, moments: bool = False):
        self._low = self._high = None
        self._moments, self._rank = moments, 0
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, x: np.ndarray, name: str) -> None:
        """Takes rows into account.

        Raises:
            ValueError: if some are not finite.
        """
        if x.ndim > 2 and x.dtype == np.uint8:
            return
        checks.check_finite(x, name)
        self._rank, flat = x.ndim, x.reshape(-1, x.shape[-1])
        low, high = flat.min(axis=0), flat.max(axis=0)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)
        if not self._moments or x.ndim > 2:
            return
        flat = flat.astype(np.float64)
        # Chan, Golub and LeVeque, "Updating formulae", 1979.
        mean, count = flat.mean(axis=0), self._count + len(flat)
        away = mean - self._mean
        self._squares += np.square(flat - mean).sum(axis=0)
        self._squares += np.square(away) * self._count * len(flat) / count
        self._mean, self._count = self._mean + away * len(flat) / count, count

    def auto(self) -> preprocessing.Preprocessing:
        """As `preprocessing.auto` of all rows."""
        if self._low is None:
            return preprocessing.Bytes()
        return preprocessing.of_range(self._rank, self._low, self._high)

    def standard(self) -> preprocessing.Preprocessing:
        """As `preprocessing.standard` of all rows, whose moments were asked for."""
        found = self.auto()
        if self._rank != 2:
            return found
        deviation = np.sqrt(self._squares / self._count)
        ends = (self._mean, self._mean + deviation)
        return preprocessing.MinMax(*(tuple(end.tolist()) for end in ends))


def scaling_of(x: Any, *, standard: bool = False) -> preprocessing.Preprocessing:
    """As `preprocessing.auto`, or `standard`, of an array on disk, in one pass.

    Raises:
        ValueError: if it holds what is not finite, or too far apart for float64.
    """
    ranges = Ranges(moments=standard)
    if x.ndim > 2 and x.dtype == np.uint8:
        return ranges.auto()
    for rows in stored.blocks(x):
        ranges.add(np.asarray(x[rows]), f"x from row {rows.start} on")
    found = ranges.standard() if standard else ranges.auto()
    if x.ndim == 2:
        found = found.with_usual(likeness.sample(x))
    return found
