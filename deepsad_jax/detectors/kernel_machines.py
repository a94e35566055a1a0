"""One-class kernel machines: SSAD, which takes labels, and the one-class SVM.

SSAD (Goernitz et al., JAIR 2013) is a one-class machine whose labeled normal examples
are to lie inside the boundary and whose labeled anomalies outside, with a margin that
`kappa` weighs. The one-class support vector machine (Schoelkopf et al., 2001) sees no
labels. `dual` states and solves the problem of both.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import kernels, nystroem, parallel, selection
from deepsad_jax.detectors.machines import (
    TOO_LARGE,
    Machine,
    check_ocsvm,
    check_ssad,
    fit_ocsvm,
    fit_ssad,
)

__all__ = [
    "GAMMAS",
    "Machine",
    "fit_ssad",
    "fit_ocsvm",
    "check_ssad",
    "check_ocsvm",
    "score",
    "compact",
    "KernelMachine",
    "packed",
    "SSAD",
    "OneClassSVM",
]

Fitted = selection.Fitted

# Powers of larger numbers overflow.
_MOST_DEGREE, _MOST_COEF0 = 20, 1e6
# The grid of Deep SAD's paper.
GAMMAS = 2.0 ** np.linspace(-7, 2, 10)
# Rows that are scored at once, and kernel values of them at most.
_SCORED_AT_ONCE, _VALUES = 256, 2**25
_RULE_OF_THUMB_ROWS = 1000


def score(machine: Machine, x: jax.typing.ArrayLike) -> jax.Array:
    """Anomaly score: the threshold minus the kernel expansion; higher = more anomalous.

    Args:
        machine: the machine.
        x: examples, `[m, ...]`, of the shape and scale of the training examples.

    Returns:
        Scores, `[m]` float64; above 0 outside the boundary.

    Raises:
        ValueError: if the examples do not have the width of the training examples, or
            are so large that their kernel values overflow.
    """
    arrays = machine.x, machine.weights, machine.threshold
    return _score(machine.kernel, *arrays, x, is_scaled=False)


def compact(machine: Machine) -> Machine:
    """The same machine without most of what its score does not need.

    Keeps the support vectors, filled up to a power of two by other examples, so that
    machines of about one size share compiled programs; of a linear machine, its normal
    vector alone. Not for `jit`.
    """
    weights, x = np.asarray(machine.weights), np.asarray(machine.x)
    if machine.kernel.name == "linear":
        return machine.replace(x=(weights @ x)[None], weights=np.ones(1))
    unused = weights == 0
    size = 2 ** math.ceil(math.log2(max(np.sum(~unused), 1)))
    kept = np.argsort(unused, kind="stable")[:size]
    return machine.replace(x=x[kept], weights=weights[kept])


@dataclasses.dataclass(frozen=True)
class KernelMachine:
    """What scores with a machine's arrays, see `packed`; kernel as `kernels.Kernel`."""

    kernel: str = "rbf"
    degree: int = 3
    float64: ClassVar[bool] = True

    def score(self, variables: dict[str, Any], x: jax.typing.ArrayLike) -> jax.Array:
        """Scores, `[batch]` float64; see the module's `score`."""
        params = variables["params"]
        kernel = kernels.Kernel(
            params["gamma"], params["coef0"], self.kernel, self.degree
        )
        arrays = (params[name] for name in ("x", "weights", "threshold"))
        return _score(kernel, *arrays, x)


def packed(machine: Machine) -> Fitted:
    """A machine as an objective and its variables, float64 NumPy arrays."""
    kernel = machine.kernel
    params = {name: getattr(machine, name) for name in ("x", "weights", "threshold")}
    params |= {"gamma": kernel.gamma, "coef0": kernel.coef0}
    params = {name: np.asarray(part, np.float64) for name, part in params.items()}
    return KernelMachine(kernel.name, kernel.degree), {"params": params}


@dataclasses.dataclass(frozen=True)
class _Options(selection.Shallow):
    """The kernel of a machine, and how its gamma is chosen; see `SSAD`."""

    kernel: str = "rbf"
    gamma: float = 0.0
    coef0: float = 0.0
    degree: int = 3
    components: int = 0
    selection: str = ""
    advice: ClassVar[str] = "fewer rows, or some hundred components, are faster"
    parameter: ClassVar[str] = "gamma"
    selections: ClassVar[tuple[str, ...]] = ("none", "train_labels", "test_auc")
    candidates: ClassVar[np.ndarray] = GAMMAS

    def chosen_by(self, semi_targets: np.ndarray | None) -> str:
        if self.kernel == "linear":
            return "none"  # there is no gamma to choose
        return super().chosen_by(semi_targets)

    def check_options(self, semi_targets: np.ndarray) -> None:
        kernels.check_kernel(self._kernel(1.0))
        kernels.check_number("gamma", self.gamma, 0)
        kernels.check_number("degree", self.degree, 1, _MOST_DEGREE, whole=True)
        kernels.check_number("coef0", self.coef0, -_MOST_COEF0, _MOST_COEF0)
        kernels.check_number("components", self.components, 0, whole=True)

    def default(self, x: np.ndarray, seed: int) -> float:
        """The given gamma, or one over the median squared distance of a few rows."""
        if self.gamma:
            return float(self.gamma)
        few = np.random.default_rng(seed).permutation(x)[:_RULE_OF_THUMB_ROWS]
        few = few.astype(np.float64)
        few -= few.mean(axis=0)
        squared = np.asarray(kernels.in_float64(_base)("rbf", few, few))
        squared = squared[np.triu_indices(len(few), 1)]
        # Equal rows are apart by what is rounded.
        positive = squared[squared > 1e-12 * np.square(few).sum(axis=1).max()]
        return float(1 / np.median(positive)) if len(positive) else 1.0

    def prepare(
        self,
        x: np.ndarray,
        semi_targets: np.ndarray,
        seed: int,
        tell: Callable[[float], None] | None = None,
    ) -> Callable[[float], Fitted]:
        if self.components:
            return functools.partial(self._approximate, x, semi_targets, seed, tell)
        stored = kernels.keeps(len(x))
        kernels.check_memory(*x.shape)
        shared = {"gram": kernels.gram(self._kernel(1.0), x, stored)}
        shared["tell"] = None if stored else tell  # small problems share a program

        def fit(gamma):
            kernel = self._kernel(gamma)
            machine = self.machine(x, semi_targets, kernel=kernel, **shared)
            return packed(compact(machine))

        return fit

    def _approximate(self, x, semi_targets, seed, tell, gamma):
        kernel = self._kernel(gamma)
        options = {"components": self.components, "seed": seed, "tell": tell}
        found = self.expansion(x, semi_targets, kernel=kernel, **options)
        return packed(Machine(*found, kernel, *map(np.float64, (0, 0, 0))))

    def seconds(
        self, x: np.ndarray, semi_targets: np.ndarray, seed: int, by: str
    ) -> float:
        if self.components:
            return 0.0
        kernel = self._kernel(self.default(x, seed))

        def fit(x, semi_targets):
            gram = kernels.gram(kernel, x, stored=False)
            return self.machine(x, semi_targets, kernel=kernel, gram=gram).weights

        one = selection.timed(fit, x, seed, semi_targets)
        grid = len(self.candidates)
        fits = {"test_auc": grid, "train_labels": 1 + 0.64 * selection.FOLDS * grid}
        return fits.get(by, 1) * one

    def machine(self, x: np.ndarray, semi_targets: np.ndarray, **options) -> Machine:
        """The machine of these examples; options are the kernel and its matrix."""
        raise NotImplementedError

    def expansion(
        self, x: np.ndarray, semi_targets: np.ndarray, **options
    ) -> nystroem.Expansion:
        """The same, approximately; options are those of `nystroem`."""
        raise NotImplementedError

    def _kernel(self, gamma: float) -> kernels.Kernel:
        return kernels.Kernel(gamma, self.coef0, self.kernel, self.degree)


@dataclasses.dataclass(frozen=True)
class SSAD(_Options):
    """Semi-supervised anomaly detection with kernels (Goernitz et al., JAIR 2013).

    Attributes:
        kappa, C_unlabeled, C_normal, C_anomaly: see `fit_ssad`.
        kernel, gamma, coef0, degree: see `kernels.Kernel`; a gamma of 0 is chosen, or
            the rule of thumb, one over the median squared distance.
        components: rows that stand for all others, so that no kernel matrix of all is
            needed (see `nystroem`): some hundred, for many thousand rows. 0 is exact.
        selection: how gamma is chosen, unless it is given. "" is train_labels with two
            known anomalies or more, else none.
    """

    kappa: float = 1.0
    C_unlabeled: float = 1.0
    C_normal: float = 1.0
    C_anomaly: float = 1.0
    method: ClassVar[str] = "ssad"
    uses_labels: ClassVar[bool] = True
    preferred: ClassVar[str] = "train_labels"

    def check_options(self, semi_targets: np.ndarray) -> None:
        super().check_options(semi_targets)
        check_ssad(semi_targets, **self._bounds())

    def machine(self, x: np.ndarray, semi_targets: np.ndarray, **options) -> Machine:
        return fit_ssad(x, semi_targets, **self._bounds(), **options)

    def expansion(
        self, x: np.ndarray, semi_targets: np.ndarray, **options
    ) -> nystroem.Expansion:
        bounds = np.array([self.C_unlabeled, self.C_normal, self.C_anomaly])
        upper = bounds[np.asarray(semi_targets, int)]
        return nystroem.fit_ssad(
            x, semi_targets, kappa=self.kappa, upper=upper, **options
        )

    def _bounds(self):
        names = ("kappa", "C_unlabeled", "C_normal", "C_anomaly")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class OneClassSVM(_Options):
    """The one-class support vector machine (Schoelkopf et al., 2001).

    Attributes:
        nu: largest share of training examples outside the boundary, in (0, 1].
        kernel, gamma, coef0, degree, components: as of `SSAD`.
        selection: how gamma is chosen; "" is none.
    """

    nu: float = 0.1
    method: ClassVar[str] = "ocsvm"

    def check_options(self, semi_targets: np.ndarray) -> None:
        super().check_options(semi_targets)
        check_ocsvm(self.nu)

    def machine(self, x: np.ndarray, semi_targets: np.ndarray, **options) -> Machine:
        del semi_targets
        return fit_ocsvm(x, nu=self.nu, **options)

    def expansion(
        self, x: np.ndarray, semi_targets: np.ndarray, **options
    ) -> nystroem.Expansion:
        del semi_targets
        return nystroem.fit_ocsvm(x, nu=self.nu, **options)


@kernels.in_float64
def _score(kernel, x, weights, threshold, examples, is_scaled=True):
    rows = kernels.as_rows(examples)
    x, weights, threshold = (
        jnp.asarray(v, jnp.float64) for v in (x, weights, threshold)
    )
    if rows.shape[1] != x.shape[1]:
        raise ValueError(
            f"x has {rows.shape[1]} features, but the model was trained on {x.shape[1]}"
        )
    if kernel.name == "rbf" and not is_scaled:  # those of a model are near zero
        rows, x = kernels.near_zero(rows, x)
    scores = _expand(kernel, x, weights, threshold, rows)
    if kernels.is_concrete(scores) and not np.all(np.isfinite(scores)):
        raise ValueError(TOO_LARGE.format(kernel.name))
    return scores


_base = parallel.compiled(kernels.base, (0,))


@parallel.compiled
def _expand(kernel, x, weights, threshold, rows):
    def expansion(row):
        return kernel(kernels.base(kernel.name, row[None], x)[0]) @ weights

    at_once = max(1, min(_SCORED_AT_ONCE, _VALUES // len(x)))
    return threshold - kernels.map_rows(expansion, rows, at_once)
