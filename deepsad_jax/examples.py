"""The few training rows that travel with a model, to which others are compared."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from deepsad_jax import model as models

MOST = 256  # of either kind
_BYTES = 2**22
_USUAL = 0.75  # unlabeled rows of a score up to this quantile pass for normal ones


class Examples(NamedTuple):
    """Some rows of the training.

    Attributes:
        x: as `preprocessing.encoded` gives them, `[n, ...]`.
        semi_targets: +1 known normal, -1 known anomaly, 0 unlabeled, but with a usual
            score; `[n]` int8.
        rows: their numbers among those of the fit, `[n]` int64.
        held: `fingerprints` of the rows that calibrate, which a model that goes on from
            this one must not learn, either; `[m]` uint64.
    """

    x: np.ndarray
    semi_targets: np.ndarray
    rows: np.ndarray
    held: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        """Which are known or seem to be normal, `[n]` bool."""
        return self.semi_targets >= 0


def choose(
    model: models.Model, x: Any, targets: np.ndarray, seed: int, held: np.ndarray
) -> Examples:
    """Known anomalies, known normal rows, and unlabeled ones as far as these are few.

    Args:
        model: trained on them.
        x: raw rows, of a table or an array.
        targets: +1, 0 or -1 for each.
        seed: of the choice among more than are kept.
        held: numbers of the rows that calibrate.
    """
    x = np.asarray(model.preprocessing.encoded(x))
    most = int(np.clip(_BYTES // max(1, x[0].nbytes), 1, MOST))
    rng = np.random.default_rng(seed)

    def some(kind, count):
        rows = np.flatnonzero(targets == kind)
        return rng.permutation(rows)[: max(0, count)]

    anomalies, normal = some(-1, most), some(1, most)
    others = some(0, 4 * (most - len(normal)))
    if len(others):
        scores = models.score(model, x[others])
        others = others[scores <= np.quantile(scores, _USUAL)][: most - len(normal)]
    rows = np.concatenate([normal, others, anomalies])
    texts = fingerprints(model, x[held])
    return Examples(x[rows], targets[rows].astype(np.int8), rows.astype(int), texts)


def fingerprints(model: models.Model, x: Any) -> np.ndarray:
    """A number for each row, the same for rows that are equal for the model.

    Args:
        model: it.
        x: raw rows.

    Returns:
        `[n]` uint64.
    """
    x = np.ascontiguousarray(model.preprocessing.encoded(x)) + 0
    found = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x
    )
    return np.frombuffer(found, ">u8").astype(np.uint64)
