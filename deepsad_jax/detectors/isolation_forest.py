"""Isolation Forest (Liu et al., 2008), grown by scikit-learn and scored by JAX."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import kernels, parallel, selection, trees

Fitted = selection.Fitted


@dataclasses.dataclass(frozen=True)
class Trees:
    """What scores with a forest's arrays; see `fit`.

    Attributes:
        depth: of the deepest tree, >= 0.
    """

    depth: int
    float64: ClassVar[bool] = True

    def score(self, variables: dict[str, Any], x: jax.typing.ArrayLike) -> jax.Array:
        """Minus scikit-learn's `score_samples`, `[batch]` float64, in (0, 1)."""
        return _score(self.depth, variables["params"], x)


def fit(
    x: np.ndarray, *, n_trees: int = 100, n_samples: int = 256, seed: int = 0
) -> Fitted:
    """Grows a forest.

    Args:
        x: examples, `[n, D]` of real numbers, read as float32.
        n_trees: >= 1.
        n_samples: examples that each tree sees, >= 2; all where there are fewer.
        seed: scikit-learn's random state.

    Returns:
        The objective and its variables: the arrays of `trees.arrays`, whose values are
        `lengths`, of the paths; and `normalizer`, the mean length in a random tree.

    Raises:
        ValueError: for wrong options or examples.
    """
    import sklearn.ensemble

    kernels.check_number("n_trees", n_trees, 1, whole=True)
    kernels.check_number("n_samples", n_samples, 2, whole=True)
    rows = np.asarray(kernels.in_float64(kernels.as_rows)(x))
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    if not np.all(np.isfinite(rows)):
        raise ValueError("x has values too large for float32; scale x")
    forest = sklearn.ensemble.IsolationForest(
        n_estimators=int(n_trees),
        max_samples=min(int(n_samples), len(rows)),
        random_state=seed,
    ).fit(rows)
    depth, params = trees.arrays(
        [estimator.tree_ for estimator in forest.estimators_], lengths
    )
    params["lengths"] = params.pop("values")
    params["normalizer"] = _mean_length(np.array(forest.max_samples_))
    return Trees(depth), {"params": params}


@dataclasses.dataclass(frozen=True)
class IsolationForest(selection.Shallow):
    """Isolation Forest.

    Attributes:
        n_trees: >= 1.
        n_samples: examples that each tree sees, >= 2; all where there are fewer.
        selection: none; there is nothing to choose.
    """

    n_trees: int = 100
    n_samples: int = 256
    selection: str = ""
    method: ClassVar[str] = "isoforest"

    def check_options(self, semi_targets: np.ndarray) -> None:
        del semi_targets
        kernels.check_number("n_trees", self.n_trees, 1, whole=True)
        kernels.check_number("n_samples", self.n_samples, 2, whole=True)

    def default(self, x: np.ndarray, seed: int) -> float:
        return 0.0

    def prepare(
        self,
        x: np.ndarray,
        semi_targets: np.ndarray,
        seed: int,
        tell: Callable[[float], None] | None = None,
    ) -> Callable[[float], Fitted]:
        options = {"n_trees": self.n_trees, "n_samples": self.n_samples}
        return lambda _: fit(x, seed=seed, **options)


def lengths(tree, depths: np.ndarray) -> np.ndarray:
    """Of the paths that end in nodes; of a node of several examples, in the mean."""
    return depths + _mean_length(tree.n_node_samples)


def _mean_length(size: np.ndarray) -> np.ndarray:
    """Mean length of a path in a random tree of so many examples (its equation 1)."""
    inner = np.maximum(size, 3) - 1.0
    many = 2 * (np.log(inner) + np.euler_gamma) - 2 * inner / (inner + 1)
    return np.where(size > 2, many, np.where(size == 2, 1.0, 0.0))


@kernels.in_float64
def _score(depth, params, examples):
    # float32 rows against thresholds in float32: the comparisons of scikit-learn.
    rows = kernels.as_rows(examples).astype(jnp.float32)
    return _path_score(depth, params, rows)


@functools.partial(parallel.compiled, static=(0,))
def _path_score(depth, params, rows):
    nodes = trees.leaves(depth, params, rows)
    lengths = params["lengths"].reshape(-1)[nodes]
    lengths = jnp.mean(lengths.astype(jnp.float64), axis=1)
    normalizer = params["normalizer"]
    # Of a single example there is no path.
    relative = lengths / jnp.where(normalizer > 0, normalizer, 1.0)
    return 2.0 ** -jnp.where(normalizer > 0, relative, 1.0)
