"""Kernels, and kernel matrices whose costly part is shared by all bandwidths.

A kernel is an elementwise function of a base: squared distances or inner products. The
base of the training examples is computed and kept once and serves any number of
bandwidths.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import checks, parallel, pieces
from deepsad_jax.data import memory

KERNELS = ("rbf", "linear", "poly")
# Beyond so many examples, kernel values are float32, and the base is not kept.
MOST_DOUBLE, MOST_STORED = 4096, 20_000
# Squares and sums of larger values overflow float64.
LARGEST = 1e150
# Powers of larger numbers overflow.
_MOST_DEGREE, _MOST_COEF0 = 20, 1e6
# Up to so many features, sums of squared differences are faster than products.
_NARROW = 32
# Rows of a block, up to so many examples: of more, a block of 64 is large enough.
_BLOCK, _MANY = 256, 2**18


@flax.struct.dataclass
class Kernel:
    """A kernel function.

    rbf: exp(-gamma |x - y|^2); linear: <x, y>; poly: (gamma <x, y> + coef0)^degree.

    Attributes:
        gamma: > 0; of rbf and poly.
        coef0: of poly.
        name: rbf, linear or poly.
        degree: of poly, >= 1.
    """

    gamma: jax.typing.ArrayLike = 1.0
    coef0: jax.typing.ArrayLike = 0.0
    name: str = flax.struct.field(pytree_node=False, default="rbf")
    degree: int = flax.struct.field(pytree_node=False, default=3)

    def __call__(self, base: jax.Array) -> jax.Array:
        """Kernel values, in the dtype of the base, elementwise."""
        gamma = jnp.asarray(self.gamma, base.dtype)
        if self.name == "rbf":
            return jnp.exp(-gamma * base)
        if self.name == "linear":
            return base
        return (gamma * base + jnp.asarray(self.coef0, base.dtype)) ** self.degree


def check_kernel(kernel: Kernel) -> None:
    """Raises ValueError for a kernel that does not exist or whose values overflow."""
    if kernel.name not in KERNELS:
        raise ValueError(
            f"kernel is {kernel.name!r}; it must be one of {', '.join(KERNELS)}"
        )
    if kernel.name == "poly":
        check_number("degree", kernel.degree, 1, _MOST_DEGREE, whole=True)
        if is_concrete(kernel.coef0):
            check_number("coef0", kernel.coef0, -_MOST_COEF0, _MOST_COEF0)
    if is_concrete(kernel.gamma) and not 0 < kernel.gamma < np.inf:
        raise ValueError(f"gamma is {kernel.gamma}; it must be finite and > 0")


def check_number(
    name: str, value: Any, least: float, most: float = np.inf, *, whole: bool = False
) -> None:
    """Raises ValueError for what is not a finite number from `least` to `most`."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if checks.is_number_like(value) and least <= value <= most and value < np.inf:
        if not whole or value == int(value):
            return
    kind = "a whole number" if whole else "a finite number"
    limits = f"from {least:g} to {most:g}" if most < np.inf else f">= {least:g}"
    raise ValueError(f"{name} is {value!r}; it must be {kind} {limits}")


def in_float64(function: Callable) -> Callable:
    """`function` with 64-bit types, which JAX has switched off by default."""

    def as_typed(leaf):
        # What vmap carries may be a NumPy array, wider than the type it is given.
        return leaf if is_concrete(leaf) else jnp.array(leaf)

    @functools.wraps(function)
    def with_float64(*args, **kwargs):
        args, kwargs = jax.tree.map(as_typed, (args, kwargs))
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return with_float64


def is_concrete(value: Any) -> bool:
    """Whether a value can be looked at: it is not traced by jit, vmap or grad."""
    return not isinstance(value, jax.core.Tracer)


def map_rows(function: Callable, rows: jax.Array, at_once: int) -> Any:
    """`function` of each row, so many at once; all, where their number is left open by
    `jax.export`."""
    if isinstance(rows.shape[0], int):
        return lax.map(function, rows, batch_size=at_once)
    return jax.vmap(function)(rows)


def as_rows(x: jax.typing.ArrayLike) -> jax.Array:
    """Examples as float64 rows, images flattened and uint8 scaled to [0, 1].

    To be called within `in_float64`.

    Raises:
        ValueError: if `x` is not `[n, ...]` or has no examples, is not of real numbers,
            or (where its values are known) is not finite or too large to be squared.
    """
    concrete = is_concrete(x)
    if concrete:
        x = checks.rows(x)
        checks.check_finite(x)
        largest = float(np.max(np.abs(x.astype(np.float64))))
        if largest > LARGEST:
            raise ValueError(
                f"x has a value of size {largest:g}; it must be at most {LARGEST:g}, "
                "since squares of larger ones overflow: scale x"
            )
    elif x.ndim < 2 or not x.size or jnp.iscomplexobj(x):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be [n, ...], not "
            "empty, and real"
        )
    scale = 255.0 if x.dtype == jnp.uint8 else 1.0
    rows = x.reshape(x.shape[0], -1).astype(np.float64) / scale
    # Prepared by NumPy: JAX would compile each operation for each shape.
    return jax.device_put(rows) if concrete else rows


def base(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """What the kernel of that name is a function of, for all pairs.

    Args:
        name: of the kernel.
        x, y: rows, `[n, D]` and `[m, D]`.

    Returns:
        Squared distances for rbf, else inner products, `[n, m]`.
    """
    products = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    if name != "rbf":
        return products
    norms = [jnp.sum(jnp.square(rows), axis=1) for rows in (x, y)]
    return jnp.maximum(norms[0][:, None] + norms[1] - 2 * products, 0.0)


def near_zero(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both less the mean of `y`: the distances are the same, and better rounded."""
    center = jnp.mean(y, axis=0)
    return x - center, y - center


@flax.struct.dataclass
class Gram:
    """The kernel matrix of examples with each other, padded to whole blocks.

    Attributes:
        x: the examples as rows, `[padded, D]` float64, zeros beyond the last.
        base: `[padded, padded]`, or None to recompute rows when needed.
        kernel: the function of the base; another one of the same name may replace it.
        size: number of examples.
        columns: of squared distances that are recomputed and are of few features, the
            examples less their mean, `[D, padded]`.
    """

    x: jax.Array
    base: jax.Array | None
    kernel: Kernel
    size: int = flax.struct.field(pytree_node=False)
    columns: jax.Array | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the kernel values: float64 up to `MOST_DOUBLE` examples."""
        return _dtype(self.size)

    def row(self, index: jax.Array) -> jax.Array:
        """A row of the kernel matrix, `[padded]`."""
        return self.kernel(self.base_rows(index, 1)[0])

    def base_rows(self, start: jax.Array, count: int) -> jax.Array:
        """Rows from `start` on of the kernel's base, `[count, padded]`."""
        if self.base is not None:
            return lax.dynamic_slice_in_dim(self.base, start, count)
        return self.base_of(start + jnp.arange(count))

    def base_of(self, indices: jax.Array) -> jax.Array:
        """Rows of the kernel's base, `[k, padded]`."""
        if self.base is not None:
            return self.base[indices]
        if self.columns is not None:
            # Else each value would be looked up where it stands, one at a time.
            few = lax.optimization_barrier(self.columns[:, indices])
            return _squared_distances(few, self.columns)
        return base(self.kernel.name, self.x[indices], self.x).astype(self.dtype)

    @property
    def blocks(self) -> int:
        """How many blocks of rows there are."""
        return len(self.x) // _block(len(self.x))

    def block(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Indices and rows of the base of a block, `[block]` and `[block, padded]`."""
        size = _block(len(self.x))
        indices = i * size + jnp.arange(size)
        return indices, self.base_rows(i * size, size)

    def between(self, indices: jax.Array) -> jax.Array:
        """The kernel matrix of a few examples with each other, `[k, k]`."""
        if self.columns is not None:
            few = self.columns[:, indices]
            return self.kernel(_squared_distances(few, few))
        if self.base is None:
            few = base(self.kernel.name, self.x[indices], self.x[indices])
            return self.kernel(few.astype(self.dtype))
        return self.kernel(self.base[indices[:, None], indices])

    def times(
        self, weights: jax.Array, tell: Callable[[float], None] | None = None
    ) -> jax.Array:
        """The kernel matrix times a vector, `[padded]` float64; `tell`: see `pieces`.

        Rows without weight cost nothing.
        """
        is_weightless = weights == 0
        order, size = jnp.argsort(is_weightless), _block(len(self.x))
        last = -(-(len(self.x) - jnp.sum(is_weightless)) // size)
        start = functools.partial(_times, self, weights, order), jnp.zeros(len(self.x))
        if tell is not None:
            return pieces.in_pieces(*start, int(last), tell)
        return start[0](start[1], 0, last)


@parallel.compiled
def _times(gram, weights, order, result, first, last):
    """Some blocks of rows of `Gram.times`, added to the result.

    A product of each block, whose sums are as short as float32 allows: in a loop of
    XLA's own, kernel values would be computed one at a time.
    """
    size = _block(len(gram.x))

    def of_block(i, result):
        places = lax.dynamic_slice_in_dim(order, i * size, size)
        rows = gram.kernel(gram.base_of(places))
        own = weights[places].astype(rows.dtype)
        product = jnp.matmul(own, rows, precision=lax.Precision.HIGHEST)
        return result + product.astype(jnp.float64)

    return lax.fori_loop(first, last, of_block, result)


def _squared_distances(few, columns):
    """`[k, n]` from features `[D, k]` and `[D, n]`; one loop, without cancellation."""
    return functools.reduce(
        jnp.add,
        (
            jnp.square(own[:, None] - others)
            for own, others in zip(few, columns, strict=True)
        ),
    )


@in_float64
def gram(kernel: Kernel, x: jax.typing.ArrayLike, stored: bool | None = None) -> Gram:
    """The kernel matrix of examples with each other.

    Args:
        kernel: the kernel.
        x: examples, `[n, ...]`, uint8 (scaled to [0, 1]) or floating.
        stored: whether to keep its base, in 4 n^2 bytes (8 up to `MOST_DOUBLE`); by
            default if `keeps` says so, and what a large one costs is told. Otherwise
            rows are recomputed whenever they are needed.

    Returns:
        The matrix; `gram.replace(kernel=...)` is that of another bandwidth.
    """
    check_kernel(kernel)
    rows = as_rows(x)
    size = len(rows)
    rows = padded(rows, -size % _block(size))
    if stored is None:
        stored = keeps(size)
        _announce(size, rows.shape[1], stored)
    own_base, columns, near = None, None, rows
    if kernel.name == "rbf":  # by NumPy, see `as_rows`
        near = np.asarray(rows) if is_concrete(rows) else rows
        near = near - near[:size].mean(axis=0)
    if stored:
        own_base = _own_base(kernel.name, _dtype(size), near)
    elif kernel.name == "rbf" and rows.shape[1] <= _NARROW:
        columns = near.T.astype(_dtype(size))
    return Gram(rows, own_base, kernel, size, columns)


def _announce(size: int, width: int, stored: bool) -> None:
    """Says beforehand what a large kernel matrix costs."""
    gigabytes = matrix_size(size) / 1e9
    if stored and size > MOST_DOUBLE:
        logging.getLogger(__name__).info(
            "the kernel matrix of %d examples takes %.1f GB", size, gigabytes
        )
    elif not stored:
        warnings.warn(
            f"the kernel matrix of {size} examples takes {gigabytes:.0f} GB and is not "
            f"kept: each pass over it costs {2 * size**2 * width:.1e} operations, and "
            f"each of a solver's steps, often as many as examples, some "
            f"{6 * size * width:.1e}; fewer examples are faster",
            RuntimeWarning,
            stacklevel=4,
        )


def keeps(size: int) -> bool:
    """Whether the kernel matrix of so many examples is kept: it must be of a size that
    the free memory takes, and at most that of `MOST_STORED`."""
    return size <= MOST_STORED and 1.25 * matrix_size(size) < memory.available()


def check_memory(size: int, width: int) -> None:
    """Raises ValueError if so many rows do not fit into the memory, without a matrix.

    Args:
        size, width: of the rows.
    """
    # The rows in float64, twice, and blocks of kernel values.
    needed, free = 8 * size * (2 * width + 3 * _block(size)), memory.available()
    if needed > free:
        raise ValueError(
            f"{size} rows of {width} numbers need {needed / 1e9:.3g} GB of memory, of "
            f"which {free / 1e9:.3g} GB are free; give fewer rows, or let some hundred "
            "components stand for them, where a method has that option"
        )


def matrix_size(size: int) -> int:
    """Bytes of the kernel matrix of so many examples."""
    return size**2 * _dtype(size).itemsize


def padded(x: jax.Array, missing: int) -> jax.Array:
    """An array with so many zeros behind it, on its first axis."""
    padding = ((0, missing), *((0, 0),) * (jnp.ndim(x) - 1))
    return jax.device_put(np.pad(x, padding)) if is_concrete(x) else jnp.pad(x, padding)


@functools.partial(parallel.compiled, static=(0, 1))
def _own_base(name: str, dtype: Any, x: jax.Array) -> jax.Array:
    """The base of examples with each other: one triangle computed, then mirrored."""
    block = _block(len(x))
    blocks = len(x) // block
    rows, columns = np.triu_indices(blocks)
    own = np.arange(block)

    def one_tile(i, matrix):
        top, left = jnp.asarray(rows)[i] * block, jnp.asarray(columns)[i] * block
        tile = base(
            name,
            lax.dynamic_slice_in_dim(x, top, block),
            lax.dynamic_slice_in_dim(x, left, block),
        ).astype(dtype)
        if name == "rbf":  # an example is at distance 0 from itself, whatever rounding
            same = (top + own)[:, None] == left + own
            tile = jnp.where(same, 0.0, tile)
        matrix = lax.dynamic_update_slice(matrix, tile, (top, left))
        return lax.dynamic_update_slice(matrix, tile.T, (left, top))

    start = jnp.zeros((len(x), len(x)), dtype)
    return lax.fori_loop(0, len(rows), one_tile, start)


def _dtype(size: int) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if size <= MOST_DOUBLE else jnp.float32)


def _block(size: int) -> int:
    """Rows of a block; a multiple of 64, which `dual` counts on."""
    return _BLOCK if _BLOCK < size <= _MANY else 64
