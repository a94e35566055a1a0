"""Semi-supervised anomaly detection with kernels (Goernitz et al., JAIR 2013).

The convex dual of a one-class machine that takes labels: labelled normal examples are
to lie inside the boundary, labelled anomalies outside, with a margin that `kappa`
weighs; see `dual` for the problem.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import dual, kernels, one_class
from deepsad_jax.one_class import Model, compact, score

__all__ = ["Model", "check_options", "compact", "fit", "score"]


@kernels.in_float64
def fit(
    x: jax.typing.ArrayLike,
    semi_targets: jax.typing.ArrayLike,
    *,
    kernel: kernels.Kernel = kernels.Kernel(),  # noqa: B008 (immutable)
    kappa: jax.typing.ArrayLike = 1.0,
    C_unlabeled: jax.typing.ArrayLike = 1.0,  # noqa: N803 (the paper's names)
    C_normal: jax.typing.ArrayLike = 1.0,  # noqa: N803
    C_anomaly: jax.typing.ArrayLike = 1.0,  # noqa: N803
    gram: kernels.Gram | None = None,
    tolerance: float = dual.TOLERANCE,
    max_iterations: int = dual.MAX_ITERATIONS,
) -> Model:
    """Fits the machine.

    Args:
        x: training examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        semi_targets: +1 labelled normal, 0 unlabelled, -1 labelled anomaly, `[n]`.
        kernel: the kernel.
        kappa: weight of the margin, >= 0: the least sum of the labelled examples'
            dual variables. Without labelled examples it does not matter.
        C_unlabeled, C_normal, C_anomaly: largest dual variable of an example of each
            kind, > 0; the unlabelled and normal ones sum to at least 1.
        gram: `kernels.gram` of the same examples and kind of kernel, to share its base
            among bandwidths.
        tolerance: see `dual.solve`.
        max_iterations: most steps of the solver, which warns when they are used up.

    Returns:
        The model, whose `weights` are y * alpha.

    Raises:
        ValueError: for wrong options or examples, and if no dual variables satisfy
            the constraints. Under `jit` and `vmap`, values cannot be looked at, and a
            problem without solution gives meaningless numbers.
    """
    one_class.check_solver(tolerance, max_iterations)
    if jnp.shape(semi_targets) != (len(x),):
        raise ValueError(
            f"semi_targets has shape {jnp.shape(semi_targets)}; it must be ({len(x)},)"
        )
    options = {
        "kappa": kappa,
        "C_unlabeled": C_unlabeled,
        "C_normal": C_normal,
        "C_anomaly": C_anomaly,
    }
    known = kernels.is_concrete(semi_targets)
    if known and all(map(kernels.is_concrete, options.values())):
        check_options(semi_targets, **options)
    labelled = not known or bool(np.any(np.asarray(semi_targets) != 0))
    semi_targets = jnp.asarray(semi_targets)
    gram = one_class.gram_for(gram, kernel, x)
    upper = jnp.where(semi_targets < 0, C_anomaly, C_normal)
    upper = jnp.where(semi_targets == 0, C_unlabeled, upper)
    solution = dual.solve(
        gram,
        upper,
        total=1.0,
        semi_targets=semi_targets if labelled else None,
        kappa=jnp.where(jnp.any(semi_targets != 0), kappa, 0.0),
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return one_class.model_of(gram, solution, tolerance)


def check_options(
    semi_targets: np.ndarray,
    *,
    kappa: float,
    C_unlabeled: float,  # noqa: N803
    C_normal: float,  # noqa: N803
    C_anomaly: float,  # noqa: N803
) -> None:
    """Raises ValueError for what `fit` refuses, whatever the examples are."""
    semi_targets = np.asarray(semi_targets)
    strange = np.setdiff1d(semi_targets, (-1, 0, 1))
    if len(strange):
        raise ValueError(f"semi_targets has {strange[0]}; they must be +1, 0 or -1")
    bounds = {"C_unlabeled": C_unlabeled, "C_normal": C_normal, "C_anomaly": C_anomaly}
    for name, bound in bounds.items():
        if not 0 < bound < np.inf:
            raise ValueError(f"{name} is {bound}; it must be finite and > 0")
    if not 0 <= kappa < np.inf:
        raise ValueError(f"kappa is {kappa}; it must be finite and >= 0")
    counts = [int(np.sum(semi_targets == kind)) for kind in (0, 1, -1)]
    caps = [
        float(bound) * count
        for bound, count in zip(bounds.values(), counts, strict=True)
    ]
    most = dual.most_labelled_mass(*caps, total=1.0)
    if most < 0:
        raise ValueError(
            f"C_unlabeled is {C_unlabeled} and C_normal is {C_normal}; with "
            f"{counts[0]} unlabelled and {counts[1]} labelled normal examples the dual "
            f"variables sum to at most {caps[0] + caps[1]:.3g}, but must reach 1"
        )
    if counts[1] + counts[2] and kappa > most:
        raise ValueError(
            f"kappa is {kappa}; with these C and labels it must be at most {most:.3g}"
        )
