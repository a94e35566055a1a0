r"""Linear one-class machines on Nystroem features, for more rows than a kernel matrix.

k rows are drawn as landmarks, and K(x, landmarks) K(landmarks, landmarks)^(-1/2) takes
the place of the kernel's own features (Williams and Seeger, NIPS 2000): memory and time
grow with the number of rows, not with its square. What is found is a machine with the
landmarks as its examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deepsad_jax import kernels
from deepsad_jax.data import memory

# Examples whose features are computed at once; such as SGD should see in all
# (https://scikit-learn.org/stable/modules/sgd.html#tips-on-practical-use), in how many
# passes at most; and bytes of features that are kept from one pass to the next.
_BLOCK, _SEEN, _PASSES, _KEPT = 4096, 10**6, 100, 2**28
# Widths of the smooth part of the hinge, in mean squared lengths of the features.
_SMOOTH = (1e-1, 1e-2, 1e-3)
_MOST_STEPS, _TOLERANCE = 300, 1e-6
# Added to the Hessian, in means of its diagonal: where a step fails, a hundred times.
_LEAST = 1e-9


class Expansion(NamedTuple):
    """Score: `threshold` minus the kernel expansion; `x` `[k, D]`, `weights` `[k]`."""

    x: np.ndarray
    weights: np.ndarray
    threshold: float


class _Features:
    """Nystroem features of rows, by scikit-learn."""

    def __init__(self, kernel: kernels.Kernel, x: np.ndarray, count: int, seed: int):
        from sklearn import kernel_approximation

        own = {} if kernel.name == "linear" else {"gamma": float(kernel.gamma)}
        if kernel.name == "poly":
            own |= {"coef0": float(kernel.coef0), "degree": kernel.degree}
        self._map = kernel_approximation.Nystroem(
            kernel=kernel.name,
            n_components=min(count, len(x)),
            random_state=seed,
            **own,
        )
        # In float64: roots of small eigenvalues are divided by.
        rows = np.random.default_rng(seed).permutation(len(x))[:count]
        self._map.fit(x[rows].astype(np.float64))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._map.transform(x.astype(np.float64))

    def expansion(self, weights: np.ndarray, threshold: float) -> Expansion:
        weights = self._map.normalization_.T @ weights
        return Expansion(self._map.components_, weights, float(threshold))


def fit_ocsvm(
    x: np.ndarray,
    *,
    nu: float,
    kernel: kernels.Kernel,
    components: int,
    seed: int = 0,
    tell: Callable[[float], None] | None = None,
) -> Expansion:
    """The one-class SVM by stochastic gradients, scikit-learn's `SGDOneClassSVM`.

    Args:
        x: rows, `[n, D]`; many features are computed by blocks, whenever needed.
        nu: as of `kernel_machines.fit_ocsvm`.
        kernel: the kernel.
        components: landmarks, >= 1.
        seed: draws them, and the order of the rows.
        tell: called with the share of the work that is done.
    """
    from sklearn import linear_model

    features = _Features(kernel, x, components, seed)
    machine = linear_model.SGDOneClassSVM(nu=nu, random_state=seed)
    rng, passes = np.random.default_rng(seed), min(_PASSES, -(-_SEEN // len(x)))
    count = -(-len(x) // _BLOCK)
    kept = 8 * len(x) * components <= _KEPT and features(x)
    for i in range(passes):
        for j, rows in enumerate(np.array_split(rng.permutation(len(x)), count)):
            machine.partial_fit(features(x[rows]) if kept is False else kept[rows])
            if tell is not None:
                tell((i + (j + 1) / count) / passes)
    return features.expansion(machine.coef_.ravel(), machine.offset_.item())


def fit_ssad(
    x: np.ndarray,
    semi_targets: np.ndarray,
    *,
    kappa: float,
    upper: np.ndarray,
    kernel: kernels.Kernel,
    components: int,
    seed: int = 0,
    tell: Callable[[float], None] | None = None,
) -> Expansion:
    r"""SSAD in the primal, by Newton's method.

        minimize  |w|^2 / 2 - rho - kappa gamma + sum_i upper_i h(z_i),  gamma >= 0
        z = rho - <w, phi>              unlabeled
            gamma + y (rho - <w, phi>)  labeled

    where h is the hinge, made smooth over a thousandth of the features' squared length.

    Args:
        x: rows, `[n, D]`; features take 4 n `components` bytes.
        semi_targets: +1, 0 or -1 of each.
        kappa, upper: weight of the margin, and of each example.
        kernel, components, seed, tell: as of `fit_ocsvm`.

    Raises:
        ValueError: if the features are larger than the free memory.
    """
    check_memory(len(x), components)
    features = _Features(kernel, x, components, seed)
    phi = np.concatenate(
        [
            features(x[first : first + _BLOCK]).astype(np.float32)
            for first in range(0, len(x), _BLOCK)
        ]
    )
    sign = np.where(semi_targets < 0, -1.0, 1.0)
    problem = _Primal(phi, sign, np.abs(semi_targets), upper, kappa)
    length = float(np.mean(np.einsum("ij,ij->i", phi, phi)))
    weights = phi.mean(axis=0, dtype=np.float64)
    point = np.append(weights, [np.quantile(phi @ weights, 0.01), 0.0])
    for i, width in enumerate(_SMOOTH):
        point = problem.solved(point, width * length)
        if tell is not None:
            tell((i + 1) / len(_SMOOTH))
    return features.expansion(point[:-2], point[-2])


def check_memory(size: int, components: int) -> None:
    """Raises ValueError if the features of so many rows do not fit into the memory."""
    needed, free = 2 * 4 * size * components, memory.available()
    if needed > free:
        raise ValueError(
            f"components is {components}, which for {size} rows needs "
            f"{needed / 1e9:.3g} GB of memory, of which {free / 1e9:.3g} GB are free; "
            "take fewer components or rows"
        )


class _Primal:
    """The problem of SSAD; a point is w, rho and gamma, `[k + 2]`.

    Args:
        phi: features, `[n, k]`.
        sign: -1 of anomalies, else 1, `[n]`.
        labeled: 1 of labeled examples, else 0, `[n]`.
        upper: weights of the examples, `[n]`.
        kappa: that of the margin.
    """

    def __init__(self, phi, sign, labeled, upper, kappa):
        self._phi, self._sign, self._upper = phi, sign, upper
        self._labeled, self._kappa = labeled, kappa if labeled.any() else 0.0

    def solved(self, point: np.ndarray, width: float) -> np.ndarray:
        """The minimum from a point on, for a hinge that is smooth over a width."""
        if self._labeled.any():
            found = self._minimum(point, width, free=len(point))
            if found[-1] >= 0:
                return found
        # The problem is convex: its bound is active.
        return self._minimum(np.append(point[:-1], 0.0), width, free=len(point) - 1)

    def _minimum(self, point, width, free):
        value, gradient, hessian = self._around(point, width)
        damping = _LEAST
        for _ in range(_MOST_STEPS):
            if np.abs(gradient[:free]).max() < _TOLERANCE:
                break
            inner = hessian[:free, :free]
            ridge = damping * np.trace(inner) / free
            step = np.zeros_like(point)
            step[:free] = -np.linalg.solve(
                inner + ridge * np.eye(free), gradient[:free]
            )
            slope, size = gradient @ step, 1.0
            while self._value(point + size * step, width) > value + 1e-4 * size * slope:
                size /= 2
                if size < 1e-3:
                    break
            else:
                point, damping = point + size * step, max(_LEAST, damping / 10)
                value, gradient, hessian = self._around(point, width)
                continue
            # No labeled row is where the hinge is bent, so nothing says how far to go.
            damping *= 100
            if damping > 1e12:
                break
        return point

    def _excess(self, point):
        inside = point[-2] - self._phi @ point[:-2].astype(np.float32)
        return self._sign * inside + self._labeled * point[-1]

    def _value(self, point, width):
        z = np.maximum(self._excess(point), 0.0)
        hinge = np.where(z < width, z**2 / (2 * width), z - width / 2)
        fixed = 0.5 * point[:-2] @ point[:-2] - point[-2] - self._kappa * point[-1]
        return fixed + self._upper @ hinge

    def _around(self, point, width):
        """Value, gradient `[k + 2]` and Hessian."""
        z = self._excess(point)
        pull = self._upper * np.clip(z / width, 0.0, 1.0)
        gradient = np.append(point[:-2], [-1.0, -self._kappa])
        gradient[:-2] -= (self._sign * pull).astype(np.float32) @ self._phi
        gradient[-2] += self._sign @ pull
        gradient[-1] += self._labeled @ pull
        bent = np.flatnonzero((z > 0) & (z < width))
        sign = self._sign[bent, None]
        rows = np.hstack(
            [-sign * self._phi[bent], sign, self._labeled[bent, None].astype(float)]
        )
        hessian = (rows * (self._upper[bent, None] / width)).T @ rows
        places = np.arange(len(point) - 2)
        hessian[places, places] += 1.0
        return self._value(point, width), gradient, hessian
