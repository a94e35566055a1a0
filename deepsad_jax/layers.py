"""Layers of the networks: convolution, batch normalisation and PyTorch's initialisers.

Each computes what its plain definition says, in the form that is fastest to run; the
tests hold every form equal to the plain one. Images are channels last.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from deepsad_jax import convolution


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


def uniform(bound: Callable[[tuple[int, ...]], float]) -> Callable:
    """The initialiser that draws from U(+-bound(shape))."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound(shape), bound(shape))

    return init


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch, without affine parameters.

    In training, normalises by the mean and the biased variance of the batch, and moves
    the running statistics towards the mean and the *unbiased* variance; in evaluation,
    normalises by the running statistics. Statistics are kept in float32.

    Attributes:
        train: whether the batch's own statistics are used.
        axis_name: `pmap` axis that the batch is split over: its statistics are then
            those of the whole batch.
        momentum: share of the running statistics that is kept (PyTorch's 1 - 0.1).
        epsilon: added to the variance.
    """

    train: bool
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-4

    @nn.compact
    def __call__(self, x: jax.Array, pool: bool = False) -> jax.Array:
        """Normalises `[batch, ..., features]` over all axes but the last.

        With `pool`, x is what `max_pool` takes, and is pooled as well. Normalising is
        monotonic, so pooling first gives the same values from a quarter of the work;
        the statistics are still those of all of x.
        """
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        if not self.train:
            x = max_pool(x) if pool else x
            scale = lax.rsqrt(var.value + self.epsilon)
            return ((x - mean.value) * scale).astype(x.dtype)
        y, batch_mean, batch_var = normalize(x, self.epsilon, pool, self.axis_name)
        if not self.is_initializing():
            count = float(x.size // features)
            if self.axis_name is not None:
                count = count * lax.axis_size(self.axis_name)
            unbiased = batch_var * (count / jnp.maximum(count - 1.0, 1.0))
            mean.value = self._move(mean.value, batch_mean)
            var.value = self._move(var.value, unbiased)
        return y

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        batch = lax.stop_gradient(batch)
        return self.momentum * running + (1.0 - self.momentum) * batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def normalize(
    x: jax.Array, epsilon: float, pool: bool = False, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises `[batch, ..., features]` by its own statistics, see `BatchNorm`.

    Returns:
        The normalised (and pooled) values in the type of x; the mean and the biased
        variance `[features]` in float32, which pass no gradient on.
    """
    return _normalize_forward(x, epsilon, pool, axis_name)[0]


def _normalize_forward(x, epsilon, pool, axis_name):
    columns = _columns(x.astype(jnp.float32))
    repeats = columns.shape[1] // x.shape[-1]
    mean = _mean(columns, x.shape[-1], axis_name)
    # Two passes: E[x^2] - E[x]^2 loses the digits of a small variance.
    deviations = columns - jnp.tile(mean, repeats)
    var = _mean(jnp.square(deviations), x.shape[-1], axis_name)
    scale = lax.rsqrt(var + epsilon)
    top = max_pool(x) if pool else x
    y = ((top - mean) * scale).astype(x.dtype)
    return (y, mean, var), (x, top, mean, scale)


def _normalize_backward(epsilon, pool, axis_name, residuals, cotangents):
    # dx = scale (dy - mean(dy) - y mean(dy y)). With pooling, dy is zero except at the
    # maxima, so both means are sums over the pooled values.
    del epsilon
    x, top, mean, scale = residuals
    dy = cotangents[0].astype(jnp.float32)
    columns, y = _columns(dy), _columns((top - mean) * scale)
    share = top.size / x.size
    mean_dy = share * _mean(columns, x.shape[-1], axis_name)
    mean_dyy = share * _mean(columns * y, x.shape[-1], axis_name)
    if pool:
        dy = _spread_over_maxima(dy, top, x)
    slope = scale * scale * mean_dyy
    dx = scale * dy - slope * x - (scale * mean_dy - slope * mean)
    return (dx.astype(x.dtype),)


normalize.defvjp(_normalize_forward, _normalize_backward)


def _columns(x: jax.Array) -> jax.Array:
    """`[..., F]` as a matrix `[rows, k F]` wide enough for vector instructions."""
    features = x.shape[-1]
    rows = x.size // features
    repeats = math.gcd(rows, max(1, 256 // features))
    return x.reshape(rows // repeats, repeats * features)


def _mean(columns: jax.Array, features: int, axis_name: str | None) -> jax.Array:
    """Means `[F]` of what `_columns` returns, over the whole batch."""
    mean = jnp.mean(jnp.mean(columns, axis=0).reshape(-1, features), axis=0)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _spread_over_maxima(dy: jax.Array, top: jax.Array, x: jax.Array) -> jax.Array:
    """The gradient of `max_pool`: equal shares for equal maxima, as `jnp.max` gives."""
    windows, axes = _windows(x)
    if x.ndim == 5:
        members = [windows[:, :, :, i] for i in range(4)]
    else:
        members = [windows[:, :, i, :, j] for i in range(2) for j in range(2)]
    ties = sum((member == top).astype(jnp.float32) for member in members)
    # XLA fuses this quotient into no consumer, so it is computed once for each window.
    dy = jnp.expand_dims(dy / ties, axes)
    dx = jnp.where(windows == jnp.expand_dims(top, axes), dy, 0.0)
    if x.ndim == 5:
        return dx
    n, h, w, c = x.shape
    dx = dx.reshape(n, h // 2 * 2, w // 2 * 2, c)
    return jnp.pad(dx, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))


class Convolution(nn.Module):
    """(Nearest-neighbour upsampling x2 and) a 5x5 convolution, stride 1, no bias.

    Attributes:
        features: output channels.
        padding: zeros around the (upsampled) input, 2 or 1.
        upsample: whether to upsample first.
        pooled: whether 2x2 max pooling is next. The result may then come as pooling
            windows, see `max_pool`.
        bound: that of the initial `[5, 5, in, out]` kernel, a function of its shape.
        dtype: type of the computation.
    """

    features: int
    padding: int = 2
    upsample: bool = False
    pooled: bool = False
    bound: Callable[[tuple[int, ...]], float] = fan_in_bound
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = convolution.KERNEL_SIZE
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform(self.bound), shape).astype(self.dtype)
        return convolution.apply(x, kernel, self.padding, self.upsample, self.pooled)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2, to `[N, H // 2, W // 2, C]`.

    Takes images `[N, H, W, C]`, whose odd edges are dropped, or windows `[N, H / 2,
    W / 2, 4, C]`, which hold the members of each pooling window side by side.
    """
    windows, axes = _windows(x)
    return jnp.max(windows, axis=axes)


def _windows(x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """What `max_pool` takes, with axes of its own for each window, and these axes."""
    if x.ndim == 5:
        return x, (3,)
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return x, (2, 4)
