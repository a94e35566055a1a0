"""Forests of scikit-learn as plain arrays: saved without pickles, scored by JAX.

A tree is an array of nodes; all examples descend all trees at once, one level a step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import parallel

# The threshold of leaves: all numbers stay.
_HIGHEST = np.finfo(np.float32).max
_FEWEST = 64  # nodes
_OF_NODES = ("features", "thresholds", "children")


def arrays(
    trees: Sequence[Any], values_of: Callable[[Any, np.ndarray], np.ndarray]
) -> tuple[int, dict[str, np.ndarray]]:
    """What descends trees that were grown on float32.

    Args:
        trees: `tree_` of scikit-learn's estimators.
        values_of: called with a tree and the depths of its nodes, `[nodes]`; returns
            the value of each node.

    Returns:
        The depth of the deepest tree, and arrays of `[trees, nodes]`: `features` and
        `thresholds` (an example goes to the first child up to the threshold),
        `children` `[trees, nodes, 2]` (of a leaf, itself) and `values` float64. The
        number of nodes is a power of two, so that forests of like size share programs.
    """
    nodes = max(tree.node_count for tree in trees)
    shape = len(trees), max(_FEWEST, 2 ** (nodes - 1).bit_length())
    features, values = np.zeros(shape, np.int32), np.zeros(shape)
    thresholds = np.full(shape, _HIGHEST)
    children = np.zeros((*shape, 2), np.int32)
    deepest = 0
    for i, tree in enumerate(trees):
        own, inner = slice(tree.node_count), tree.children_left >= 0
        features[i, own] = np.where(inner, tree.feature, 0)
        thresholds[i, own] = np.where(inner, _rounded_down(tree.threshold), _HIGHEST)
        both = np.stack([tree.children_left, tree.children_right], axis=1)
        leaf = np.arange(tree.node_count)[:, None]
        children[i, own] = np.where(inner[:, None], both, leaf)
        depths = np.zeros(tree.node_count)
        for node in np.flatnonzero(inner):  # parents come before their children
            depths[both[node]] = depths[node] + 1
        values[i, own] = values_of(tree, depths)
        deepest = max(deepest, int(depths.max()))
    made = {"features": features, "thresholds": thresholds, "children": children}
    return deepest, {**made, "values": values}


@parallel.compiled
def leaves(
    depth: jax.typing.ArrayLike, params: dict[str, jax.Array], rows: jax.Array
) -> jax.Array:
    """Where examples end: numbers of nodes, counted over all trees, `[batch, trees]`.

    Args:
        depth: of the deepest tree.
        params: `features`, `thresholds` and `children` of `arrays`.
        rows: `[batch, D]` float32, which compare as in scikit-learn.
    """
    rows, (trees, size) = lax.stop_gradient(rows), params["features"].shape
    flat = {name: jnp.reshape(params[name], -1) for name in _OF_NODES}
    first = size * np.arange(trees, dtype=np.int32)

    def descend(_, nodes):
        at = first + nodes
        values = jnp.take_along_axis(rows, flat["features"][at], axis=1)
        right = values > flat["thresholds"][at]
        return flat["children"][2 * at + right.astype(jnp.int32)]

    nodes = jnp.zeros((rows.shape[0], trees), jnp.int32)
    return first + lax.fori_loop(0, depth, descend, nodes)


@dataclasses.dataclass(frozen=True)
class Forest:
    """The mean over trees of the values of the leaves where an example ends."""

    def score(self, variables: dict[str, Any], x: jax.Array) -> jax.Array:
        """`[batch]`, of `[batch, ...]`.

        Args:
            variables: `params`, those of `arrays`, and `depth`.
            x: prepared examples.
        """
        params = jax.tree.map(jnp.asarray, variables["params"])
        x = jnp.asarray(x, jnp.float32).reshape(x.shape[0], -1)
        nodes = leaves(params["depth"], params, x)
        return in_order(params["values"].reshape(-1)[nodes])


def in_order(values: jax.Array) -> jax.Array:
    """The mean of `[batch, n]` over n, the same bits for any number of rows.

    XLA groups the terms of a sum by the shape of the whole.
    """
    zeros = jnp.zeros(values.shape[0], values.dtype)
    add = lambda i, total: total + values[:, i]  # noqa: E731
    return lax.fori_loop(0, values.shape[1], add, zeros) / values.shape[1]


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 up to a float64: as much for what float32 it is not below."""
    rounded = thresholds.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded > thresholds, below, rounded)
