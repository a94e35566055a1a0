"""Kernel density estimation, with the bandwidth chosen by cross-validation.

Densities are sums over all training examples, taken as stable logarithms in float64:
exact, where trees approximate. Cross-validation computes the distances once for all
bandwidths and folds.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import checks, kernels, parallel, pieces, selection

Fitted = selection.Fitted

# The logarithm of each kernel at distance 1 bandwidth times u, given u squared.
_LOG_KERNELS = {
    "gaussian": lambda u2: -u2 / 2,
    "exponential": lambda u2: -jnp.sqrt(u2),
    "tophat": lambda u2: jnp.where(u2 < 1, 0.0, -jnp.inf).astype(u2.dtype),
    "epanechnikov": lambda u2: jnp.log(jnp.maximum(1 - u2, 0.0)),
    "linear": lambda u2: jnp.log(jnp.maximum(1 - jnp.sqrt(u2), 0.0)),
}
KERNELS = tuple(_LOG_KERNELS)
# The grid of Deep SAD's paper.
BANDWIDTHS = 2.0 ** np.linspace(0.5, 5, 10)
# What stands for the score where the density is 0, so that scores have ranks.
MOST = float(np.finfo(np.float32).max)
# Rows that are scored at once, and kernel values of them at most.
_SCORED_AT_ONCE, _VALUES = 256, 2**25


@flax.struct.dataclass
class Density:
    """A density estimate.

    Attributes:
        x: training examples as rows, `[n, D]` float64.
        bandwidth: > 0.
        kernel: one of `KERNELS`.
    """

    x: jax.Array
    bandwidth: jax.Array
    kernel: str = flax.struct.field(pytree_node=False, default="gaussian")


@kernels.in_float64
def fit(
    x: jax.typing.ArrayLike,
    *,
    bandwidth: jax.typing.ArrayLike,
    kernel: str = "gaussian",
) -> Density:
    """The density estimate of some examples.

    Args:
        x: training examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        bandwidth: > 0.
        kernel: one of `KERNELS`.

    Raises:
        ValueError: for a wrong kernel, bandwidth or examples.
    """
    check_options(kernel, bandwidth)
    if np.ndim(bandwidth):
        raise ValueError(f"bandwidth has shape {np.shape(bandwidth)}; it must be one")
    return Density(kernels.as_rows(x), jnp.asarray(bandwidth, jnp.float64), kernel)


@kernels.in_float64
def log_density(density: Density, x: jax.typing.ArrayLike) -> jax.Array:
    """Logarithm of the density, `[m]` float64; -inf beyond a kernel of bounded support.

    Args:
        density: the estimate.
        x: examples, `[m, ...]`, of the shape and scale of the training examples.

    Raises:
        ValueError: if the examples do not have the width of the training examples.
    """
    rows, own = kernels.near_zero(_rows_for(density, x), density.x)
    density = density.replace(x=own)
    return _log_density(density, rows, jnp.asarray(density.bandwidth)[None])[0]


def score(density: Density, x: jax.typing.ArrayLike) -> jax.Array:
    """Minus the logarithm of the density: higher = more anomalous; as `log_density`."""
    return -log_density(density, x)


@kernels.in_float64
def cross_validate(
    x: jax.typing.ArrayLike,
    bandwidths: jax.typing.ArrayLike,
    *,
    kernel: str = "gaussian",
    folds: int = 5,
    tell: Callable[[float], None] | None = None,
) -> jax.Array:
    """Log-likelihood of held-out folds: what scikit-learn's `GridSearchCV` maximizes.

    Args:
        x: examples, `[n, ...]`, in `folds` consecutive folds (as `KFold` makes them).
        bandwidths: candidates, `[k]`, > 0.
        kernel: one of `KERNELS`.
        folds: at least 2 and at most n.
        tell: called now and then with the share of the work that is done; not for
            `jit`.

    Returns:
        For each bandwidth the mean over folds of the sum of the log densities of the
        fold's examples under the others, `[k]`. The best bandwidth is the first with
        the largest value.

    Raises:
        ValueError: for wrong options or examples.
    """
    check_options(kernel, bandwidths)
    if np.ndim(bandwidths) != 1:
        raise ValueError(f"bandwidths is {bandwidths!r}; it must be a list of numbers")
    # Each distance is looked at once: nothing is gained by keeping all of them.
    gram = kernels.gram(kernels.Kernel(), x, stored=False)
    is_whole = isinstance(folds, numbers.Integral) and not isinstance(folds, bool)
    if not (is_whole and 2 <= folds <= gram.size):
        raise ValueError(
            f"folds is {folds!r}; it must be at least 2 and at most the {gram.size} "
            "examples"
        )
    sizes = np.full(folds, gram.size // folds)
    sizes[: gram.size % folds] += 1
    fold_of = np.repeat(np.arange(folds), sizes)
    fold_of = np.pad(fold_of, (0, len(gram.x) - gram.size), constant_values=-1)
    bandwidths = jnp.asarray(bandwidths, gram.dtype)
    step = functools.partial(_validated, kernel, gram, fold_of, bandwidths)
    start, count = jnp.zeros(len(bandwidths)), gram.blocks
    if tell is None:
        return step(start, 0, count) / folds
    return pieces.in_pieces(step, start, count, tell) / folds


@dataclasses.dataclass(frozen=True)
class KernelDensity:
    """What scores with a density's arrays.

    Attributes:
        kernel: one of `KERNELS`.
    """

    kernel: str = "gaussian"
    float64: ClassVar[bool] = True

    def score(self, variables: dict[str, Any], x: jax.typing.ArrayLike) -> jax.Array:
        """Minus the logarithm of the density, at most `MOST`, `[batch]` float64."""
        return _scores(self.kernel, variables["params"], x)[0]


@dataclasses.dataclass(frozen=True)
class KDE(selection.Shallow):
    """Kernel density estimation.

    Attributes:
        kernel: gaussian, exponential, tophat, epanechnikov or linear.
        bandwidth: > 0; 0 is chosen, or Scott's rule where nothing chooses it.
        selection: likelihood, train_labels, test_auc or none; "" is likelihood, unless
            there is a bandwidth.
    """

    kernel: str = "gaussian"
    bandwidth: float = 0.0
    selection: str = ""
    method: ClassVar[str] = "kde"
    parameter: ClassVar[str] = "bandwidth"
    selections: ClassVar[tuple[str, ...]] = (
        "likelihood",
        "train_labels",
        "test_auc",
        "none",
    )
    preferred: ClassVar[str] = "likelihood"
    candidates: ClassVar[np.ndarray] = BANDWIDTHS

    def check_options(self, semi_targets: np.ndarray) -> None:
        del semi_targets
        check_options(self.kernel, 1.0)
        kernels.check_number("bandwidth", self.bandwidth, 0)

    def default(self, x: np.ndarray, seed: int) -> float:
        """The given bandwidth, or that of Scott's rule."""
        if self.bandwidth:
            return float(self.bandwidth)
        spread = np.sqrt(np.mean(np.var(x, axis=0, dtype=np.float64)))
        if spread <= 1e-7 * np.abs(x).max():  # what is rounded of equal rows
            return 1.0
        return float(spread * len(x) ** (-1 / (x.shape[1] + 4)))

    def prepare(
        self,
        x: np.ndarray,
        semi_targets: np.ndarray,
        seed: int,
        tell: Callable[[float], None] | None = None,
    ) -> Callable[[float], Fitted]:
        kernels.check_memory(*x.shape)
        rows = np.asarray(kernels.in_float64(kernels.as_rows)(x))

        def fit(bandwidth):
            params = {"x": rows, "bandwidth": np.float64(bandwidth)}
            return KernelDensity(self.kernel), {"params": params}

        return fit

    def grid(
        self, fit: Callable[[float], Fitted], rows: np.ndarray
    ) -> Iterator[tuple[Fitted, np.ndarray]]:
        fitted = [fit(value) for value in self.candidates]
        params = fitted[0][1]["params"] | {"bandwidth": self.candidates}
        return zip(fitted, np.asarray(_scores(self.kernel, params, rows)), strict=True)

    def likelihood(
        self, x: np.ndarray, tell: Callable[[float], None] | None = None
    ) -> np.ndarray:
        options = {"kernel": self.kernel, "folds": min(selection.FOLDS, len(x))}
        return np.asarray(cross_validate(x, self.candidates, tell=tell, **options))

    def seconds(
        self, x: np.ndarray, semi_targets: np.ndarray, seed: int, by: str
    ) -> float:
        # Scores of all held-out rows look at four fifths of all distances.
        passes = {"likelihood": 1.0, "train_labels": 0.8}.get(by, 0.0)
        return passes and passes * selection.timed(self.likelihood, x, seed)


@kernels.in_float64
def _scores(kernel, params, examples):
    """Scores under one or more bandwidths, `[k, m]`."""
    x, bandwidths = (jnp.asarray(params[n], jnp.float64) for n in ("x", "bandwidth"))
    density = Density(x, jnp.atleast_1d(bandwidths), kernel)
    rows = _rows_for(density, examples)
    return jnp.minimum(-_log_density(density, rows, density.bandwidth), MOST)


def log_normalization(kernel: str, dimension: int) -> float:
    """Logarithm of the integral of a kernel of bandwidth 1 over the space."""
    ball = dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
    return {
        "gaussian": dimension / 2 * math.log(2 * math.pi),
        # Integrals of f(r) dimension r^(dimension - 1) over r, times the ball's volume.
        "exponential": ball + math.lgamma(dimension + 1),
        "tophat": ball,
        "epanechnikov": ball + math.log(2 / (dimension + 2)),
        "linear": ball - math.log(dimension + 1),
    }[kernel]


def check_options(kernel: str, bandwidths: jax.typing.ArrayLike) -> None:
    """Raises ValueError for a kernel or bandwidths that are none."""
    if kernel not in KERNELS:
        raise ValueError(
            f"kernel is {kernel!r}; it must be one of {', '.join(KERNELS)}"
        )
    if kernels.is_concrete(bandwidths):
        values = np.ravel(checks.unmasked("bandwidth", bandwidths))
        if values.dtype.kind not in "iuf":
            raise ValueError(f"bandwidth is {bandwidths!r}; it must be finite and > 0")
        wrong = values[~((values > 0) & (values < np.inf))]
        if len(wrong) or not len(values):
            found = wrong[0] if len(wrong) else "not given"
            raise ValueError(f"bandwidth is {found}; it must be finite and > 0")


def _log_sum(kernel, squared, bandwidth):
    """Logarithm of the sum of kernels over the last axis; infinitely far counts 0."""
    log_kernel = _LOG_KERNELS[kernel]
    scale = bandwidth**-2
    # Kernels fall with the distance: the nearest example has the largest.
    top = log_kernel(jnp.min(squared, axis=-1, keepdims=True) * scale)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    terms = jnp.exp(log_kernel(squared * scale) - top)
    return jnp.log(jnp.sum(terms, axis=-1)) + top[..., 0]


@parallel.compiled
def _log_density(density, rows, bandwidths):
    """Log densities under several bandwidths, `[k, m]`, from the same distances."""

    def one(row):
        squared = kernels.base("rbf", row[None], density.x)[0]
        return lax.map(lambda h: _log_sum(density.kernel, squared, h), bandwidths)

    size, dimension = density.x.shape
    at_once = max(1, min(_SCORED_AT_ONCE, _VALUES // size))
    sums = kernels.map_rows(one, rows, at_once)
    whole = log_normalization(density.kernel, dimension) + math.log(size)
    return (sums - whole - dimension * jnp.log(bandwidths)).T


def _rows_for(density, x):
    rows = kernels.as_rows(x)
    if rows.shape[1] != density.x.shape[1]:
        raise ValueError(
            f"x has {rows.shape[1]} features, but the model was fitted to "
            f"{density.x.shape[1]}"
        )
    return rows


@functools.partial(parallel.compiled, static=(0,))
def _validated(kernel, gram, fold_of, bandwidths, total, first, last):
    """The total with the log densities of some blocks of held-out examples."""
    dimension = gram.x.shape[1]
    scale = dimension * jnp.log(bandwidths.astype(jnp.float64))
    scale += log_normalization(kernel, dimension)

    def of_block(i, total):
        indices, squared = gram.block(i)
        # Neither the own fold nor padding counts.
        out = (fold_of[indices][:, None] == fold_of) | (fold_of < 0)
        squared = jnp.where(out, jnp.inf, squared)
        sums = lax.map(lambda h: _log_sum(kernel, squared, h), bandwidths)
        others = jnp.log(jnp.sum(~out, axis=1))[:, None]
        densities = sums.T.astype(jnp.float64) - others - scale
        held_out = (fold_of[indices] >= 0)[:, None]
        return total + jnp.sum(jnp.where(held_out, densities, 0.0), axis=0)

    return lax.fori_loop(first, last, of_block, total)
