"""Statistics of embeddings for each kind of training example.

Section 3 of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, reads
Deep SAD as a principle of information: embeddings of normal data shall have low
entropy, those of anomalies high entropy. Embeddings of covariance S in d dimensions
have at most the entropy of a Gaussian, 1/2 log((2 pi e)^d det S) (eq. 8 and 9); log det
S in turn is at most d log(tr(S) / d), that of the isotropic Gaussian as wide.

Take the `moments` of each batch, `merge` them, and end with a `summary`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

GROUPS = {"normal": 1, "unlabelled": 0, "anomaly": -1}


class Moments(NamedTuple):
    """Count, mean and scatter of z - c for each of `GROUPS`, float32.

    Attributes:
        count: `[3]`.
        mean: `[3, rep_dim]`, 0 for an empty group.
        scatter: sum of (z - c - mean)(z - c - mean)^T, `[3, rep_dim, rep_dim]`.
    """

    count: jax.Array
    mean: jax.Array
    scatter: jax.Array


def moments(
    embeddings: jax.Array,
    semi_targets: jax.Array,
    center: jax.Array,
    *,
    axis_name: str | None = None,
) -> Moments:
    """The moments of a batch.

    Args:
        embeddings: encoder outputs, `[batch, rep_dim]`.
        semi_targets: +1 known normal, 0 unlabelled, -1 known anomaly, `[batch]`.
        center: hypersphere centre, `[rep_dim]`.
        axis_name: the mapped axis over which the batch is split, if it is.
    """

    def total(x):
        return x if axis_name is None else lax.psum(x, axis_name)

    z = (embeddings - center).astype(jnp.float32)
    kinds = jnp.asarray(list(GROUPS.values()))
    members = (jnp.asarray(semi_targets) == kinds[:, None]).astype(jnp.float32)
    count = total(jnp.sum(members, axis=1))
    exact = {"precision": lax.Precision.HIGHEST}
    sums = total(jnp.matmul(members, z, **exact))
    mean = sums / jnp.maximum(count, 1.0)[:, None]
    apart = members[:, :, None] * (z - mean[:, None])
    return Moments(
        count, mean, total(jnp.einsum("gni,gnj->gij", apart, apart, **exact))
    )


def zeros(rep_dim: int) -> Moments:
    """The moments of no example."""
    n = len(GROUPS)
    return Moments(
        jnp.zeros(n), jnp.zeros((n, rep_dim)), jnp.zeros((n, rep_dim, rep_dim))
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the examples of both, without the cancellation of plain sums.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    step = b.mean - a.mean
    between = (a.count * share)[:, None, None] * step[:, :, None] * step[:, None, :]
    return Moments(
        count, a.mean + share[:, None] * step, a.scatter + b.scatter + between
    )


def summary(moments: Moments) -> dict[str, jax.Array]:
    """Distances and log-determinants of each group.

    Returns:
        Scalars for each of `GROUPS`: `distance_GROUP`, the mean squared distance to the
        centre; `log_det_GROUP`, log det(S + 1e-6 tr(S) I) of the covariance S, where
        the multiple of the identity keeps collapsed directions finite; and
        `isotropic_GROUP`, d log(tr(S) / d), which bounds log det S. NaN for an empty
        group, these two for a single example, and log det also for a group of no more
        than d examples, whose S is singular.
    """
    count, mean, scatter = moments
    rep_dim = mean.shape[1]
    covariance = scatter / count[:, None, None]
    spread = jnp.trace(covariance, axis1=1, axis2=2)
    ridge = 1e-6 * spread[:, None, None] * jnp.eye(rep_dim)
    factor = jnp.linalg.cholesky(covariance + ridge)
    diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    log_det = 2.0 * jnp.sum(jnp.log(diagonal), axis=1)
    isotropic = rep_dim * jnp.log(spread / rep_dim)
    quantities = {
        "distance": spread + jnp.sum(jnp.square(mean), axis=1),
        "log_det": jnp.where(count > rep_dim, log_det, jnp.nan),
        "isotropic": jnp.where(count > 1, isotropic, jnp.nan),
    }
    return {
        f"{name}_{group}": values[i]
        for name, values in quantities.items()
        for i, group in enumerate(GROUPS)
    }
