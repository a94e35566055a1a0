"""What all losses do with their arguments: refuse, widen, tell labels apart."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def check_last_axis(embeddings: jax.Array, center: jax.Array) -> None:
    """Raises ValueError unless embeddings are as wide as the center."""
    embeddings, center = np.shape(embeddings), np.shape(center)
    if not embeddings or not center or embeddings[-1] != center[-1]:
        raise ValueError(
            f"embeddings have shape {embeddings} and the center has shape {center}; "
            "their last axes must be equal"
        )


def check_semi_targets(semi_targets: jax.Array, embeddings: jax.Array) -> None:
    """Raises ValueError unless there is a target for each embedding."""
    if jnp.shape(semi_targets) != jnp.shape(embeddings)[:-1]:
        raise ValueError(
            f"semi_targets has shape {jnp.shape(semi_targets)}, but embeddings of "
            f"shape {jnp.shape(embeddings)} need {jnp.shape(embeddings)[:-1]}"
        )
    _refuse_booleans(semi_targets)


def check_equal_shapes(name: str, values: jax.Array, semi_targets: jax.Array) -> None:
    """Raises ValueError unless there is a target for each value."""
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


def by_label(semi_targets, unlabeled, normal, anomalous) -> jax.Array:
    """What each target means of three arrays; NaN for a traced one that is none."""
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


def wide(x: jax.typing.ArrayLike) -> jax.Array:
    """An array in float32, or wider; what is narrower is widened."""
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


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless a number is > 0 and finite."""
    if not is_within(value, lambda values: (values > 0) & (values < math.inf)):
        raise ValueError(f"{name} is {value}; it must be > 0 and finite")


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError for an epsilon whose gradient is not a float32 number."""
    if not is_within(epsilon, lambda e: (e >= 1e-12) & (e < math.inf)):
        raise ValueError(f"epsilon is {epsilon}; it must be at least 1e-12 and finite")


def is_within(value, is_allowed) -> bool:
    """Whether a value is a number, or an array of such, that is allowed."""
    if isinstance(value, jax.core.Tracer):
        return True  # cannot be looked at: it is the caller's responsibility
    values = np.asarray(value)
    is_real = values.dtype.kind in "iu" or jnp.issubdtype(values.dtype, jnp.floating)
    return is_real and bool(np.all(is_allowed(values)))
