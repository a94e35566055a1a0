"""The one-class support vector machine (Schoelkopf et al., 2001)."""

import jax
import jax.numpy as jnp

from deepsad_jax import dual, kernels, one_class
from deepsad_jax.one_class import Model, compact, score

__all__ = ["Model", "check_options", "compact", "fit", "score"]


@kernels.in_float64
def fit(
    x: jax.typing.ArrayLike,
    *,
    nu: jax.typing.ArrayLike = 0.1,
    kernel: kernels.Kernel = kernels.Kernel(),  # noqa: B008 (immutable)
    gram: kernels.Gram | None = None,
    tolerance: float = dual.TOLERANCE,
    max_iterations: int = dual.MAX_ITERATIONS,
) -> Model:
    """Fits the machine; weights and threshold are on the scale of scikit-learn's.

    Args:
        x: training examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        nu: upper bound of the share of examples outside the boundary, and lower bound
            of that of support vectors, in (0, 1].
        kernel: the kernel.
        gram: `kernels.gram` of the same examples and kind of kernel, to share its base
            among bandwidths.
        tolerance: see `dual.solve`.
        max_iterations: most steps of the solver, which warns when they are used up.

    Returns:
        The model; `score(model, x)` is minus scikit-learn's `decision_function`.

    Raises:
        ValueError: for wrong options or examples.
    """
    one_class.check_solver(tolerance, max_iterations)
    if kernels.is_concrete(nu):
        check_options(nu=nu)
    gram = one_class.gram_for(gram, kernel, x)
    solution = dual.solve(
        gram,
        jnp.ones(gram.size),
        total=nu * gram.size,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return one_class.model_of(gram, solution, tolerance)


def check_options(*, nu: float) -> None:
    """Raises ValueError for what `fit` refuses, whatever the examples are."""
    if not 0 < nu <= 1:
        raise ValueError(f"nu is {nu}; it must be in (0, 1]")
