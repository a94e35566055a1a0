"""Losses of deep anomaly detection: pure, per example, unreduced.

Every function here takes arrays and returns one number per example, so that the caller
decides how to reduce, mask or weight. All compose with `jax.jit`, `jax.vmap` and
`jax.grad`. The losses on embeddings and scores have finite gradients for all finite
input; the Gaussian terms as long as exp(log_var) and exp(-log_var) are finite. Numbers
narrower than float32 are widened first. This module imports JAX alone.

Three conventions to know:

* distances are *squared* Euclidean distances, without a factor 1/2;
* `semi_targets` are +1 for known normal, 0 for unlabeled and -1 for known anomalies;
  another value is refused or, where it is traced and cannot be seen, gives NaN;
* hyper-parameters are checked unless they are traced.
"""

import jax
import jax.numpy as jnp

from deepsad_jax.losses import arguments
from deepsad_jax.losses.generative import (
    balanced,
    bernoulli_log_likelihood,
    evidence_lower_bound,
    gaussian_kl,
    gaussian_log_density,
    label_counts,
    m2_loss,
)

__all__ = [
    "squared_distance",
    "reconstruction_error",
    "deep_sad_loss",
    "one_class_loss",
    "soft_boundary_loss",
    "hypersphere_loss",
    "deviation_loss",
    "classification_loss",
    "clamp_center",
    "bernoulli_log_likelihood",
    "gaussian_log_density",
    "gaussian_kl",
    "evidence_lower_bound",
    "m2_loss",
    "label_counts",
    "balanced",
]


def squared_distance(embeddings: jax.Array, center: jax.Array) -> jax.Array:
    r"""Squared Euclidean distance to the center, \|z - c\|^2: the anomaly score.

    Args:
        embeddings: encoder outputs, floating, `[..., rep_dim]`.
        center: hypersphere center, `[rep_dim]`.

    Returns:
        Distances, >= 0, `[...]`. Higher means more anomalous.

    Raises:
        ValueError: if the last axes differ.

    >>> squared_distance(jnp.array([[3.0, 4.0]]), jnp.zeros(2))
    Array([25.], dtype=float32)
    """
    arguments.check_last_axis(embeddings, center)
    return jnp.sum(jnp.square(arguments.wide(embeddings) - center), axis=-1)


def reconstruction_error(
    x: jax.Array,
    reconstruction: jax.Array,
    *,
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Squared error of an autoencoder, *averaged* over the features of each example.

    The mean, not the sum, over pixels and channels: the mean of the result over a batch
    is the mean squared error over every element.

    Args:
        x: inputs, `[batch, ...]`.
        reconstruction: outputs of the autoencoder, of the same shape.
        axis: the feature axes; by default all but the first.

    Returns:
        Errors, >= 0, `[batch]`.

    Raises:
        ValueError: if the shapes differ.

    >>> reconstruction_error(jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 1.0]]))
    Array([0.5], dtype=float32)
    """
    x, reconstruction = arguments.wide(x), arguments.wide(reconstruction)
    if x.shape != reconstruction.shape:
        raise ValueError(
            f"reconstruction has shape {reconstruction.shape}, "
            f"but x has shape {x.shape}; they must be equal"
        )
    axis = tuple(range(1, x.ndim)) if axis is None else axis
    return jnp.mean(jnp.square(x - reconstruction), axis=axis)


def deep_sad_loss(
    embeddings: jax.Array,
    semi_targets: jax.Array,
    center: jax.Array,
    *,
    eta: float = 1.0,
    epsilon: float = 1e-6,
) -> jax.Array:
    r"""Deep SAD loss of each example: d if unlabeled, eta (d + epsilon)^y if labeled.

    With d = \|z - c\|^2 and y the semi-supervised target. The mean over a batch is the
    data term of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, eq.
    7. Labeled anomalies (y = -1) pay the inverse distance, so they are pushed away
    from the center; epsilon bounds that loss by eta / epsilon and keeps its gradient
    finite.

    Args:
        embeddings: encoder outputs, floating, `[..., rep_dim]`.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[...]`.
        center: hypersphere center, `[rep_dim]`.
        eta: weight of the labeled examples, > 0.
        epsilon: added to the distance of labeled examples, at least 1e-12: the gradient
            of a smaller one is not a float32 number.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if shapes disagree, or eta, epsilon or a target is not allowed.

    >>> z = jnp.array([[2.0], [2.0], [2.0]])
    >>> deep_sad_loss(z, jnp.array([0, 1, -1]), jnp.zeros(1), eta=0.5).round(3)
    Array([4.   , 2.   , 0.125], dtype=float32)
    """
    arguments.check_positive("eta", eta)
    arguments.check_epsilon(epsilon)
    arguments.check_semi_targets(semi_targets, embeddings)
    distance = squared_distance(embeddings, center)
    # The three cases are written out: the gradient of a power with respect to its
    # exponent is not wanted, and every branch has a finite gradient for d >= 0.
    away = distance + epsilon
    return arguments.by_label(semi_targets, distance, eta * away, eta * (1.0 / away))


def one_class_loss(embeddings: jax.Array, center: jax.Array) -> jax.Array:
    """One-class Deep SVDD: Deep SAD without labels, the squared distance itself.

    Ruff et al., "Deep One-Class Classification", ICML 2018, eq. 4.

    Args:
        embeddings: encoder outputs, `[..., rep_dim]`.
        center: hypersphere center, `[rep_dim]`.

    Returns:
        Losses, >= 0, `[...]`.
    """
    return squared_distance(embeddings, center)


def soft_boundary_loss(
    embeddings: jax.Array, center: jax.Array, radius: jax.Array, *, nu: float = 0.1
) -> jax.Array:
    r"""Soft-boundary Deep SVDD: R^2 + max(0, \|z - c\|^2 - R^2) / nu.

    Ruff et al., "Deep One-Class Classification", ICML 2018, eq. 3: its mean over a
    batch is the data term. The score that goes with it is `squared_distance(...) -
    radius**2`.

    Args:
        embeddings: encoder outputs, `[..., rep_dim]`.
        center: hypersphere center, `[rep_dim]`.
        radius: radius R (not its square) of the hypersphere, >= 0, scalar.
        nu: trade-off, an upper bound on the share of examples outside, in (0, 1].

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if nu is a number outside (0, 1].

    >>> z = jnp.array([[1.0], [3.0]])
    >>> soft_boundary_loss(z, jnp.zeros(1), jnp.array(2.0), nu=0.5)
    Array([ 4., 14.], dtype=float32)
    """
    if not arguments.is_within(nu, lambda values: (values > 0) & (values <= 1)):
        raise ValueError(f"nu is {nu}; it must be in (0, 1]")
    squared_radius = jnp.square(radius)
    excess = squared_distance(embeddings, center) - squared_radius
    return squared_radius + jnp.maximum(excess, 0.0) / nu


def hypersphere_loss(
    embeddings: jax.Array,
    semi_targets: jax.Array,
    center: jax.Array,
    *,
    eta: float = 1.0,
    epsilon: float = 1e-6,
) -> jax.Array:
    r"""Hypersphere classification: cross-entropy of the probability exp(-h) of normal.

    With the pseudo-Huber distance h = sqrt(\|z - c\|^2 + 1) - 1: h for unlabeled
    examples, eta h for known normal ones and -eta log(1 - exp(-h)) for known anomalies.
    Ruff et al., "Rethinking Assumptions in Deep Anomaly Detection", 2021, eq. 3 and 4.

    Args:
        embeddings: encoder outputs, floating, `[..., rep_dim]`.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[...]`.
        center: hypersphere center, `[rep_dim]`; the publication's is the origin.
        eta: weight of the labeled examples, > 0.
        epsilon: added to h of known anomalies, at least 1e-12; bounds their loss and
            its gradient.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if shapes disagree, or eta, epsilon or a target is not allowed.

    >>> z = jnp.array([[0.0], [jnp.sqrt(3.0)], [jnp.sqrt(3.0)]])
    >>> hypersphere_loss(z, jnp.array([0, 1, -1]), jnp.zeros(1)).round(4)
    Array([0.    , 1.    , 0.4587], dtype=float32)
    """
    arguments.check_positive("eta", eta)
    arguments.check_epsilon(epsilon)
    arguments.check_semi_targets(semi_targets, embeddings)
    distance = squared_distance(embeddings, center)
    # sqrt(d + 1) - 1 without cancellation for small d, nor inf / inf for huge ones.
    small = jnp.minimum(distance, 1.0)
    huber = jnp.where(
        distance >= 1.0,
        jnp.sqrt(distance + 1.0) - 1.0,
        small / (jnp.sqrt(small + 1.0) + 1.0),
    )
    anomalous = -jnp.log(-jnp.expm1(-(huber + epsilon)))
    return arguments.by_label(semi_targets, huber, eta * huber, eta * anomalous)


def deviation_loss(
    scores: jax.Array,
    semi_targets: jax.Array,
    *,
    eta: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    margin: float = 5.0,
) -> jax.Array:
    """Deviation loss: scores of normal examples near the prior's mean, others above.

    With the deviation d = (score - mean) / std from a Gaussian prior of normal scores:
    |d| for unlabeled, eta |d| for known normal examples and eta max(0, margin - d) for
    known anomalies. Pang et al., "Deep Anomaly Detection with Deviation Networks", KDD
    2019, eq. 6 and 7; there the moments of the prior are those of a sample of it.

    Args:
        scores: anomaly scores, higher = more anomalous, floating, `[...]`.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[...]`.
        eta: weight of the labeled examples, > 0; the publication's is 1.
        mean: of the prior.
        std: standard deviation of the prior, > 0.
        margin: how many standard deviations anomalies shall lie above the mean, > 0.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if the shapes differ, or eta, std or margin is a number not > 0.

    >>> deviation_loss(jnp.array([-2.0, 3.0, 3.0, 9.0]), jnp.array([0, 1, -1, -1]))
    Array([2., 3., 2., 0.], dtype=float32)
    """
    for name, value in (("eta", eta), ("std", std), ("margin", margin)):
        arguments.check_positive(name, value)
    arguments.check_equal_shapes("scores", scores, semi_targets)
    deviation = (arguments.wide(scores) - mean) / std
    normal = jnp.abs(deviation)
    anomalous = jnp.maximum(margin - deviation, 0.0)
    return arguments.by_label(semi_targets, normal, eta * normal, eta * anomalous)


def classification_loss(logits: jax.Array, semi_targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of known anomalies against all other examples.

    Unlabeled examples count as normal, since most of them are: the supervised baseline
    of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, section 4.

    Args:
        logits: log-odds of being an anomaly, floating, `[...]`.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, `[...]`.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if the shapes differ.

    >>> classification_loss(jnp.zeros(3), jnp.array([0, 1, -1])).round(4)
    Array([0.6931, 0.6931, 0.6931], dtype=float32)
    """
    arguments.check_equal_shapes("logits", logits, semi_targets)
    logits = arguments.wide(logits)
    normal = jax.nn.softplus(logits)
    return arguments.by_label(semi_targets, normal, normal, jax.nn.softplus(-logits))


def clamp_center(center: jax.Array, *, minimum: float = 0.1) -> jax.Array:
    """Moves the components of a center that are too close to zero away from it.

    A component near zero can be matched by zero weights, so the network could collapse
    to a constant. Components of magnitude under `minimum` become +-`minimum`, keeping
    their sign; an exact zero becomes +`minimum`.

    Args:
        center: hypersphere center, `[..., rep_dim]`.
        minimum: smallest magnitude left, >= 0.

    Returns:
        The clamped center, of the same shape.

    >>> clamp_center(jnp.array([-0.02, 0.0, 0.5]))
    Array([-0.1,  0.1,  0.5], dtype=float32)
    """
    sign = jnp.where(center < 0, -1.0, 1.0)
    return jnp.where(jnp.abs(center) < minimum, minimum * sign, center)
