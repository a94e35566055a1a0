"""Which parts of an example make its score: two ways, which both add up.

    found = integrated_gradients(objective, variables, x, references)
    found.values.sum(axis=1)      # the score, less the mean score of the references

Rows are prepared, float32. A way from each reference to the row is gone, and what each
part changes is counted; the mean over the references is the part's attribution. Parts
are columns, pixels or time steps: features that belong together are summed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import cpu_settings, forward, parallel

# Numbers that are held at once, of rows in the making.
_NUMBERS = 2**19
_ROWS = 64
# Points of a way, each thrice as many as before, until the sum is right.
_POINTS = (9, 27, 81, 243, 729)
TOLERANCE = 1e-3


class Attributions(NamedTuple):
    """What each part adds to the scores of some rows.

    Attributes:
        values: `[n, parts]` float64; their sum over parts is the score less
            `usual_score`, but for the residual.
        scores: `[n]` float64.
        usual_score: mean score of the references.
        residuals: what the sum lacks, as a share of the difference, or of the spread
            of the references' scores where that is larger; `[n]`.
    """

    values: np.ndarray
    scores: np.ndarray
    usual_score: float
    residuals: np.ndarray


def integrated_gradients(
    objective: Any,
    variables: Any,
    x: np.ndarray,
    references: np.ndarray,
    groups: np.ndarray,
    parts: int,
) -> Attributions:
    """Gradients of the score along the straight way from each reference.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017. Networks
    with kinks need more points on the way than smooth ones; their number grows, up to
    729, for the rows whose sum is off by more than a thousandth.

    Args:
        objective: with `score(variables, x)`, differentiable.
        variables: its own.
        x: prepared rows, `[n, ...]` float32.
        references: prepared rows of normal examples, `[r, ...]` float32, r >= 1.
        groups: the part to which each feature belongs, `[features]`, from 0 on.
        parts: how many there are; some may have no feature.
    """
    score = functools.partial(forward.evaluate, objective, "score", variables)
    scores, usual, scale = _scored(score, x, references)
    slopes_at = _slopes(objective, x.shape[1:])
    found = np.zeros((len(x), parts))
    residuals, sums, before = np.full(len(x), np.inf), np.zeros_like(found), 0
    for points in _POINTS:
        left = np.flatnonzero(np.abs(residuals) > TOLERANCE)
        new = [i for i in range(points) if not before or i % 3 != 1]
        for rows in _pieces(left, references.size):
            part = x[np.resize(rows, _size(len(rows), references.size))]
            for i in new:
                slopes = slopes_at(variables, part, references, (i + 0.5) / points)
                slopes = np.asarray(slopes, np.float64)[: len(rows)]
                sums[rows] += grouped(slopes.reshape(len(rows), -1), groups, parts)
        found[left], before = sums[left] / points, points
        residuals = (found.sum(axis=1) - scores + usual) / scale
    return Attributions(found, scores, usual, residuals)


@functools.lru_cache(maxsize=16)
def _slopes(objective, shape):
    """Mean over references of the gradient at a point of the way, times its length."""

    def function(variables, x, references, t):
        way = x[:, None] - references
        at = (references + t * way).reshape(-1, *shape)
        slopes = jax.grad(lambda rows: jnp.sum(objective.score(variables, rows)))(at)
        return jnp.mean(slopes.reshape(way.shape) * way, axis=1)

    conv = forward.is_convolutional(objective, shape)
    options = cpu_settings.compiler_options() if conv else None
    return parallel.one().compile(function, options=options)


def _pieces(rows, size):
    """Row numbers in pieces, each of which goes through a program at once."""
    step = _size(len(rows), size)
    return [rows[first : first + step] for first in range(0, len(rows), step)]


def _size(count, size):
    """One of two sizes, so that there are but two programs."""
    most = int(np.clip(_NUMBERS // size, 1, _ROWS))
    return most if 8 * count > most else -(-most // 8)


def permutations(
    score: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    references: np.ndarray,
    groups: np.ndarray,
    parts: int,
    *,
    seed: int = 0,
) -> Attributions:
    """Shapley values by sampling: parts are exchanged one by one, in random order.

    Any score will do; the sum is right by construction. Each reference is the start
    of two ways, of which the second takes the parts in the opposite order. Strumbelj
    and Kononenko, "Explaining prediction models and individual predictions with feature
    contributions", 2014.

    Args:
        score: of prepared rows, `[m, ...] -> [m]`.
        x, references, groups, parts: as of `integrated_gradients`.
        seed: of the orders.
    """
    scores, usual, scale = _scored(score, x, references)
    rng, found = np.random.default_rng(seed), np.zeros((len(x), parts))
    starts = references.reshape(len(references), -1)
    ways = [(i, r) for i in range(len(x)) for r in range(len(starts))]
    step = max(1, _NUMBERS // ((parts + 1) * starts.shape[1]))
    flat, stops = x.reshape(len(x), -1), np.arange(parts + 1)[:, None]
    for first in range(0, len(ways), step):
        rows, begins = np.array(ways[first : first + step]).T
        order = rng.permuted(np.tile(np.arange(parts), (len(rows), 1)), axis=1)
        for places in (order, parts - 1 - order):  # when the turn of each part comes
            is_new = places[:, None, groups] < stops
            mixed = np.where(is_new, flat[rows, None], starts[begins, None])
            along = score(mixed.reshape(-1, *x.shape[1:])).reshape(len(rows), -1)
            gains = np.diff(along.astype(np.float64), axis=1)
            np.add.at(found, rows, np.take_along_axis(gains, places, axis=1))
    found /= 2 * len(starts)
    return Attributions(
        found, scores, usual, (found.sum(axis=1) - scores + usual) / scale
    )


def _scored(score, x, references):
    """Scores, the usual one, and what differences are measured by."""
    usual, scores = (np.asarray(score(rows), np.float64) for rows in (references, x))
    scale = np.maximum(np.abs(scores - usual.mean()), usual.std())
    return scores, float(usual.mean()), np.maximum(scale, 1e-12)


def grouped(values: np.ndarray, groups: np.ndarray, parts: int) -> np.ndarray:
    """Features summed to the parts they belong to, `[n, features] -> [n, parts]`."""
    result = np.zeros((len(values), parts))
    np.add.at(result, (slice(None), groups), values)
    return result
