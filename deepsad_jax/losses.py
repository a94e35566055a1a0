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

import math

import jax
import jax.numpy as jnp
import numpy as np

_LOG_2PI = math.log(2.0 * math.pi)


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
    _check_last_axis(embeddings, center)
    return jnp.sum(jnp.square(_wide(embeddings) - center), axis=-1)


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
    x, reconstruction = _wide(x), _wide(reconstruction)
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
            of a smaller one is no float32 number.

    Returns:
        Losses, >= 0, `[...]`.

    Raises:
        ValueError: if shapes disagree, or eta, epsilon or a target is not allowed.

    >>> z = jnp.array([[2.0], [2.0], [2.0]])
    >>> deep_sad_loss(z, jnp.array([0, 1, -1]), jnp.zeros(1), eta=0.5).round(3)
    Array([4.   , 2.   , 0.125], dtype=float32)
    """
    _check_positive("eta", eta)
    _check_epsilon(epsilon)
    _check_semi_targets(semi_targets, embeddings)
    distance = squared_distance(embeddings, center)
    # The three cases are written out: the gradient of a power with respect to its
    # exponent is not wanted, and every branch has a finite gradient for d >= 0.
    away = distance + epsilon
    return _by_label(semi_targets, distance, eta * away, eta * (1.0 / away))


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
    if not _is_within(nu, lambda values: (values > 0) & (values <= 1)):
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
    _check_positive("eta", eta)
    _check_epsilon(epsilon)
    _check_semi_targets(semi_targets, embeddings)
    distance = squared_distance(embeddings, center)
    # sqrt(d + 1) - 1 without cancellation for small d, nor inf / inf for huge ones.
    small = jnp.minimum(distance, 1.0)
    huber = jnp.where(
        distance >= 1.0,
        jnp.sqrt(distance + 1.0) - 1.0,
        small / (jnp.sqrt(small + 1.0) + 1.0),
    )
    anomalous = -jnp.log(-jnp.expm1(-(huber + epsilon)))
    return _by_label(semi_targets, huber, eta * huber, eta * anomalous)


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
        _check_positive(name, value)
    _check_equal_shapes("scores", scores, semi_targets)
    deviation = (_wide(scores) - mean) / std
    normal = jnp.abs(deviation)
    anomalous = jnp.maximum(margin - deviation, 0.0)
    return _by_label(semi_targets, normal, eta * normal, eta * anomalous)


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
    _check_equal_shapes("logits", logits, semi_targets)
    logits = _wide(logits)
    normal = jax.nn.softplus(logits)
    return _by_label(semi_targets, normal, normal, jax.nn.softplus(-logits))


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
    if not _is_within(alpha, lambda values: (values >= 0) & (values < math.inf)):
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
    return _by_label(semi_targets, unlabeled, labeled[..., 0], labeled[..., 1])


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
    _check_equal_shapes("losses", losses, semi_targets)
    counts = label_counts(semi_targets) if counts is None else counts
    weights = jnp.sum(counts) / jnp.maximum(counts, 1.0)
    labeled = jnp.asarray(semi_targets) != 0
    return losses * jnp.where(labeled, weights[1], weights[0])


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


def _check_last_axis(embeddings: jax.Array, center: jax.Array) -> None:
    embeddings, center = np.shape(embeddings), np.shape(center)
    if not embeddings or not center or embeddings[-1] != center[-1]:
        raise ValueError(
            f"embeddings have shape {embeddings} and the center has shape {center}; "
            "their last axes must be equal"
        )


def _check_semi_targets(semi_targets: jax.Array, embeddings: jax.Array) -> None:
    if jnp.shape(semi_targets) != jnp.shape(embeddings)[:-1]:
        raise ValueError(
            f"semi_targets has shape {jnp.shape(semi_targets)}, but embeddings of "
            f"shape {jnp.shape(embeddings)} need {jnp.shape(embeddings)[:-1]}"
        )
    _refuse_booleans(semi_targets)


def _check_equal_shapes(name: str, values: jax.Array, semi_targets: jax.Array) -> None:
    if jnp.shape(values) != jnp.shape(semi_targets):
        raise ValueError(
            f"semi_targets has shape {jnp.shape(semi_targets)}, but {name} has shape "
            f"{jnp.shape(values)}; they must be equal"
        )
    _refuse_booleans(semi_targets)


def _refuse_booleans(semi_targets: jax.Array) -> None:
    if jnp.issubdtype(jnp.result_type(semi_targets), jnp.bool_):
        raise ValueError(
            "semi_targets holds booleans, which may mean either; give 1 known normal, "
            "0 unlabeled, -1 known anomaly"
        )


def _by_label(semi_targets, unlabeled, normal, anomalous) -> jax.Array:
    if not isinstance(semi_targets, jax.core.Tracer):
        targets = np.ravel(semi_targets)
        strange = targets[~np.isin(targets, (-1, 0, 1))]
        if len(strange):
            raise ValueError(
                f"semi_targets contains {strange[0]}; allowed are +1 (known normal), 0 "
                "(unlabeled) and -1 (known anomaly)"
            )
    semi_targets = jnp.asarray(semi_targets)
    other = jnp.where(semi_targets == -1, anomalous, jnp.nan)
    labeled = jnp.where(semi_targets == 1, normal, other)
    return jnp.where(semi_targets == 0, unlabeled, labeled)


def _wide(x: jax.typing.ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype == jnp.float16:
        return _from_half(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def _from_half(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _clipped(_, gradient):
    # Near the center, those of anomalies are beyond the range of float16.
    most = float(jnp.finfo(jnp.float16).max)
    return (jnp.clip(gradient, -most, most).astype(jnp.float16),)


_from_half.defvjp(lambda x: (x.astype(jnp.float32), None), _clipped)


def _check_positive(name: str, value: float) -> None:
    if not _is_within(value, lambda values: (values > 0) & (values < math.inf)):
        raise ValueError(f"{name} is {value}; it must be > 0 and finite")


def _check_epsilon(epsilon: float) -> None:
    if not _is_within(epsilon, lambda e: (e >= 1e-12) & (e < math.inf)):
        raise ValueError(f"epsilon is {epsilon}; it must be at least 1e-12 and finite")


def _is_within(value, is_allowed) -> bool:
    """Whether a value is a number, or an array of such, that is allowed."""
    if isinstance(value, jax.core.Tracer):
        return True  # cannot be looked at: it is the caller's responsibility
    values = np.asarray(value)
    is_real = values.dtype.kind in "iu" or jnp.issubdtype(values.dtype, jnp.floating)
    return is_real and bool(np.all(is_allowed(values)))
