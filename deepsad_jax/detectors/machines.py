"""The solutions of one-class kernel machines, as `dual` finds them."""

import warnings
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import checks, dual, kernels, labels

TOO_LARGE = "x has values too large for the kernel {}; scale x or take rbf"


@flax.struct.dataclass
class Machine:
    """A trained machine; with many (`vmap`), each array has leading axes.

    Attributes:
        x: training examples as rows, `[n, D]` float64.
        weights: y * alpha of each, `[n]` float64; 0 for all but support vectors.
        threshold: rho; score 0 is the boundary.
        kernel: the kernel.
        objective: value of the dual, to be minimized.
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


@kernels.in_float64
def fit_ssad(
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
    tell: Callable[[float], None] | None = None,
) -> Machine:
    """Fits SSAD.

    Args:
        x: training examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        semi_targets: +1 labeled normal, 0 unlabeled, -1 labeled anomaly, `[n]`.
        kernel: the kernel.
        kappa: weight of the margin, >= 0: the least sum of the labeled examples' dual
            variables. Without labeled examples it does not matter.
        C_unlabeled, C_normal, C_anomaly: largest dual variable of an example of each
            kind, > 0; the unlabeled and normal ones sum to at least 1.
        gram: `kernels.gram` of the same examples and kind of kernel, to share its base
            among bandwidths.
        tolerance: see `dual.solve`.
        max_iterations: most steps of the solver, which warns when they are used up.
        tell: called now and then with the share of the work that is done; not for
            `jit`.

    Raises:
        ValueError: for wrong options or examples, and if no dual variables satisfy
            the constraints. Under `jit` and `vmap`, values cannot be looked at, and a
            problem without solution gives meaningless numbers.
    """
    if kernels.is_concrete(semi_targets):
        semi_targets = checks.unmasked("semi_targets", semi_targets)
    if jnp.shape(semi_targets) != (len(x),):
        raise ValueError(
            f"semi_targets has shape {jnp.shape(semi_targets)}; it must be ({len(x)},)"
        )
    bounds = (kappa, C_unlabeled, C_normal, C_anomaly)
    known = kernels.is_concrete(semi_targets)
    if known and all(map(kernels.is_concrete, bounds)):
        check_ssad(semi_targets, *bounds)
    labeled = not known or bool(np.any(np.asarray(semi_targets) != 0))
    xp = np if known and all(map(kernels.is_concrete, bounds)) else jnp
    semi_targets = xp.asarray(semi_targets)
    upper = xp.where(semi_targets < 0, C_anomaly, C_normal)
    upper = xp.where(semi_targets == 0, C_unlabeled, upper)
    kappa = xp.where(xp.any(semi_targets != 0), kappa, 0.0)
    problem = {"semi_targets": semi_targets if labeled else None, "kappa": kappa}
    solver = {"tolerance": tolerance, "max_iterations": max_iterations, "tell": tell}
    return _solved(_gram_for(gram, kernel, x), upper, 1.0, **problem, **solver)


@kernels.in_float64
def fit_ocsvm(
    x: jax.typing.ArrayLike,
    *,
    nu: jax.typing.ArrayLike = 0.1,
    kernel: kernels.Kernel = kernels.Kernel(),  # noqa: B008 (immutable)
    gram: kernels.Gram | None = None,
    tolerance: float = dual.TOLERANCE,
    max_iterations: int = dual.MAX_ITERATIONS,
    tell: Callable[[float], None] | None = None,
) -> Machine:
    """Fits the one-class SVM; weights and threshold have the scale of scikit-learn's.

    Args:
        x: training examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        nu: upper bound of the share of examples outside the boundary, and lower bound
            of that of support vectors, in (0, 1].
        kernel, gram, tolerance, max_iterations, tell: as for `fit_ssad`.

    Returns:
        The machine; `score(machine, x)` is minus scikit-learn's `decision_function`.

    Raises:
        ValueError: for wrong options or examples.
    """
    if kernels.is_concrete(nu):
        check_ocsvm(nu)
    gram = _gram_for(gram, kernel, x)
    solver = {"tolerance": tolerance, "max_iterations": max_iterations, "tell": tell}
    return _solved(gram, np.ones(gram.size), nu * gram.size, **solver)


def check_ssad(
    semi_targets: np.ndarray,
    kappa: float,
    C_unlabeled: float,  # noqa: N803
    C_normal: float,  # noqa: N803
    C_anomaly: float,  # noqa: N803
) -> None:
    """Raises ValueError for what `fit_ssad` refuses, whatever the examples are."""
    semi_targets = np.asarray(semi_targets)
    labels.integers("semi_targets", semi_targets, len(semi_targets), labels.MEANINGS)
    bounds = {"C_unlabeled": C_unlabeled, "C_normal": C_normal, "C_anomaly": C_anomaly}
    for name, bound in bounds.items():
        if not (checks.is_number_like(bound) and 0 < bound < np.inf):
            raise ValueError(f"{name} is {bound!r}; it must be finite and > 0")
    if not (checks.is_number_like(kappa) and 0 <= kappa < np.inf):
        raise ValueError(f"kappa is {kappa!r}; it must be finite and >= 0")
    counts = [int(np.sum(semi_targets == kind)) for kind in (0, 1, -1)]
    caps = [float(c) * n for c, n in zip(bounds.values(), counts, strict=True)]
    most = dual.most_labeled_mass(*caps, total=1.0)
    if most < 0:
        raise ValueError(
            f"C_unlabeled is {C_unlabeled} and C_normal is {C_normal}; with "
            f"{counts[0]} unlabeled and {counts[1]} labeled normal examples the dual "
            f"variables sum to at most {caps[0] + caps[1]:.3g}, but must reach 1"
        )
    if counts[1] + counts[2] and kappa > most:
        raise ValueError(
            f"kappa is {kappa}; with these C and labels it must be at most {most:.3g}"
        )


def check_ocsvm(nu: float) -> None:
    """Raises ValueError for a nu that `fit_ocsvm` refuses."""
    if not (checks.is_number_like(nu) and 0 < nu <= 1):
        raise ValueError(f"nu is {nu!r}; it must be in (0, 1]")


def _solved(gram, upper, total, *, tolerance, max_iterations, tell, **problem):
    if not (checks.is_number_like(tolerance) and 0 < tolerance < 1):
        raise ValueError(f"tolerance is {tolerance!r}; it must be in (0, 1)")
    kernels.check_number("max_iterations", max_iterations, 0, whole=True)
    solver = {"tolerance": tolerance, "max_iterations": max_iterations, "tell": tell}
    found = dual.solve(gram, upper, total=total, **problem, **solver)
    if kernels.is_concrete(found.objective):
        if not np.isfinite(found.objective) or not np.isfinite(found.threshold):
            raise ValueError(TOO_LARGE.format(gram.kernel.name))
        if found.violation > tolerance:
            warnings.warn(
                f"the solver stopped after {found.iterations} iterations with a "
                f"violation of {found.violation:.2g}, more than the tolerance "
                f"{tolerance:.2g}; allow more by max_iterations",
                RuntimeWarning,
                stacklevel=4,
            )
    x = np.asarray(gram.x) if kernels.is_concrete(gram.x) else gram.x
    x, end = x[: gram.size], (found.objective, found.violation, found.iterations)
    return Machine(x, found.weights, found.threshold, gram.kernel, *end)


def _gram_for(gram, kernel, x):
    """The kernel matrix of `x`: a new one, or the base of one given."""
    if gram is None:
        return kernels.gram(kernel, x)
    kernels.check_kernel(kernel)
    if gram.size != len(x) or gram.kernel.name != kernel.name:
        raise ValueError(
            f"gram is of {gram.size} examples and the kernel {gram.kernel.name}; "
            f"it must be of the {len(x)} examples and {kernel.name}"
        )
    return gram.replace(kernel=kernel)
