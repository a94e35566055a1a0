"""What the one-class kernel machines share: the model, its score, the checks."""

import math
import warnings

import flax.struct
import jax
import numpy as np
from jax import lax

from deepsad_jax import dual, kernels

_SCORED_AT_ONCE = 256


@flax.struct.dataclass
class Model:
    """A trained machine; with many (`vmap`), each array has leading axes.

    Attributes:
        x: training examples as rows, `[n, D]` float64.
        weights: y * alpha of each, `[n]` float64; 0 for all but support vectors.
        threshold: rho; score 0 is the boundary.
        kernel: the kernel.
        objective: value of the dual, to be minimised.
        violation: of the optimality conditions; see `dual.Solution`.
        iterations: steps of the solver.
    """

    x: jax.Array
    weights: jax.Array
    threshold: jax.Array
    kernel: kernels.Kernel
    objective: jax.Array
    violation: jax.Array
    iterations: jax.Array


def model_of(gram: kernels.Gram, solution: dual.Solution, tolerance: float) -> Model:
    """The machine of a solution; warns where the solver has not converged."""
    if kernels.is_concrete(solution.violation) and solution.violation > tolerance:
        warnings.warn(
            f"the solver stopped after {solution.iterations} iterations with a "
            f"violation of {solution.violation:.2g}, more than the tolerance "
            f"{tolerance:.2g}; allow more by max_iterations",
            RuntimeWarning,
            stacklevel=3,
        )
    return Model(
        gram.x[: gram.size],
        solution.weights,
        solution.threshold,
        gram.kernel,
        solution.objective,
        solution.violation,
        solution.iterations,
    )


@kernels.in_float64
def score(model: Model, x: jax.typing.ArrayLike) -> jax.Array:
    """Anomaly score: the threshold minus the kernel expansion; higher = more anomalous.

    Args:
        model: the machine.
        x: examples, `[m, ...]`, of the shape and scale of the training examples.

    Returns:
        Scores, `[m]` float64; above 0 outside the boundary.

    Raises:
        ValueError: if the examples do not have the width of the training examples.
    """
    rows = kernels.as_rows(x)
    if rows.shape[1] != model.x.shape[1]:
        raise ValueError(
            f"x has {rows.shape[1]} features, but the model was trained on "
            f"{model.x.shape[1]}"
        )
    return _score(model, rows)


@jax.jit
def _score(model, rows):
    def expansion(row):
        base = kernels.base(model.kernel.name, row[None], model.x)[0]
        return model.kernel(base) @ model.weights

    expansions = lax.map(expansion, rows, batch_size=_SCORED_AT_ONCE)
    return model.threshold - expansions


def compact(model: Model) -> Model:
    """The same machine without most of what its score does not need.

    Keeps the support vectors, filled up to a power of two by other examples, so that
    machines of about one size share compiled programs. Not for `jit`.
    """
    unused = np.asarray(model.weights) == 0
    size = 2 ** math.ceil(math.log2(max(np.sum(~unused), 1)))
    kept = np.argsort(unused, kind="stable")[:size]
    return model.replace(x=model.x[kept], weights=model.weights[kept])


def check_solver(tolerance: float, max_iterations: int) -> None:
    """Raises ValueError for options that the solver cannot take."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; it must be in (0, 1)")
    if max_iterations < 0:
        raise ValueError(f"max_iterations is {max_iterations}; it must be >= 0")


def gram_for(
    gram: kernels.Gram | None, kernel: kernels.Kernel, x: jax.typing.ArrayLike
) -> kernels.Gram:
    """The kernel matrix of `x`: a new one, or the base of one given.

    Raises:
        ValueError: if the one given is of other examples or another kind of kernel.
    """
    if gram is None:
        return kernels.gram(kernel, x)
    kernels.check_kernel(kernel)
    if gram.size != len(x) or gram.kernel.name != kernel.name:
        raise ValueError(
            f"gram is of {gram.size} examples and the kernel {gram.kernel.name}; "
            f"it must be of the {len(x)} examples and {kernel.name}"
        )
    return gram.replace(kernel=kernel)
