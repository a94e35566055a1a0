"""What exists because of CPUs alone: faster forms of equal computations.

On CPUs a matrix product runs at the peak rate and a convolution of few channels far
below it. So there the narrow 5x5 convolutions, alone or after upsampling, are matrix
products of overlapping pieces of the images; the wide ones take fewer products by
Winograd's algorithm. `convolution` chooses among the forms, which compute the same; the
tests hold them equal. Accelerators have convolutions for every shape, and take another
form only for many runs side by side, if a plan has it (`parallel.Plan.convolutions`).
Images are channels last.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import parallel, patches

KERNEL_SIZE = 5
# Up to this many entries, the matrix that computes two rows of the output at a time
# costs less than a convolution, though most of its entries are zero.
MAX_BAND_ENTRIES = 2**18
# From this many pairs of input and output channels on, Winograd's algorithm halves the
# time. With fewer, transforming the images eats the gain, and larger rounding errors so
# early in a network show after some steps of Adam.
MIN_WINOGRAD_PAIRS = 2**13
# From this many on, the kernel's gradient alone is found so on one core, where XLA's
# library of microkernels has the faster convolutions, but takes long for this one.
MIN_MIXED_PAIRS = 2**9
# The widest inputs that `dense` transposes.
MAX_TRANSPOSED = 2**9
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Points at which Winograd's algorithm evaluates polynomials, infinity being the last.
_POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)


def convolution(
    x: jax.Array, kernel: jax.Array, padding: int, upsample: bool, pooled: bool
) -> jax.Array:
    """(Nearest-neighbor upsampling x2 and) cross-correlation.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[5, 5, I, O]`.
        padding: zeros around the (upsampled) input, 2 or 1.
        upsample: whether to upsample first.
        pooled: whether 2x2 max pooling is next; the result may then come as pooling
            windows, `[N, H / 2, W / 2, 4, O]`.

    Returns:
        `[N, H', W', O]`, with H' = H + 2 padding - 4, or 2 H + 2 padding - 4.
    """
    form = choose_form(x.shape, kernel.shape[-1], padding, upsample, pooled)
    if form == "tiles":
        return convolve_tiles(x, kernel)
    if form == "rows":
        return convolve_rows(x, kernel, padding, upsample, pooled)
    others = {
        "patches": patches.convolve,
        "winograd": convolve_winograd,
        "mixed": convolve_mixed,
    }
    correlate = others.get(form, convolve)
    if upsample:
        return upsample_and_convolve(x, kernel, padding, correlate)
    return correlate(x, kernel, padding)


def choose_form(
    shape: tuple[int, ...], features: int, padding: int, upsample: bool, pooled: bool
) -> str:
    """The form for images `[N, H, W, I]`, one of those of `convolution`."""
    _, h, w, channels = shape
    wanted = parallel.convolutions()
    if wanted == "patches":
        return "patches"
    if wanted == "usual" and jax.default_backend() != "cpu":
        return "plain"
    if upsample or (padding == 2 and h % 2 == w % 2 == 0):
        if pooled and channels <= 4:
            return "tiles"
        factor = 2 if upsample else 1
        width = w * factor + 2 * padding - 4
        taps = _row_taps(padding, factor).shape[1]
        if (taps * w * channels) * (2 * width * features) <= MAX_BAND_ENTRIES:
            return "rows"
    if wanted == "blocks":
        return "patches"
    pairs = channels * features * (4 if upsample else 1)
    if pairs >= MIN_WINOGRAD_PAIRS:
        return "winograd"
    is_alone = parallel.cores() == 1
    return "mixed" if is_alone and pairs >= MIN_MIXED_PAIRS else "plain"


def convolve(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Cross-correlation with stride 1: `[N, H, W, I]` and `[k, k, I, O]`."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def convolve_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` with padding 2, one pooling window at a time, as a matrix product.

    A window's four outputs read 6x6 inputs. H and W must be even; returns windows `[N,
    H / 2, W / 2, 4, O]`.
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
    and the result may come as windows (`pooled`).
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


def convolve_winograd(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """`convolve` by Winograd's minimal filtering, 4x4 outputs at a time.

    A piece of (k + 3)^2 inputs and the kernel are evaluated as polynomials at k + 3
    points in each direction, which makes their correlation a product point by point:
    for k = 5, 64 products of channels instead of 400. Rounding errors are some ten
    times those of `convolve`, a few 1e-6 of the largest output. Lavin and Gray, "Fast
    Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    n, h, w, channels = x.shape
    size, piece = kernel.shape[0], 4
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    outputs, taps, inputs = _winograd_matrices(piece, size)
    outputs, taps = outputs.astype(dtype), taps.astype(dtype)
    down = _winograd_pieces(inputs, h, padding, size).astype(dtype)
    across = _winograd_pieces(inputs, w, padding, size).astype(dtype)
    points, rows, columns = len(inputs), down.shape[1], across.shape[1]

    kernel = jnp.einsum("au,bv,uvio->abio", taps, taps, kernel.astype(dtype))
    y = x.astype(dtype).transpose(1, 2, 0, 3).reshape(h, w, n * channels)
    y = jnp.matmul(across.reshape(-1, w), y).reshape(h, -1)
    y = jnp.matmul(down.reshape(-1, h), y)
    y = y.reshape(points, rows, points, columns, n, channels)
    y = y.transpose(0, 2, 1, 3, 4, 5).reshape(points**2, -1, channels)
    y = jnp.matmul(y, kernel.reshape(points**2, channels, -1))
    y = jnp.matmul(outputs.T, y.reshape(points, -1))
    y = jnp.matmul(outputs.T, y.reshape(piece, points, -1))
    y = y.reshape(piece, piece, rows, columns, n, -1).transpose(4, 2, 0, 3, 1, 5)
    y = y.reshape(n, rows * piece, columns * piece, -1).astype(x.dtype)
    return y[:, : h + 2 * padding - size + 1, : w + 2 * padding - size + 1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_mixed(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """`convolve`, with the kernel's gradient by `convolve_winograd`."""
    return convolve(x, kernel, padding)


def _mixed_forward(x, kernel, padding):
    return convolve(x, kernel, padding), (x, kernel)


def _mixed_backward(padding, residuals, dy):
    x, kernel = residuals
    _, of_x = jax.vjp(lambda x: convolve(x, kernel, padding), x)
    _, of_kernel = jax.vjp(lambda kernel: convolve_winograd(x, kernel, padding), kernel)
    return *of_x(dy), *of_kernel(dy)


convolve_mixed.defvjp(_mixed_forward, _mixed_backward)


def _winograd_matrices(
    piece: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, G and B' of y = A' (G kernel * B' x), for `piece` outputs y.

    A and G `[points, ...]` evaluate polynomials; B' is the transpose of what finds a
    polynomial from its values, since a correlation is a transposed multiplication.
    """
    count = piece + size - 1
    finite = np.array(_POINTS[: count - 1])

    def evaluate(coefficients):
        values = finite[:, None] ** np.arange(coefficients)
        return np.vstack([values, np.eye(coefficients)[-1]])

    return evaluate(piece), evaluate(size), np.linalg.inv(evaluate(count)).T


def _winograd_pieces(
    inputs: np.ndarray, length: int, padding: int, size: int
) -> np.ndarray:
    """B' for every piece of a zero-padded row: `[points, pieces, length]`."""
    points = len(inputs)
    piece = points - size + 1
    pieces = -(-(length + 2 * padding - size + 1) // piece)
    matrix = np.zeros((points, pieces, pieces * piece + points + padding + length))
    for i in range(pieces):
        matrix[:, i, i * piece : i * piece + points] = inputs
    return matrix[:, :, padding : padding + length]


def upsample_and_convolve(
    x: jax.Array,
    kernel: jax.Array,
    padding: int,
    correlate: Callable[[jax.Array, jax.Array, int], jax.Array] = convolve,
) -> jax.Array:
    """Nearest-neighbor upsampling x2, then `convolve`, computed at the low resolution.

    Neighboring outputs see the same few inputs, each through a sum of kernel entries.
    So four smaller kernels, one for each parity of the output's row and column, give
    the result (sub-pixel convolution), with 9/25 or 16/25 of the products.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[5, 5, I, O]`.
        padding: 2, which keeps the upsampled size, or 1, which loses a row and a column
            on each side.
        correlate: what convolves at the low resolution.

    Returns:
        `[N, 2 H, 2 W, O]` for padding 2, `[N, 2 H - 2, 2 W - 2, O]` for padding 1.
    """
    taps = _row_taps(padding, 2)
    size = taps.shape[1]
    # [parity a, parity b, tap t, tap s, I, O] from the sums of the entries (u, v).
    kernels = jnp.einsum("atu,bsv,uvio->tsiabo", taps, taps, kernel)
    kernels = kernels.reshape(size, size, kernel.shape[2], -1)
    y = correlate(x, kernels.astype(x.dtype), 1)
    n, h, w, _ = y.shape
    y = y.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, -1)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, `[N, I]` by `[I, O]`."""
    is_small = jax.default_backend() == "cpu" and x.shape[-1] <= MAX_TRANSPOSED
    return dense(x, kernel) if is_small else x @ kernel


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, `[N, I]` by `[I, O]`, which is computed as `[O, N]` in training.

    So no product has its left factor transposed, which takes XLA's library of small
    products twice the time. Between two such layers nothing is transposed but kernels.
    """
    return x @ kernel


def _dense_forward(x, kernel):
    # Without the barriers, XLA would make the transposed factors again.
    columns, by_output = lax.optimization_barrier((x.T, kernel.T))
    return lax.optimization_barrier(by_output @ columns).T, (columns, kernel)


def _dense_backward(residuals, dy):
    columns, kernel = residuals
    # So that all programs round it alike, whatever XLA would compute with the products.
    dy = lax.optimization_barrier(dy.T)
    return (kernel @ dy).T, columns @ dy.T


dense.defvjp(_dense_forward, _dense_backward)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2, to `[N, H // 2, W // 2, C]`.

    Takes images `[N, H, W, C]`, whose odd edges are dropped, or pooling windows as
    `convolution` returns them, `[N, H / 2, W / 2, 4, C]`.
    """
    windows, axes = _windows(x)
    return jnp.max(windows, axis=axes)


def spread_over_maxima(dy: jax.Array, top: jax.Array, x: jax.Array) -> jax.Array:
    """The gradient of `max_pool`, with `top` = max_pool(x): equal maxima share it."""
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


def _windows(x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """What `max_pool` takes, with axes of its own for each window, and these axes."""
    if x.ndim == 5:
        return x, (3,)
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return x, (2, 4)


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
    """`_taps` of two neighboring outputs, on all the inputs that they read."""
    first, last = -padding // factor, (KERNEL_SIZE - padding) // factor
    return _taps(2, last - first + 1, first, padding, factor)
