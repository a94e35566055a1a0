"""Layers of the networks: convolution, batch normalisation and PyTorch's initialisers.

Each computes what its plain definition says, in the form that is fastest to run; the
tests hold every form equal to the plain one. Images are channels last.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KERNEL_SIZE = 5
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

        Args:
            x: activations.
            pool: whether to apply 2x2 max pooling as well. Normalising is monotonic, so
                pooling first gives the same values from a quarter of the work; the
                statistics are still those of all of x.
        """
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        if self.train:
            batch_mean, batch_var, count = self._statistics(x)
            if not self.is_initializing():
                unbiased = batch_var * (count / jnp.maximum(count - 1.0, 1.0))
                mean.value = self._move(mean.value, batch_mean)
                var.value = self._move(var.value, unbiased)
        else:
            batch_mean, batch_var = mean.value, var.value
        if pool:
            x = max_pool(x)
        scale = lax.rsqrt(batch_var + self.epsilon)
        return ((x - batch_mean) * scale).astype(x.dtype)

    def _statistics(self, x: jax.Array):
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        count = float(np.prod(x.shape[:-1]))
        mean = jnp.mean(x, axis=axes)
        if self.axis_name is not None:
            mean = lax.pmean(mean, self.axis_name)
            count = count * lax.axis_size(self.axis_name)
        # Two passes: E[x^2] - E[x]^2 loses the digits of a small variance.
        var = jnp.mean(jnp.square(x - mean), axis=axes)
        if self.axis_name is not None:
            var = lax.pmean(var, self.axis_name)
        return mean, var, count

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        batch = lax.stop_gradient(batch)
        return self.momentum * running + (1.0 - self.momentum) * batch


class Convolution(nn.Module):
    """(Nearest-neighbour upsampling x2 and) a 5x5 convolution, stride 1, no bias.

    Attributes:
        features: output channels.
        padding: zeros around the (upsampled) input, 2 or 1.
        upsample: whether to upsample first.
        bound: that of the initial `[5, 5, in, out]` kernel, a function of its shape.
        dtype: type of the computation.
    """

    features: int
    padding: int = 2
    upsample: bool = False
    bound: Callable[[tuple[int, ...]], float] = fan_in_bound
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform(self.bound), shape).astype(self.dtype)
        if self.upsample:
            return upsample_and_convolve(x, kernel, self.padding)
        return convolve(x, kernel, self.padding)


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Cross-correlation with stride 1: `[N, H, W, I]` and `[k, k, I, O]`."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


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
    taps = _parity_taps(padding)
    size = taps.shape[1]
    # [parity a, parity b, tap t, tap s, I, O] from the sums of the entries (u, v).
    kernels = jnp.einsum("atu,bsv,uvio->tsiabo", taps, taps, kernel)
    kernels = kernels.reshape(size, size, kernel.shape[2], -1)
    y = convolve(x, kernels.astype(x.dtype), 1)
    n, h, w, _ = y.shape
    y = y.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, -1)


def _parity_taps(padding: int) -> np.ndarray:
    """0/1 matrix `[2, taps, 5]`: does entry u of the kernel fall on tap t at parity a?

    Output 2 i + a reads the upsampled input at 2 i + a + u - padding, which is a copy
    of the input at i + (a + u - padding) // 2; the taps start at input i - 1.
    """
    size = 3 if padding == 2 else 4
    taps = np.zeros((2, size, KERNEL_SIZE), np.float32)
    for parity in range(2):
        for entry in range(KERNEL_SIZE):
            taps[parity, (parity + entry - padding) // 2 + 1, entry] = 1.0
    return taps


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2: `[N, H, W, C]` to `[N, H // 2, W // 2, C]`."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return jnp.max(x, axis=(2, 4))
