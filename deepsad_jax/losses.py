"""Losses of deep anomaly detection: pure, per example, unreduced.

Every function here takes arrays and returns one loss per example, so that the caller
decides how to reduce, mask or weight. All compose with `jax.jit`, `jax.vmap` and
`jax.grad`; all gradients are finite for finite input. This module imports JAX alone.

Two conventions to know:

* distances are *squared* Euclidean distances, without a factor 1/2;
* `semi_targets` are +1 for known normal, 0 for unlabelled and -1 for known anomalies.
"""

import jax
import jax.numpy as jnp


def squared_distance(embeddings: jax.Array, center: jax.Array) -> jax.Array:
    r"""Squared Euclidean distance to the centre, \|z - c\|^2: the anomaly score.

    Args:
        embeddings: encoder outputs, floating, `[..., rep_dim]`.
        center: hypersphere centre, `[rep_dim]`.

    Returns:
        Distances, >= 0, `[...]`. Higher means more anomalous.

    Raises:
        ValueError: if the last axes differ.

    >>> squared_distance(jnp.array([[3.0, 4.0]]), jnp.zeros(2))
    Array([25.], dtype=float32)
    """
    _check_last_axis(embeddings, center)
    return jnp.sum(jnp.square(embeddings - center), axis=-1)


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
    x, reconstruction = jnp.asarray(x), jnp.asarray(reconstruction)
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
    r"""Deep SAD loss of each example: d if unlabelled, eta (d + epsilon)^y if labelled.

    With d = \|z - c\|^2 and y the semi-supervised target. The mean over a batch is the
    data term of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020, eq.
    7. Labelled anomalies (y = -1) pay the inverse distance, so they are pushed away
    from the centre; epsilon bounds that loss by eta / epsilon and keeps its gradient
    finite.

    Args:
        embeddings: encoder outputs, floating, `[..., rep_dim]`.
        semi_targets: +1 known normal, 0 unlabelled, -1 known anomaly, `[...]`.
        center: hypersphere centre, `[rep_dim]`.
        eta: weight of the labelled examples, > 0.
        epsilon: added to the distance of labelled examples, > 0.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if shapes disagree, or eta or epsilon is a number that is not > 0.

    >>> z = jnp.array([[2.0], [2.0], [2.0]])
    >>> deep_sad_loss(z, jnp.array([0, 1, -1]), jnp.zeros(1), eta=0.5)
    Array([4.       , 2.0000005, 0.125    ], dtype=float32)
    """
    _check_positive("eta", eta)
    _check_positive("epsilon", epsilon)
    semi_targets = jnp.asarray(semi_targets)
    if semi_targets.shape != jnp.shape(embeddings)[:-1]:
        raise ValueError(
            f"semi_targets has shape {semi_targets.shape}, but embeddings of shape "
            f"{jnp.shape(embeddings)} need {jnp.shape(embeddings)[:-1]}"
        )
    distance = squared_distance(embeddings, center)
    # The three cases are written out: the gradient of a power with respect to its
    # exponent is not wanted, and every branch has a finite gradient for d >= 0.
    labelled = eta * jnp.where(
        semi_targets > 0, distance + epsilon, 1.0 / (distance + epsilon)
    )
    return jnp.where(semi_targets == 0, distance, labelled)


def one_class_loss(embeddings: jax.Array, center: jax.Array) -> jax.Array:
    """One-class Deep SVDD: Deep SAD without labels, the squared distance itself.

    Ruff et al., "Deep One-Class Classification", ICML 2018, eq. 4.

    Args:
        embeddings: encoder outputs, `[..., rep_dim]`.
        center: hypersphere centre, `[rep_dim]`.

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
        center: hypersphere centre, `[rep_dim]`.
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
    _check_positive("nu", nu)
    if isinstance(nu, (int, float)) and nu > 1:
        raise ValueError(f"nu is {nu}; it must be in (0, 1]")
    squared_radius = jnp.square(radius)
    excess = squared_distance(embeddings, center) - squared_radius
    return squared_radius + jnp.maximum(excess, 0.0) / nu


def clamp_center(center: jax.Array, *, minimum: float = 0.1) -> jax.Array:
    """Moves the components of a centre that are too close to zero away from it.

    A component near zero can be matched by zero weights, so the network could collapse
    to a constant. Components of magnitude under `minimum` become +-`minimum`, keeping
    their sign; an exact zero becomes +`minimum`.

    Args:
        center: hypersphere centre, `[..., rep_dim]`.
        minimum: smallest magnitude left, >= 0.

    Returns:
        The clamped centre, of the same shape.

    >>> clamp_center(jnp.array([-0.02, 0.0, 0.5]))
    Array([-0.1,  0.1,  0.5], dtype=float32)
    """
    sign = jnp.where(center < 0, -1.0, 1.0)
    return jnp.where(jnp.abs(center) < minimum, minimum * sign, center)


def _check_last_axis(embeddings: jax.Array, center: jax.Array) -> None:
    embeddings, center = jnp.shape(embeddings), jnp.shape(center)
    if not embeddings or not center or embeddings[-1] != center[-1]:
        raise ValueError(
            f"embeddings have shape {embeddings} and the center has shape {center}; "
            "their last axes must be equal"
        )


def _check_positive(name: str, value: float) -> None:
    # Traced values cannot be inspected; they are the caller's responsibility.
    if isinstance(value, (int, float)) and not value > 0:
        raise ValueError(f"{name} is {value}; it must be > 0")
