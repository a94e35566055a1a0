"""Measures: what training records of its epochs, and how well scores tell anomalies.

`Mean` and `Moments` accumulate over batches and devices. They are pytrees whose zeros
stand for no batch; an objective may return any class of that kind, with `merge` and
`compute`, and training does the rest. It computes on the host, of many epochs at once:
numbers may have leading axes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import parallel

GROUPS = {"normal": 1, "unlabelled": 0, "anomaly": -1}


class Mean(NamedTuple):
    """The mean of numbers: their sum and how many they are, float32 scalars."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array) -> "Mean":
        """Of an array of this device's share of a batch."""
        total = jnp.sum(values, dtype=jnp.float32)
        return cls(*parallel.total((total, jnp.float32(jnp.size(values)))))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        with np.errstate(invalid="ignore"):
            return self.total / self.count


class Moments(NamedTuple):
    """Count, mean and scatter of z - c for each of `GROUPS`, float32.

    Section 3 of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, reads
    Deep SAD as a principle of information: embeddings of normal data shall have low
    entropy, those of anomalies high entropy. Embeddings of covariance S in d dimensions
    have at most the entropy of a Gaussian, 1/2 log((2 pi e)^d det S) (eq. 8 and 9); log
    det S in turn is at most d log(tr(S) / d), that of the isotropic Gaussian as wide.

    Attributes:
        count: `[3]`.
        mean: `[3, rep_dim]`, 0 for an empty group.
        scatter: sum of (z - c - mean)(z - c - mean)^T, `[3, rep_dim, rep_dim]`.
    """

    count: jax.Array
    mean: jax.Array
    scatter: jax.Array

    @classmethod
    def of(
        cls, embeddings: jax.Array, semi_targets: jax.Array, center: jax.Array
    ) -> "Moments":
        """Of this device's share of a batch.

        Args:
            embeddings: encoder outputs, `[share, rep_dim]`.
            semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[share]`.
            center: hypersphere center, `[rep_dim]`.
        """
        z = (embeddings - center).astype(jnp.float32)
        kinds = jnp.asarray(list(GROUPS.values()))
        members = (jnp.asarray(semi_targets) == kinds[:, None]).astype(jnp.float32)
        exact = {"precision": lax.Precision.HIGHEST}
        sums = (jnp.sum(members, axis=1), jnp.matmul(members, z, **exact))
        count, sums = parallel.total(sums)
        mean = sums / jnp.maximum(count, 1.0)[:, None]
        apart = members[:, :, None] * (z - mean[:, None])
        scatter = jnp.einsum("gni,gnj->gij", apart, apart, **exact)
        return cls(count, mean, parallel.total(scatter))

    def merge(self, other: "Moments") -> "Moments":
        """Of the examples of both, without the cancellation of plain sums.

        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
        Computing Sample Variances", 1979.
        """
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1.0)
        step = other.mean - self.mean
        between = (self.count * share)[:, None, None] * (
            step[:, :, None] * step[:, None, :]
        )
        mean = self.mean + share[:, None] * step
        return Moments(count, mean, self.scatter + other.scatter + between)

    def compute(self) -> dict[str, jax.Array]:
        """Distances and log-determinants of each group; leading axes stay.

        Returns:
            Scalars for each of `GROUPS`: `distance_GROUP`, the mean squared distance to
            the center; `log_det_GROUP`, log det(S + 1e-6 tr(S) I) of the covariance S,
            where the multiple of the identity keeps collapsed directions finite; and
            `isotropic_GROUP`, d log(tr(S) / d), which bounds log det S. NaN for an
            empty group, these two for a single example, and log det also for a group of
            no more than d examples, whose S is singular.
        """
        count, mean, scatter = self
        xp = np if isinstance(count, np.ndarray) else jnp
        rep_dim = mean.shape[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance = scatter / count[..., None, None]
            spread = xp.trace(covariance, axis1=-2, axis2=-1)
            ridge = 1e-6 * spread[..., None, None] * np.eye(rep_dim, dtype=np.float32)
            log_det = xp.linalg.slogdet(covariance + ridge)[1]
            isotropic = rep_dim * xp.log(spread / rep_dim)
        quantities = {
            "distance": spread + xp.sum(xp.square(mean), axis=-1),
            "log_det": xp.where(count > rep_dim, log_det, np.nan),
            "isotropic": xp.where(count > 1, isotropic, np.nan),
        }
        return {
            f"{name}_{group}": values[..., i]
            for name, values in quantities.items()
            for i, group in enumerate(GROUPS)
        }


def alarms(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many examples lie at or above each score, from the highest to the lowest.

    In NumPy, since importing scikit-learn takes longer than a small table's training.

    Args:
        labels: 0 normal, 1 anomaly, `[n]`.
        scores: higher = more anomalous, `[n]`.

    Returns:
        False alarms and hits, `[k + 1]` int64 for k different scores, each from 0.

    Raises:
        ValueError: for other labels, scores that are not finite, or unlike shapes.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"labels and scores have shapes {labels.shape} and {scores.shape}; both "
            "must be [n]"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels has other values than 0, normal, and 1, anomaly")
    if not np.isfinite(scores).all():
        raise ValueError("scores has values that are not finite")
    order = np.argsort(scores, kind="stable")[::-1]
    scores, hits = scores[order], np.cumsum(labels[order], dtype=np.int64)
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], len(scores) > 0))
    hits = np.append(0, hits[last])
    return np.append(0, last + 1) - hits, hits


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, in [0, 1].

    The share of pairs of an anomaly and a normal example in which the anomaly scores
    higher; ties count half.

    Args, Raises: as for `alarms`.

    Returns:
        The area; NaN if all labels are equal, since it is not defined then.
    """
    false, hits = alarms(labels, scores)
    if not (false[-1] and hits[-1]):
        return math.nan
    twice = np.sum(np.diff(false) * (hits[1:] + hits[:-1]))
    return float(twice / (2.0 * false[-1] * hits[-1]))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision with anomalies as the positive class, in [0, 1].

    The mean over the anomalies of the precision where each is found.

    Args, Returns, Raises: as for `auroc`.
    """
    false, hits = alarms(labels, scores)
    if not (false[-1] and hits[-1]):
        return math.nan
    precision = hits[1:] / (false[1:] + hits[1:])
    return float(np.sum(np.diff(hits) * precision) / hits[-1])
