"""Layers of the networks: convolution, batch normalization and PyTorch's initializers.

Each computes what its plain definition says, in the form that is fastest to run; the
tests hold every form equal to the plain one. Images are channels last. Initializers are
values, equal if their rules are; `init_from_one_draw` lets all kernels of a module come
from one random draw.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from deepsad_jax import fast_cpu, parallel

Bound = Callable[[tuple[int, ...]], float]


def fan_in_bound(shape: tuple[int, ...]) -> float:
    """PyTorch's default for dense and convolution kernels: U(+-1/sqrt(fan_in)).

    (Kaiming's uniform rule with slope sqrt(5) comes to that.) Shape is `[..., in,
    out]`.
    """
    return 1.0 / math.sqrt(math.prod(shape[:-1]))


def fan_out_bound(shape: tuple[int, ...]) -> float:
    """PyTorch's default for *transposed* convolutions: U(+-1/sqrt(k k out)).

    The same rule as `fan_in_bound`; but PyTorch stores these kernels as
    `[in, out, k, k]` and takes the second axis for the inputs.
    """
    return 1.0 / math.sqrt(math.prod(shape[:-2]) * shape[-1])


def xavier_bound(shape: tuple[int, ...]) -> float:
    """Glorot's uniform rule with the gain of a leaky ReLU of slope 0.01."""
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return math.sqrt(2.0 / (1.0 + 0.01**2)) * math.sqrt(6.0 / fans)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """The initializer that draws from U(+-bound(shape)).

    Attributes:
        bound: function of the shape `[..., in, out]`, such as `fan_in_bound`.
    """

    bound: Bound = fan_in_bound

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        return (self.bound(shape) * _draw(key, shape)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Glorot:
    """The initializer that draws from N(0, 2 / (fan_in + fan_out)), not truncated."""

    def __call__(self, key, shape, dtype=jnp.float32) -> jax.Array:
        fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        # A uniform draw may be -1 itself, whose quantile is infinite.
        normal = math.sqrt(2.0) * lax.erf_inv((1.0 - 1e-6) * _draw(key, shape))
        return (math.sqrt(2.0 / fans) * normal).astype(dtype)


PYTORCH = Uniform(fan_in_bound)


def init_from_one_draw(init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """`init(key)`, where the kernels of all initializers above are of one random draw.

    Flax draws each kernel from a key of its own, which takes XLA seconds to compile.
    Other initializers keep to their own keys, and so do those within a transformation
    of the module's own (`nn.scan`, `nn.vmap`, `nn.jit`). The values are distributed as
    those of `init(key)`, but are others.

    Args:
        init: key -> variables, the same for each call; it is called twice.
        key: random key. Under `jax.vmap` over keys, each has a draw of its own.
    """
    pool = _Pool()

    def count(key):
        with pool.of_this_trace():
            return init(key)

    jax.eval_shape(count, key)
    pool.draws = jax.random.uniform(key, (pool.taken,), minval=-1.0)
    pool.taken = 0
    with pool.of_this_trace():
        return init(key)


class _Pool:
    """Uniform draws in (-1, 1) for a module's kernels, handed out in call order."""

    def __init__(self) -> None:
        self.draws: jax.Array | None = None  # None while they are counted
        self.taken = 0

    @contextlib.contextmanager
    def of_this_trace(self) -> Iterator[None]:
        self._trace = _this_trace()
        token = _POOL.set(self)
        try:
            yield
        finally:
            _POOL.reset(token)

    def take(self, shape: tuple[int, ...]) -> jax.Array | None:
        # A body that a transformation traces once, as that of a scan, must not close
        # over the draws of one of its iterations.
        if self._trace != _this_trace():
            return None
        start = self.taken
        self.taken += math.prod(shape)
        if self.draws is None:
            return None
        return self.draws[start : self.taken].reshape(shape)


_POOL: contextvars.ContextVar[_Pool | None] = contextvars.ContextVar(
    "pool", default=None
)


def _this_trace() -> Any:
    return core.get_opaque_trace_state(convention="flax")


def _draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    pool = _POOL.get()
    draw = None if pool is None else pool.take(shape)
    return jax.random.uniform(key, shape, minval=-1.0) if draw is None else draw


class BatchNorm(nn.Module):
    """Batch normalization as in PyTorch, without affine parameters.

    In training, normalizes by the mean and the biased variance of the batch, and moves
    the running statistics toward the mean and the *unbiased* variance; in evaluation,
    normalizes by the running statistics. Statistics are kept in float32. Where devices
    share a batch (`parallel.split_batch`), they are those of the whole batch.

    Attributes:
        train: whether the batch's own statistics are used.
        momentum: share of the running statistics that is kept (PyTorch's 1 - 0.1).
        epsilon: added to the variance.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-4

    @nn.compact
    def __call__(
        self, x: jax.Array, pool: bool = False, slope: float | None = None
    ) -> jax.Array:
        """Normalizes `[batch, ..., features]` over all axes but the last.

        With `pool`, x is what `fast_cpu.max_pool` takes, and is pooled as well.
        Normalizing is monotonic, so pooling first gives the same values from a quarter
        of the work; the statistics are still those of all of x. With `slope`, a leaky
        ReLU comes last.
        """
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        if not self.train:
            x = fast_cpu.max_pool(x) if pool else x
            scale = lax.rsqrt(var.value + self.epsilon)
            y = ((x - mean.value) * scale).astype(x.dtype)
            return y if slope is None else nn.leaky_relu(y, slope)
        if x.ndim == 2 and slope is not None:
            y, batch_mean, batch_var = normalize_rows(x, self.epsilon, slope)
        else:
            y, batch_mean, batch_var = normalize(x, self.epsilon, pool)
            y = y if slope is None else nn.leaky_relu(y, slope)
        if not self.is_initializing():
            count = float(x.size // features * parallel.shares())
            unbiased = batch_var * (count / max(count - 1.0, 1.0))
            mean.value = self._move(mean.value, batch_mean)
            var.value = self._move(var.value, unbiased)
        return y

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        batch = lax.stop_gradient(batch)
        return self.momentum * running + (1.0 - self.momentum) * batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalize(
    x: jax.Array, epsilon: float, pool: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes `[batch, ..., features]` by its own statistics, see `BatchNorm`.

    Returns:
        The normalized (and pooled) values in the type of x; the mean and the biased
        variance `[features]` in float32, which pass no gradient on.
    """
    return _normalize_forward(x, epsilon, pool)[0]


def _normalize_forward(x, epsilon, pool):
    columns = _columns(x.astype(jnp.float32))
    repeats = columns.shape[1] // x.shape[-1]
    mean = _mean(columns, x.shape[-1])
    # Two passes: E[x^2] - E[x]^2 loses the digits of a small variance.
    deviations = columns - jnp.tile(mean, repeats)
    var = _mean(jnp.square(deviations), x.shape[-1])
    scale = lax.rsqrt(var + epsilon)
    top = fast_cpu.max_pool(x) if pool else x
    y = ((top - mean) * scale).astype(x.dtype)
    return (y, mean, var), (x, top, mean, scale)


def _normalize_backward(epsilon, pool, residuals, cotangents):
    # dx = scale (dy - mean(dy) - y mean(dy y)). With pooling, dy is zero except at the
    # maxima, so both means are sums over the pooled values.
    del epsilon
    x, top, mean, scale = residuals
    dy = cotangents[0].astype(jnp.float32)
    columns, y = _columns(dy), _columns((top - mean) * scale)
    share = top.size / x.size
    mean_dy = share * _mean(columns, x.shape[-1])
    mean_dyy = share * _mean(columns * y, x.shape[-1])
    if pool:
        dy = fast_cpu.spread_over_maxima(dy, top, x)
    slope = scale * scale * mean_dyy
    dx = scale * dy - slope * x - (scale * mean_dy - slope * mean)
    return (dx.astype(x.dtype),)


normalize.defvjp(_normalize_forward, _normalize_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalize_rows(
    x: jax.Array, epsilon: float, slope: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`normalize` of rows `[batch, features]`, followed by a leaky ReLU.

    Computed as `[features, batch]`, where each feature's numbers lie side by side, as
    `fast_cpu.dense` has them.
    """
    return _normalize_rows_forward(x, epsilon, slope)[0]


def _normalize_rows_forward(x, epsilon, slope):
    columns = x.T.astype(jnp.float32)
    mean = parallel.mean(jnp.mean(columns, axis=1))
    deviations = columns - mean[:, None]
    var = parallel.mean(jnp.mean(jnp.square(deviations), axis=1))
    scale = lax.rsqrt(var + epsilon)
    y = deviations * scale[:, None]
    y = jnp.where(y >= 0, y, slope * y).astype(x.dtype)
    return (y.T, mean, var), (x, mean, scale)


def _normalize_rows_backward(epsilon, slope, residuals, cotangents):
    # As `_normalize_backward`, behind the ReLU.
    del epsilon
    x, mean, scale = residuals
    y = (x.T.astype(jnp.float32) - mean[:, None]) * scale[:, None]
    dy = cotangents[0].T.astype(jnp.float32)
    dy = jnp.where(y >= 0, dy, slope * dy)
    mean_dy = parallel.mean(jnp.mean(dy, axis=1))
    mean_dyy = parallel.mean(jnp.mean(dy * y, axis=1))
    dx = scale[:, None] * (dy - mean_dy[:, None] - y * mean_dyy[:, None])
    return (dx.T.astype(x.dtype),)


normalize_rows.defvjp(_normalize_rows_forward, _normalize_rows_backward)


def _columns(x: jax.Array) -> jax.Array:
    """`[..., F]` as a matrix `[rows, k F]` wide enough for vector instructions."""
    features = x.shape[-1]
    rows = x.size // features
    repeats = math.gcd(rows, max(1, 256 // features))
    return x.reshape(rows // repeats, repeats * features)


def _mean(columns: jax.Array, features: int) -> jax.Array:
    """Means `[F]` of what `_columns` returns, over the whole batch."""
    mean = jnp.mean(jnp.mean(columns, axis=0).reshape(-1, features), axis=0)
    return parallel.mean(mean)


class Dense(nn.Module):
    """A dense layer without bias, of `[batch, in]`.

    Attributes:
        features: width.
        kernel_init: initializer of the `[in, features]` kernel.
        dtype: type of the computation.
    """

    features: int
    kernel_init: Callable = PYTORCH
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        return fast_cpu.product(x.astype(self.dtype), kernel)


class Convolution(nn.Module):
    """(Nearest-neighbor upsampling x2 and) a 5x5 convolution, stride 1, no bias.

    Attributes:
        features: output channels.
        padding: zeros around the (upsampled) input, 2 or 1.
        upsample: whether to upsample first.
        pooled: whether 2x2 max pooling is next. The result may then come as pooling
            windows, see `fast_cpu.max_pool`.
        kernel_init: initializer of the `[5, 5, in, out]` kernel.
        dtype: type of the computation.
    """

    features: int
    padding: int = 2
    upsample: bool = False
    pooled: bool = False
    kernel_init: Callable = PYTORCH
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = fast_cpu.KERNEL_SIZE
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        return fast_cpu.convolution(x, kernel, self.padding, self.upsample, self.pooled)


def conv_block(
    x: jax.Array,
    features: int,
    index: int,
    *,
    train: bool,
    slope: float = 0.01,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """5x5 convolution, batch norm, leaky ReLU, 2x2 max pooling: to half the size.

    Call it in a compact module, which gets the layers conv`index` and conv_bn`index`.
    The ReLU comes last here, which is the same, as it is monotonic.
    """
    convolution = Convolution(features, pooled=True, dtype=dtype, name=f"conv{index}")
    norm = BatchNorm(train, name=f"conv_bn{index}")
    return nn.leaky_relu(norm(convolution(x), pool=True), slope)


def halved(size: int) -> int:
    """What `halve` makes of an axis of that size."""
    return -(-size // 2) if size > 4 else size


def halve(x: jax.Array) -> jax.Array:
    """Max pooling by 2 along each axis of `[batch, *sizes, channels]` longer than 4.

    The last value of an odd axis is a window of its own.
    """
    for axis in range(1, x.ndim - 1):
        if (size := x.shape[axis]) > 4:
            padding = [(0, size % 2 if a == axis else 0) for a in range(x.ndim)]
            x = jnp.pad(x, padding, mode="edge")
            windows = (*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
            x = jnp.max(x.reshape(windows), axis=axis + 1)
    return x


def double(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Undoes `halve` as to the sizes: values are repeated, and the last ones cut."""
    for axis, size in enumerate(sizes, 1):
        if size > 4:
            x = lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, size, axis=axis)
    return x
