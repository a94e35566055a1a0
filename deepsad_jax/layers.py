"""Layers of the networks: convolution, batch normalisation and PyTorch's initialisers.

Each computes what its plain definition says, in the form that is fastest to run; the
tests hold every form equal to the plain one. Images are channels last.

On CPUs a matrix product runs at the peak rate and a convolution of few channels far
below it, so there the narrow layers are matrix products of overlapping pieces of the
images (`convolution_form` decides). Accelerators have convolutions for every shape.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KERNEL_SIZE = 5
# Up to this many entries, the matrix that computes two rows of the output at a time
# costs less than a convolution, though most of its entries are zero.
MAX_BAND_ENTRIES = 2**18
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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
        shape = (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform(self.bound), shape).astype(self.dtype)
        form = convolution_form(
            x.shape, self.features, self.padding, self.upsample, self.pooled
        )
        if form == "tiles":
            return convolve_tiles(x, kernel)
        if form == "rows":
            return convolve_rows(x, kernel, self.padding, self.upsample, self.pooled)
        if self.upsample:
            return upsample_and_convolve(x, kernel, self.padding)
        return convolve(x, kernel, self.padding)


def convolution_form(
    shape: tuple[int, ...], features: int, padding: int, upsample: bool, pooled: bool
) -> str:
    """The form for images `[N, H, W, I]` on this backend: tiles, rows or plain."""
    _, h, w, channels = shape
    even = h % 2 == w % 2 == 0
    if jax.default_backend() != "cpu" or not (upsample or (padding == 2 and even)):
        return "plain"
    if pooled and channels <= 4:
        return "tiles"
    factor = 2 if upsample else 1
    width = w * factor + 2 * padding - 4
    taps = _row_taps(padding, factor).shape[1]
    entries = (taps * w * channels) * (2 * width * features)
    return "rows" if entries <= MAX_BAND_ENTRIES else "plain"


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Cross-correlation with stride 1: `[N, H, W, I]` and `[k, k, I, O]`."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def convolve_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` with padding 2, one pooling window at a time, as a matrix product.

    A window's four outputs read 6x6 inputs. H and W must be even; returns windows `[N,
    H / 2, W / 2, 4, O]`, see `max_pool`.
    """
    n, h, w, channels = x.shape
    taps = _row_taps(2, 1)
    matrix = jnp.einsum("atu,bsv,uvio->tsiabo", taps, taps, kernel)
    matrix = matrix.reshape(36 * channels, -1).astype(x.dtype)
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    x = jnp.stack([x[:, t : t + h : 2] for t in range(6)], axis=2)
    x = jnp.stack([x[:, :, :, s : s + w : 2] for s in range(6)], axis=4)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, 36 * channels)
    y = correlate_blocks(x, matrix[None], 0)
    return y.reshape(n, h // 2, w // 2, 4, -1)


def convolve_rows(
    x: jax.Array, kernel: jax.Array, padding: int, upsample: bool, pooled: bool
) -> jax.Array:
    """`convolve` or `upsample_and_convolve`, two rows of the output at a time.

    They read a few whole rows of the input, through a matrix in which the kernel is
    repeated along the row. Without `upsample`, H and W must be even and the padding 2,
    and the result may come as windows (`pooled`, see `max_pool`).
    """
    n, h, w, channels = x.shape
    factor = 2 if upsample else 1
    width = w * factor + 2 * padding - 4
    down = _row_taps(padding, factor)
    across = _taps(width, w, 0, padding, factor)
    if pooled:
        across = across.reshape(width // 2, 2, w, KERNEL_SIZE)
        matrix = jnp.einsum("atu,jbsv,uvio->tsijabo", down, across, kernel)
    else:
        matrix = jnp.einsum("atu,jsv,uvio->tsiajo", down, across, kernel)
    # Without upsampling, the rows of the input also come in pairs.
    rows = 2 // factor
    pieces = down.shape[1] // rows
    matrix = matrix.reshape(pieces, rows * w * channels, -1).astype(x.dtype)
    x = x.reshape(n, h // rows, rows * w * channels)
    y = correlate_blocks(x, matrix, 1)
    if pooled:
        return y.reshape(n, h // 2, width // 2, 4, -1)
    return y.reshape(n, h * factor + 2 * padding - 4, width, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate_blocks(x: jax.Array, matrix: jax.Array, padding: int) -> jax.Array:
    """One-dimensional cross-correlation of `[N, B, D]` with `[K, D, E]`.

    One matrix product, with `padding` zeros on either side of axis B; returns `[N, B +
    2 padding - K + 1, E]`.
    """
    return _correlate_blocks_forward(x, matrix, padding)[0]


def _correlate_blocks_forward(x, matrix, padding):
    size, inputs, outputs = matrix.shape
    length = x.shape[1] + 2 * padding - size + 1
    padded = jnp.pad(x, ((0, 0), (padding, padding), (0, 0)))
    pieces = [padded[:, k : k + length] for k in range(size)]
    patches = jnp.concatenate(pieces, axis=-1).reshape(-1, size * inputs)
    y = patches @ matrix.reshape(-1, outputs)
    return y.reshape(x.shape[0], length, outputs), (patches, matrix)


def _correlate_blocks_backward(padding, residuals, dy):
    # The gradient of x is a correlation too, which saves adding up shifted pieces. That
    # of the matrix is written so that XLA does not transpose the large factors.
    patches, matrix = residuals
    reverse = matrix[::-1].transpose(0, 2, 1)
    dx = correlate_blocks(dy, reverse, matrix.shape[0] - 1 - padding)
    dy = dy.reshape(-1, dy.shape[-1])
    d_matrix = lax.dot_general(patches, dy, (((0,), (0,)), ((), ())))
    return dx, d_matrix.reshape(matrix.shape)


correlate_blocks.defvjp(_correlate_blocks_forward, _correlate_blocks_backward)


def upsample_and_convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Nearest-neighbour upsampling x2, then `convolve`, computed at the low resolution.

    Neighbouring outputs see the same few inputs, each through a sum of kernel entries.
    So four smaller kernels, one for each parity of the output's row and column, give
    the result (sub-pixel convolution), with 9/25 or 16/25 of the products.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[5, 5, I, O]`.
        padding: 2, which keeps the upsampled size, or 1, which loses a row and a column
            on each side.

    Returns:
        `[N, 2 H, 2 W, O]` for padding 2, `[N, 2 H - 2, 2 W - 2, O]` for padding 1.
    """
    taps = _row_taps(padding, 2)
    size = taps.shape[1]
    # [parity a, parity b, tap t, tap s, I, O] from the sums of the entries (u, v).
    kernels = jnp.einsum("atu,bsv,uvio->tsiabo", taps, taps, kernel)
    kernels = kernels.reshape(size, size, kernel.shape[2], -1)
    y = convolve(x, kernels.astype(x.dtype), 1)
    n, h, w, _ = y.shape
    y = y.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, -1)


def _taps(
    outputs: int, inputs: int, first: int, padding: int, factor: int
) -> np.ndarray:
    """0/1 matrix `[outputs, inputs, 5]`: does output i read input t through entry u?

    It reads the upsampled input at i + u - padding, a copy of the input at (i + u -
    padding) // factor; t counts from `first`.
    """
    taps = np.zeros((outputs, inputs, KERNEL_SIZE), np.float32)
    for i in range(outputs):
        for u in range(KERNEL_SIZE):
            t = (i + u - padding) // factor - first
            if 0 <= t < inputs:
                taps[i, t, u] = 1.0
    return taps


def _row_taps(padding: int, factor: int) -> np.ndarray:
    """`_taps` of two neighbouring outputs, on all the inputs that they read."""
    first, last = -padding // factor, (KERNEL_SIZE - padding) // factor
    return _taps(2, last - first + 1, first, padding, factor)


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
