"""Convolution as one product of matrices: what each output reads, times the kernel.

Of many runs side by side, each with a kernel of its own, `jax.vmap` makes a batched
product of it, and a grouped convolution of `lax.conv_general_dilated`. Images are
channels last.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Cross-correlation with stride 1: `[N, H, W, I]` and `[k, k, I, O]`.

    Args:
        x: images.
        kernel: as many rows as columns.
        padding: zeros around the images, from 0 to k - 1.

    Returns:
        `[N, H + 2 padding - k + 1, W + 2 padding - k + 1, O]`.
    """
    patches = _patches(x, kernel.shape[0], padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _patches(x: jax.Array, size: int, padding: int) -> jax.Array:
    """The inputs that each output reads, `[N, H', W', size^2 I]`."""
    _, h, w, _ = x.shape
    h, w = h + 2 * padding - size + 1, w + 2 * padding - size + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    pieces = [x[:, u : u + h, v : v + w] for u in range(size) for v in range(size)]
    return jnp.concatenate(pieces, axis=-1)


def _forward(x, kernel, padding):
    return convolve(x, kernel, padding), (x, kernel)


def _backward(padding, residuals, dy):
    # The gradient of x is a correlation too, which saves adding up shifted pieces.
    x, kernel = residuals
    size = kernel.shape[0]
    reverse = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = convolve(dy, reverse, size - 1 - padding)
    rows = _patches(x, size, padding).reshape(-1, size * size * x.shape[-1])
    dy = dy.reshape(-1, dy.shape[-1])
    d_kernel = lax.dot_general(rows, dy, (((0,), (0,)), ((), ())))
    return dx, d_kernel.reshape(kernel.shape)


convolve.defvjp(_forward, _backward)
