"""Cheap detectors that judge beside the networks, where labels are few.

    linear      known anomalies against all others: logistic regression, shrunk so far
                that it nearly is the difference of means, of columns that are made
                normal by their ranks
    forest      the same by a random forest with large leaves
    extra       and by extremely randomized trees
    isolation   Isolation Forest, which sees no labels

Each is fitted by scikit-learn and scored as arrays. docs/few_labels.md says what each
of them is worth.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from deepsad_jax import forward, trees

# What is fitted, and its variables.
Fitted = tuple[Any, dict[str, Any]]
_TREES, _SAMPLES = 100, 256
# Values of rows from which on threads save more than they cost.
_MANY = 2**16
# Rows in a leaf, at least, of many rows.
_LEAVES = {"forest": 30, "extra": 10}
_KNOTS, _FAR = 257, 3.0
_INVERSE_PENALTY = 1e-3
_WIDEST = 4096  # features that they look at
# Values are equal that differ by less, in ranges of their column.
_EQUAL = 1e-6


@dataclasses.dataclass(frozen=True)
class Linear:
    """Log-odds of a linear function of columns that are made normal by their ranks."""

    def score(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """`[batch]`, of `[batch, ...]`.

        Args:
            variables: `params` with the quantiles `knots` `[K, D]` of the training
                rows, `weights` `[D]` and `bias`.
            x: prepared examples.
        """
        params = variables["params"]
        terms = self.embed(variables, x) * params["weights"]
        return terms.shape[1] * trees.in_order(terms) + params["bias"]

    def embed(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """The normal columns, `[batch, D]`."""
        return normal(variables["params"]["knots"], x)


def normal(knots: jax.typing.ArrayLike, x: jax.typing.ArrayLike) -> jax.Array:
    """Columns as normal scores of their ranks among the training rows, within +-3.

    Args:
        knots: ascending quantiles of each column, `[K, D]`; of equal ones the middle
            counts.
        x: `[batch, ...]`, D values each.

    Returns:
        `[batch, D]` float32.
    """
    knots = jnp.asarray(knots, jnp.float32)
    columns = jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)
    # What rounding has moved beside one of equal knots is still equal to them.
    nearly = _EQUAL * (knots[-1] - knots[0])
    above = _places(columns + nearly, knots)
    below = 1.0 - _places(nearly - columns, -knots[::-1])
    least = special.ndtr(-_FAR)
    rank = jnp.clip(0.5 * (above + below), least, 1.0 - least)
    return special.ndtri(rank)


def _places(x, knots):
    """Where values lie among the ascending knots of their columns, in [0, 1].

    As `jnp.interp` of each column, but by gathers that can leave as ONNX, too.
    """
    size, columns = knots.shape
    grid, flat = jnp.linspace(0.0, 1.0, size), knots.reshape(-1)
    at = lambda i: flat[i * columns + np.arange(columns, dtype=np.int32)]  # noqa: E731
    upper, step = jnp.ones(x.shape, jnp.int32), 1 << size.bit_length()
    while step := step // 2:
        next_ = jnp.minimum(upper + step, size - 1)
        upper = jnp.where(at(next_ - 1) <= x, next_, upper)
    low, high = at(upper - 1), at(upper)
    width = high - low
    is_flat = width <= np.spacing(np.finfo(np.float32).eps)
    share = (x - low) / jnp.where(is_flat, 1, width)
    first = grid[upper - 1]
    found = jnp.where(is_flat, first, first + share * (grid[upper] - first))
    return jnp.where(x < knots[0], grid[0], jnp.where(x > knots[-1], grid[-1], found))


def flat(x: Any) -> Any:
    """Examples as rows `[n, D]`; large images and long series are halved until D is at
    most 4,096, by means of neighboring values.

    Args:
        x: `[n, ...]` floating, the last axis being that of channels.
    """
    while x.ndim > 2 and math.prod(x.shape[1:]) > _WIDEST and max(x.shape[1:-1]) > 1:
        for axis in range(1, x.ndim - 1):
            half = x.shape[axis] // 2
            if half:
                pairs = (*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
                cut = x[(slice(None),) * axis + (slice(2 * half),)]
                x = cut.reshape(pairs).mean(axis=axis + 1)
    return x.reshape(x.shape[0], -1)


def weights(semi_targets: np.ndarray) -> np.ndarray:
    """What each row counts, `[n]`, 1 on average: known anomalies half of all.

    Of the other half, known normal rows have as much each as a known anomaly, but no
    more than half of it; unlabeled rows share the rest.
    """
    known = [semi_targets == kind for kind in (-1, 1)]
    anomalies, normals = (int(one.sum()) for one in known)
    one = 0.5 / max(1, anomalies)
    normal = min(one, 0.25 / normals) if normals else 0.0
    if anomalies + normals == len(semi_targets):
        normal = 0.5 / max(1, normals)
    rest = max(1, len(semi_targets) - anomalies - normals)
    return len(semi_targets) * np.select(
        known, [one, normal], (0.5 - normals * normal) / rest
    )


def fit_linear(x: np.ndarray, semi_targets: np.ndarray, seed: int) -> Fitted:
    """Linear, of rows `[n, D]`, which count as `weights` says."""
    from sklearn import linear_model

    del seed  # nothing is drawn
    steps = np.linspace(0, len(x) - 1, min(_KNOTS, len(x))).round().astype(int)
    knots = np.sort(x, axis=0)[steps].astype(np.float32)
    machine = linear_model.LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000)
    params = {"knots": knots}
    columns = forward.evaluate(Linear(), "embed", {"params": params}, x)
    machine.fit(columns, semi_targets == -1, weights(semi_targets))
    params["weights"] = machine.coef_[0].astype(np.float32)
    params["bias"] = np.float32(machine.intercept_[0])
    return Linear(), {"params": params}


def fit_forest(
    x: np.ndarray, semi_targets: np.ndarray, seed: int, kind: str = "forest"
) -> Fitted:
    """A random forest, or extremely randomized trees, whose leaves are large.

    Rows count as `weights` says.
    """
    from sklearn import ensemble

    made = {
        "forest": ensemble.RandomForestClassifier,
        "extra": ensemble.ExtraTreesClassifier,
    }
    grown = made[kind](
        _TREES,
        min_samples_leaf=int(np.clip(len(x) // 20, 1, _LEAVES[kind])),
        random_state=seed,
        n_jobs=-1 if x.size > _MANY else 1,
    ).fit(x.astype(np.float32), semi_targets == -1, weights(semi_targets))

    def share(tree, depths):
        weights = tree.value[:, 0]
        return weights[:, 1] / weights.sum(axis=1)

    return _forest(grown, share)


def fit_extra(x: np.ndarray, semi_targets: np.ndarray, seed: int) -> Fitted:
    """Extremely randomized trees."""
    return fit_forest(x, semi_targets, seed, "extra")


def fit_isolation(x: np.ndarray, semi_targets: np.ndarray, seed: int) -> Fitted:
    """Isolation Forest of the rows that are not known anomalies: minus path lengths."""
    from sklearn import ensemble

    from deepsad_jax.detectors import isolation_forest

    rows = x[semi_targets != -1].astype(np.float32)
    grown = ensemble.IsolationForest(
        n_estimators=_TREES, max_samples=min(_SAMPLES, len(rows)), random_state=seed
    ).fit(rows)
    return _forest(grown, lambda *node: -isolation_forest.lengths(*node))


def _forest(grown, values_of) -> Fitted:
    depth, params = trees.arrays([one.tree_ for one in grown.estimators_], values_of)
    params["values"] = params["values"].astype(np.float32)
    return trees.Forest(), {"params": {**params, "depth": np.int32(depth)}}


FITS: dict[str, Callable[[np.ndarray, np.ndarray, int], Fitted]] = {
    "linear": fit_linear,
    "forest": fit_forest,
    "extra": fit_extra,
    "isolation": fit_isolation,
}
NAMES = tuple(FITS)
# Those that tell known anomalies from the rest.
SUPERVISED = ("linear", "forest", "extra")
