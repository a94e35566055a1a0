"""Terms of the generative models: likelihoods and bounds, and the loss of M2."""

import math

import jax
import jax.numpy as jnp

from deepsad_jax.losses import arguments

_LOG_2PI = math.log(2.0 * math.pi)


def bernoulli_log_likelihood(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Log-probability of examples under independent Bernoulli variables, summed.

    Args:
        x: values in [0, 1], `[..., features]`; those between 0 and 1 give the negative
            cross-entropy.
        logits: log-odds of a one, of the same shape.

    Returns:
        Log-likelihoods, <= 0 for x in [0, 1], `[...]`.

    Raises:
        ValueError: if the shapes differ.

    >>> bernoulli_log_likelihood(jnp.array([1.0, 0.0]), jnp.zeros(2)).round(4)
    Array(-1.3863, dtype=float32)
    """
    if jnp.shape(x) != jnp.shape(logits):
        raise ValueError(
            f"logits has shape {jnp.shape(logits)}, but x has shape {jnp.shape(x)}; "
            "they must be equal"
        )
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def gaussian_log_density(
    z: jax.Array, mean: jax.Array = 0.0, log_var: jax.Array = 0.0
) -> jax.Array:
    """Log-density of a Gaussian of diagonal covariance; the standard one by default.

    Args:
        z: points, `[..., latent]`.
        mean: its mean, `[..., latent]`.
        log_var: logarithm of its variance, `[..., latent]`.

    Returns:
        Log-densities, `[...]`.

    >>> bool(jnp.isclose(gaussian_log_density(jnp.zeros(2)), -jnp.log(2 * jnp.pi)))
    True
    """
    squares = jnp.square(z - mean) * jnp.exp(-log_var)
    return -0.5 * jnp.sum(_LOG_2PI + log_var + squares, axis=-1)


def gaussian_kl(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence of a diagonal Gaussian from the standard one.

    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.

    Args:
        mean: `[..., latent]`.
        log_var: logarithm of the variance, `[..., latent]`.

    Returns:
        Divergences, >= 0, `[...]`.

    >>> gaussian_kl(jnp.array([1.0, 0.0]), jnp.zeros(2))
    Array(0.5, dtype=float32)
    """
    # expm1 keeps the difference of variances near 1.
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.expm1(log_var) - log_var, axis=-1)


def evidence_lower_bound(
    x: jax.Array, logits: jax.Array, z: jax.Array, mean: jax.Array, log_var: jax.Array
) -> jax.Array:
    """Lower bound of log p(x), estimated with one sample z of q(z | x).

    log p(x | z) + log p(z) - log q(z | x), with a Bernoulli likelihood and the standard
    Gaussian as prior: Kingma and Welling, ICLR 2014, eq. 6 with one sample. The
    negative is the loss of a variational autoencoder (the M1 of Kingma et al., 2014).

    Args:
        x: values in [0, 1], `[..., features]`.
        logits: decoded from z, `[..., features]`.
        z: sample of the Gaussian with `mean` and `log_var`, `[..., latent]`.
        mean, log_var: of q(z | x), `[..., latent]`.

    Returns:
        Bounds, `[...]`.
    """
    kl = gaussian_log_density(z, mean, log_var) - gaussian_log_density(z)
    return bernoulli_log_likelihood(x, logits) - kl


def m2_loss(
    bounds: jax.Array,
    log_q: jax.Array,
    semi_targets: jax.Array,
    *,
    alpha: float = 0.1,
) -> jax.Array:
    """Loss of the generative model M2, for classes 0 normal and 1 anomalous.

    A labeled example of class y pays -bound(x, y) - alpha log q(y | x), an unlabeled
    one -(sum over y of q(y | x) bound(x, y)) - entropy of q(y | x): Kingma et al.,
    "Semi-supervised Learning with Deep Generative Models", NIPS 2014, eq. 6, 7 and 9.

    Args:
        bounds: lower bounds of log p(x, y), `[..., 2]`.
        log_q: log-probabilities of the classes given x, `[..., 2]`.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[...]`.
        alpha: weight of the classification of labeled examples, >= 0.

    Returns:
        Losses, `[...]`; `balanced` takes their means over the two groups.

    Raises:
        ValueError: if shapes disagree or alpha is a number below 0.

    >>> bounds, log_q = jnp.array([[-3.0, -5.0]] * 2), jnp.log(jnp.full((2, 2), 0.5))
    >>> m2_loss(bounds, log_q, jnp.array([0, -1]), alpha=0.0).round(1)
    Array([3.3, 5. ], dtype=float32)
    """
    if not arguments.is_within(
        alpha, lambda values: (values >= 0) & (values < math.inf)
    ):
        raise ValueError(f"alpha is {alpha}; it must be >= 0 and finite")
    shapes = (*jnp.shape(semi_targets), 2)
    for name, values in (("bounds", bounds), ("log_q", log_q)):
        if jnp.shape(values) != shapes:
            raise ValueError(
                f"{name} has shape {jnp.shape(values)}, but semi_targets of shape "
                f"{shapes[:-1]} need {shapes}"
            )
    labeled = -bounds - alpha * log_q
    unlabeled = -jnp.sum(jnp.exp(log_q) * (bounds - log_q), axis=-1)
    return arguments.by_label(semi_targets, unlabeled, labeled[..., 0], labeled[..., 1])


def label_counts(semi_targets: jax.Array) -> jax.Array:
    """How many targets are unlabeled and how many are labeled, `[2]` float32."""
    labeled = (jnp.asarray(semi_targets) != 0).astype(jnp.float32)
    return jnp.stack([jnp.sum(1.0 - labeled), jnp.sum(labeled)])


def balanced(
    losses: jax.Array, semi_targets: jax.Array, *, counts: jax.Array | None = None
) -> jax.Array:
    """Losses weighted so that their mean is mean over labeled + mean over unlabeled.

    A batch without labeled, or without unlabeled examples contributes 0 for these.

    Args:
        losses: one for each example of a batch, `[batch]`.
        semi_targets: 0 for unlabeled, +1 or -1 for labeled examples, `[batch]`.
        counts: `label_counts` of the whole batch, where this is a part of one.

    Returns:
        Weighted losses, `[batch]`.

    Raises:
        ValueError: if the shapes differ.

    >>> float(balanced(jnp.array([1.0, 2.0, 6.0]), jnp.array([0, 0, 1])).mean())
    7.5
    """
    arguments.check_equal_shapes("losses", losses, semi_targets)
    counts = label_counts(semi_targets) if counts is None else counts
    weights = jnp.sum(counts) / jnp.maximum(counts, 1.0)
    labeled = jnp.asarray(semi_targets) != 0
    return losses * jnp.where(labeled, weights[1], weights[0])
