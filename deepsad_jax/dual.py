r"""The dual problem of one-class machines, by sequential minimal optimization.

    minimize    1/2 w' K w
    subject to  sum_i w_i = total
                0 <= w_i <= upper_i       unlabeled (U) and labeled normal (P)
                -upper_i <= w_i <= 0      labeled anomalies (N)
                sum_{P, N} |w_i| >= kappa

Here w_i = y_i alpha_i in the usual notation. With U alone it is the dual of the
one-class support vector machine (Schoelkopf et al., 2001), with all three groups that
of semi-supervised anomaly detection (Goernitz et al., JAIR 2013).

Each step moves along the steepest of a few sparse directions, as far as the minimum or
the first bound. Writing U+ for the unlabeled example that gains most by growing, N-
for the labeled anomaly that gains most by shrinking and so on, these are the pairs
(U+ U-), (P+ P-), (N+ N-), (U+ N-), (P+ U-), (P+ N-), the opposites of the last three
while the labeled mass exceeds kappa, and (P+ N+ 2U-), (2U+ P- N-), which keep that
mass: all the edges of the cone of feasible directions, so that a point where none
descends is the optimum.
"""

import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import kernels, parallel, pieces

TOLERANCE = 1e-6
MAX_ITERATIONS = 10_000_000
_LANES = 64


class Solution(NamedTuple):
    """The optimum of the dual problem.

    Attributes:
        weights: w, `[n]` float64.
        values: K w, `[n]` float64.
        threshold: the multiplier of the sum: the value of K w at free unlabeled
            examples.
        objective: 1/2 w' K w.
        violation: steepest descent left, relative to the spread of the values at the
            start; at most the tolerance unless the iterations have run out.
        iterations: steps taken.
    """

    weights: jax.Array
    values: jax.Array
    threshold: jax.Array
    objective: jax.Array
    violation: jax.Array
    iterations: jax.Array


# Candidates: the best example of each group to grow, then of each group to shrink.
_GROUPS = ("U", "P", "N")
_PAIRS = ("U+ U-", "P+ P-", "N+ N-", "U+ N-", "P+ U-", "P+ N-")
_LOSING = ("N+ U-", "U+ P-", "N+ P-")
_TRIPLES = ("P+ N+ U- U-", "U+ U+ P- N-")


class _Directions(NamedTuple):
    """Directions by the candidates that they move.

    Attributes:
        slots: candidates of each direction, `[k, 2 or 3]`.
        steps: by how much each of them moves, `[k, 2 or 3]`; 0 for a filled-up slot.
        gains: by how much the labeled mass grows, `[k]`.
        lengths: Euclidean lengths, `[k]`.
    """

    slots: np.ndarray
    steps: np.ndarray
    gains: np.ndarray
    lengths: np.ndarray


def _directions(groups: int) -> _Directions:
    names = (*_PAIRS, *_LOSING, *_TRIPLES) if groups == 3 else _PAIRS[:1]
    candidates = [group + sign for sign in "+-" for group in _GROUPS[:groups]]
    width = 3 if groups == 3 else 2
    slots, steps, gains = [], [], []
    for moves in map(str.split, names):
        change = {c: moves.count(c) * (1.0 if c[1] == "+" else -1.0) for c in moves}
        gains.append(sum({"U": 0, "P": 1, "N": -1}[c[0]] * change[c] for c in change))
        filling = width - len(change)
        slots.append([candidates.index(c) for c in (*change, *moves[:filling])])
        steps.append([*change.values(), *[0.0] * filling])
    lengths = np.linalg.norm(steps, axis=1)
    return _Directions(*map(np.array, (slots, steps, gains)), lengths)


class _Choice(NamedTuple):
    """The steepest feasible direction.

    Attributes:
        slope: of the descent along it; at most 0 at the optimum.
        indices, steps: which examples move and by how much, `[2 or 3]`.
        gain: by how much the labeled mass grows.
        length: Euclidean length of the steps.
    """

    slope: jax.Array
    indices: jax.Array
    steps: jax.Array
    gain: jax.Array
    length: jax.Array


class _State(NamedTuple):
    weights: jax.Array
    values: jax.Array
    slack: jax.Array  # labeled mass beyond kappa
    energy: jax.Array  # w' K w
    iterations: jax.Array
    choice: _Choice


class _Box(NamedTuple):
    """Bounds of the weights, `[n]`, and the members of each group, `[groups, n]`."""

    lower: jax.Array
    upper: jax.Array
    members: jax.Array


def solve(
    gram: kernels.Gram,
    upper: jax.Array,
    *,
    total: jax.typing.ArrayLike,
    semi_targets: jax.Array | None = None,
    kappa: jax.typing.ArrayLike = 0.0,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    tell: Callable[[float], None] | None = None,
) -> Solution:
    """Solves the problem above; to be called within `kernels.in_float64`.

    Args:
        gram: the kernel matrix of n examples.
        upper: largest size of each weight, `[n]`, > 0.
        total: sum of the weights, > 0.
        semi_targets: +1 labeled normal, 0 unlabeled, -1 labeled anomaly, `[n]`; None
            if all are unlabeled, which is faster.
        kappa: least labeled mass, >= 0.
        tolerance: steepest descent left, relative to the spread of K w at the start.
        max_iterations: most steps; whoever calls has to look at the violation then.
        tell: called with the share of the work that is done; not for `jit`.

    Returns:
        The solution; meaningless if `most_labeled_mass` says that there is none.
    """
    numbers = map(jnp.asarray, (total, kappa, tolerance, max_iterations))
    if tell is None:
        return _solve(gram, upper, semi_targets, *numbers)
    return _solve_in_pieces(gram, _boxed(gram, upper, semi_targets), *numbers, tell)


def _boxed(gram, upper, semi_targets) -> _Box:
    padding = (0, len(gram.x) - gram.size)
    kinds = (0, 1, -1) if semi_targets is not None else (0,)
    if semi_targets is None:
        semi_targets = jnp.zeros(gram.size)
    upper = jnp.pad(jnp.asarray(upper, jnp.float64), padding)
    semi_targets = jnp.pad(jnp.asarray(semi_targets), padding)
    members = jnp.stack([semi_targets == kind for kind in kinds])
    anomalous = semi_targets < 0
    return _Box(
        jnp.where(anomalous, -upper, 0.0), jnp.where(anomalous, 0.0, upper), members
    )


def most_labeled_mass(
    unlabeled: float, normal: float, anomalous: float, *, total: float
) -> float:
    """The largest `kappa` that can be met; negative if even the sum cannot.

    Args:
        unlabeled, normal, anomalous: sums of the bounds of the unlabeled, labeled
            normal and labeled anomalous examples.
        total: sum of the weights.
    """
    surplus = unlabeled + normal - total
    if surplus < 0:
        return surplus
    anomalous = min(anomalous, surplus)
    return min(normal, total + anomalous) + anomalous


@parallel.compiled
def _solve(gram, upper, semi_targets, total, kappa, tolerance, max_iterations):
    box = _boxed(gram, upper, semi_targets)
    start = _start(gram.times, box, total, kappa)
    state, spread = _begun(gram, box, *start, tolerance)
    end = _advanced(gram, box, state, spread, tolerance, max_iterations)
    return _solution(gram, box, end, spread)


def _solve_in_pieces(gram, box, total, kappa, tolerance, max_iterations, tell):
    """`_solve` by many calls, between which it tells how far it is."""
    passes = itertools.count()

    def times(weights):  # is called twice
        before = next(passes)
        return gram.times(weights, lambda share: tell((before + share) / 4))

    start = _start(times, box, total, kappa)
    state, spread = _begin(gram, box, *start, tolerance)
    left, size = float(_violation(state, spread)), 64
    while left > tolerance and state.iterations < max_iterations:
        began = time.perf_counter()
        limit = jnp.minimum(state.iterations + size, max_iterations)
        state = _advance(gram, box, state, spread, tolerance, limit)
        left = float(_violation(state, spread))
        size = pieces.next_piece(size, time.perf_counter() - began)
        if 0 < left < 1:
            tell(0.5 + 0.5 * min(1.0, math.log(left) / math.log(tolerance)))
    return _solution(gram, box, state, spread)


def _begun(gram, box, weights, values, slack, tolerance):
    """The state before the first step, and the spread of its values."""
    # What rounding leaves of equal examples is not to be minimized.
    real = values[: gram.size]
    rounding = jnp.finfo(gram.dtype).eps * jnp.max(jnp.abs(real))
    spread = jnp.max(real) - jnp.min(real) + rounding / tolerance
    energy, choice = weights @ values, _chooser(box)(weights, values, slack)
    return _State(weights, values, slack, energy, jnp.array(0), choice), spread


def _violation(state, spread):
    return state.choice.slope / state.choice.length / spread


def _advanced(gram, box, state, spread, tolerance, max_iterations):
    """The state at the optimum, or after so many iterations in all."""
    choose = _chooser(box)

    def step(state):
        slope, indices, steps, gain, _ = state.choice
        among = gram.between(indices).astype(jnp.float64)
        curvature = steps @ among @ steps
        weights, low, high = (v[indices] for v in (state.weights, box.lower, box.upper))
        bound = jnp.where(steps > 0, high, low)
        room = jnp.where(steps != 0, (bound - weights) / steps, jnp.inf)
        spare = jnp.where(gain < 0, state.slack / -gain, jnp.inf)
        limit = jnp.minimum(jnp.min(room), spare)
        # Between equal examples the curvature is 0, and the limit decides.
        length = jnp.where(curvature * limit > slope, slope / curvature, limit)
        moved = jnp.where(room <= length, bound, weights + length * steps)
        updated, values = state.weights, state.values
        # Filled-up slots repeat an index: they come first, to be overwritten.
        for slot in reversed(range(len(steps))):
            updated = lax.dynamic_update_slice_in_dim(
                updated, moved[slot, None], indices[slot], 0
            )
            values += length * steps[slot] * gram.row(indices[slot])
        slack = jnp.where(spare <= length, 0.0, state.slack + length * gain)
        energy = state.energy - 2 * length * slope + length**2 * curvature
        choice = choose(updated, values, slack)
        return _State(updated, values, slack, energy, state.iterations + 1, choice)

    def unfinished(state):
        more = state.iterations < max_iterations
        return (_violation(state, spread) > tolerance) & more

    return lax.while_loop(unfinished, step, state)


def _solution(gram, box, end, spread):
    return Solution(
        end.weights[: gram.size],
        end.values[: gram.size],
        _threshold(end.weights, end.values, box),
        end.energy / 2,
        jnp.maximum(_violation(end, spread), 0.0),
        end.iterations,
    )


_begin, _advance = parallel.compiled(_begun), parallel.compiled(_advanced)


def _chooser(box):
    """The function of weights, values and slack that finds the steepest direction."""
    table = _directions(len(box.members))
    slots, *parts = map(jnp.asarray, table)
    steps, gains, lengths = (part.astype(jnp.float64) for part in parts)
    # Candidate c may move by +-1, its sign, while sign * weight < limit.
    signs = jnp.repeat(jnp.array([1.0, -1.0]), len(box.members))
    limits = jnp.stack([box.upper, -box.lower])[:, None]
    limits = jnp.where(box.members, limits, -jnp.inf).reshape(len(signs), _LANES, -1)

    def descents(signs, limits, weights, values):
        return jnp.where(signs * weights < limits, -signs * values, -jnp.inf)

    def choose(weights, values, slack):
        # In two stages, which is much faster than argmax of all: of the columns of a
        # matrix, then within the best column.
        weights, values = (v.reshape(limits.shape[1:]) for v in (weights, values))
        slopes = descents(signs[:, None, None], limits, weights, values)
        columns = _argmax(jnp.max(slopes, axis=1))

        def within(sign, limits, column):
            in_column = (v[:, column] for v in (limits, weights, values))
            slopes = descents(sign, *in_column)
            lane = _argmax(slopes)
            return slopes[lane], lane * limits.shape[1] + column

        slopes, indices = jax.vmap(within)(signs, limits, columns)
        size = jnp.abs(steps)
        total = jnp.sum(jnp.where(size > 0, size * slopes[slots], 0.0), axis=1)
        total = jnp.where((gains >= 0) | (slack > 0), total, -jnp.inf)
        k = _argmax(total / lengths)
        return _Choice(total[k], indices[slots[k]], steps[k], gains[k], lengths[k])

    return choose


def _argmax(x):
    """First index of the largest along the last axis.

    The lowering of `jnp.argmax` knows no float64 in a program that is compiled outside
    `kernels.in_float64`.
    """
    largest = jnp.max(x, axis=-1, keepdims=True)
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(x == largest, places, x.shape[-1] - 1), axis=-1)


def _start(times, box, total, kappa):
    """The nearer of two feasible starts, with its values and its slack.

    The mass of each group is spread evenly, or put on the examples of steepest descent.
    """
    sizes = (box.upper - box.lower) * box.members
    caps = jnp.sum(sizes, axis=1)
    masses, slack, signs = jnp.stack([total]), jnp.array(jnp.inf), jnp.ones(1)
    if len(caps) == 3:
        signs = jnp.array([1.0, 1.0, -1.0])
        # As few labeled anomalies, then as few labeled normal ones, as can be.
        anomalous = jnp.maximum(kappa - caps[1], (kappa - total) / 2)
        anomalous = jnp.maximum(anomalous, 0.0)
        normal = jnp.maximum(total + anomalous - caps[0], kappa - anomalous)
        normal = jnp.maximum(normal, 0.0)
        masses = jnp.stack([total - normal + anomalous, normal, anomalous])
        slack = jnp.maximum(normal + anomalous - kappa, 0.0)
    shares = jnp.where(caps > 0, jnp.clip(masses / caps, 0.0, 1.0), 0.0)
    even = (signs * shares) @ sizes
    even_values = times(even)

    def steepest(mass, sign, sizes):
        order = jnp.argsort(jnp.where(sizes > 0, sign * even_values, jnp.inf))
        before = jnp.cumsum(sizes[order]) - sizes[order]
        filled = jnp.clip(mass - before, 0.0, sizes[order])
        return jnp.zeros_like(sizes).at[order].set(sign * filled)

    steep = jnp.sum(jax.vmap(steepest)(masses, signs, sizes), axis=0)
    steep_values = times(steep)
    # Of an even start, each of the many that end without weight takes a step.
    better = steep @ steep_values < 2 * (even @ even_values)
    weights = jnp.where(better, steep, even)
    return weights, jnp.where(better, steep_values, even_values), slack


def _threshold(weights, values, box):
    """The multiplier of the sum, from the unlabeled or else the labeled examples."""

    def level(members):
        # The optimum has values of at most the level at the upper bound, of at least
        # the level at the lower one, and of just the level between.
        members = members & (box.upper > box.lower)
        at_lower = members & (weights <= box.lower)
        at_upper = members & (weights >= box.upper)
        free = members & ~at_lower & ~at_upper
        mean = jnp.sum(jnp.where(free, values, 0.0)) / jnp.maximum(jnp.sum(free), 1)
        least = jnp.max(jnp.where(at_upper, values, -jnp.inf))
        most = jnp.min(jnp.where(at_lower, values, jnp.inf))
        least, most = (
            jnp.where(jnp.isfinite(a), a, b) for a, b in ((least, most), (most, least))
        )
        return jnp.where(jnp.any(free), mean, (least + most) / 2)

    levels = jax.vmap(level)(box.members)
    if len(levels) == 1:
        return levels[0]
    # Labeled examples are off by plus and minus the multiplier of kappa.
    present = jnp.isfinite(levels)
    labeled = jnp.sum(jnp.where(present, levels, 0.0)[1:])
    labeled = labeled / jnp.maximum(jnp.sum(present[1:]), 1)
    return jnp.where(present[0], levels[0], labeled)
