import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepsad_jax import fast_cpu, parallel, patches


def plain_convolution(x, kernel, padding):
    """The definition, as a sum over shifted inputs, in float64."""
    x = np.pad(x.astype(np.float64), [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    height, width = x.shape[1] - 4, x.shape[2] - 4
    return sum(
        x[:, u : u + height, v : v + width] @ kernel[u, v].astype(np.float64)
        for u in range(5)
        for v in range(5)
    )


def random(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_max_pool_is_the_maximum_of_each_window_and_drops_odd_edges():
    x = random(2, 5, 6, 3)
    expected = lax.reduce_window(
        x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(fast_cpu.max_pool(x), expected)


def test_max_pool_of_windows_is_that_of_the_images():
    windows = random(2, 3, 4, 4, 5)
    images = windows.reshape(2, 3, 4, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5)
    expected = fast_cpu.max_pool(images.reshape(2, 6, 8, 5))
    np.testing.assert_array_equal(fast_cpu.max_pool(windows), expected)


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 14)])
def test_upsampled_convolution_is_the_plain_one(size, padding, channels):
    x, kernel = random(3, *size, channels), random(5, 5, channels, 6)
    upsampled = x.repeat(2, axis=1).repeat(2, axis=2)
    expected = plain_convolution(upsampled, kernel, padding)
    actual = fast_cpu.upsample_and_convolve(x, kernel, padding)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (12, 10)])
def test_convolution_is_the_plain_one(size, padding, channels):
    x, kernel = random(3, *size, channels), random(5, 5, channels, 6)
    expected = plain_convolution(x, kernel, padding)
    actual = fast_cpu.convolve(x, kernel, padding)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def images_of(windows):
    """Undoes the grouping of pooling windows `[N, H / 2, W / 2, 4, C]`."""
    n, h, w, _, c = windows.shape
    windows = windows.reshape(n, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return windows.reshape(n, 2 * h, 2 * w, c)


FORMS = {
    "plain": lambda x, k: fast_cpu.convolve(x, k, 2),
    "tiles": lambda x, k: images_of(fast_cpu.convolve_tiles(x, k)),
    "rows": lambda x, k: fast_cpu.convolve_rows(x, k, 2, False, False),
    "row_windows": lambda x, k: images_of(fast_cpu.convolve_rows(x, k, 2, False, True)),
    "winograd": lambda x, k: fast_cpu.convolve_winograd(x, k, 2),
    "winograd_cropped": lambda x, k: fast_cpu.convolve_winograd(x, k, 1),
    "mixed_winograd": lambda x, k: fast_cpu.convolve_mixed(x, k, 2),
    "mixed_winograd_cropped": lambda x, k: fast_cpu.convolve_mixed(x, k, 1),
    "patches": lambda x, k: patches.convolve(x, k, 2),
    "patches_cropped": lambda x, k: patches.convolve(x, k, 1),
    "upsampled_patches": lambda x, k: fast_cpu.upsample_and_convolve(
        x, k, 2, patches.convolve
    ),
    "upsampled": lambda x, k: fast_cpu.upsample_and_convolve(x, k, 2),
    "upsampled_cropped": lambda x, k: fast_cpu.upsample_and_convolve(x, k, 1),
    "upsampled_winograd": lambda x, k: fast_cpu.upsample_and_convolve(
        x, k, 2, fast_cpu.convolve_winograd
    ),
    "upsampled_winograd_cropped": lambda x, k: fast_cpu.upsample_and_convolve(
        x, k, 1, fast_cpu.convolve_winograd
    ),
    "upsampled_rows": lambda x, k: fast_cpu.convolve_rows(x, k, 2, True, False),
    "upsampled_rows_cropped": lambda x, k: fast_cpu.convolve_rows(x, k, 1, True, False),
}


@functools.cache
def plain_form(upsampled, cropped):
    def convolution(x, kernel):
        if upsampled:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        padding = 1 if cropped else 2
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return convolution


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(convolution, x, kernel):
    y, pull_back = jax.vjp(convolution, x, kernel)
    return y, *pull_back(jnp.asarray(random(*y.shape)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 10)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_values_and_gradients_of_the_plain_one(form, size, channels):
    is_upsampled, is_cropped = form.startswith("upsampled"), form.endswith("cropped")
    if is_cropped and not is_upsampled and min(size) == 2:
        pytest.skip("nothing is left of these images")
    x, kernel = random(3, *size, channels), random(5, 5, channels, 4)
    tolerance = 2e-5 if "winograd" in form else 2e-6
    for actual, expected in zip(
        values_and_gradients(FORMS[form], x, kernel),
        values_and_gradients(plain_form(is_upsampled, is_cropped), x, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=tolerance * np.abs(expected).max()
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_may_be_mapped_over_runs(form):
    x, kernel = random(2, 3, 4, 4, 2), random(2, 5, 5, 2, 4)
    mapped = jax.vmap(lambda x, k: values_and_gradients(FORMS[form], x, k))(x, kernel)
    for run in range(2):
        alone = values_and_gradients(FORMS[form], x[run], kernel[run])
        for actual, expected in zip(mapped, alone, strict=True):
            tolerance = 2e-5 * np.abs(expected).max()
            np.testing.assert_allclose(actual[run], expected, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_bfloat16(form):
    x, kernel = random(3, 4, 4, 2), random(5, 5, 2, 4)
    convolve = jax.jit(FORMS[form])
    actual = convolve(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    expected = convolve(x, kernel)
    error = np.abs(actual.astype(np.float32) - expected).max()
    assert error <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("size", "channels", "features", "padding", "upsample", "pooled"),
    [
        ((28, 28), 1, 8, 2, False, True),
        ((14, 14), 8, 4, 2, False, True),
        ((7, 5), 2, 4, 2, False, True),
        ((8, 8), 64, 128, 2, False, True),
        ((4, 4), 8, 16, 2, False, False),
        ((6, 6), 8, 4, 1, False, False),
        ((8, 8), 4, 8, 1, True, False),
        ((8, 8), 32, 16, 2, True, False),
        ((5, 3), 64, 32, 1, True, False),
    ],
)
def test_the_chosen_form_is_the_plain_one_on_every_backend(
    monkeypatch, backend, size, channels, features, padding, upsample, pooled
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = random(2, *size, channels), random(5, 5, channels, features)
    options = (padding, upsample, pooled)
    actual = jax.jit(lambda x, k: fast_cpu.convolution(x, k, *options))(x, kernel)
    if actual.ndim == 5:
        assert backend == "cpu" and pooled
        actual = images_of(actual)
    if upsample:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    expected = plain_convolution(x, kernel, padding)
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


def test_forms_other_than_the_plain_one_are_for_cpus_alone(monkeypatch):
    shapes = [
        ((1, 28, 28, 1), 8),
        ((1, 14, 14, 8), 4),
        ((1, 14, 14, 16), 32),
        ((1, 8, 8, 64), 128),
    ]

    def forms():
        return [fast_cpu.choose_form(*shape, 2, False, True) for shape in shapes]

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for cores, third in ((1, "mixed"), (2, "plain")):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        assert forms() == ["tiles", "rows", third, "winograd"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert forms() == ["plain"] * 4


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_plan_may_have_convolutions_as_products_on_every_backend(
    monkeypatch, backend
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = random(1, 8, 8, 8), random(5, 5, 8, 64)

    def correlate(x, kernel):
        return fast_cpu.convolution(x, kernel, 2, False, False)

    for convolutions in ("patches", "blocks"):
        plan = parallel.Plan(convolutions=convolutions)
        compiled = plan.compile(correlate)
        assert not parallel.has_convolution(compiled, x, kernel)
        expected = plain_convolution(x, kernel, 2)
        error = np.abs(compiled(x, kernel) - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()
    assert parallel.convolutions() == "usual"
    assert parallel.has_convolution(correlate, x, kernel)


@pytest.mark.parametrize("shape", [(7, 5, 3), (4, fast_cpu.MAX_TRANSPOSED + 1, 2)])
def test_dense_products_and_their_gradients_are_the_plain_ones(shape):
    rows, inputs, outputs = shape
    x, kernel = random(rows, inputs), random(inputs, outputs)
    dy = random(rows, outputs)
    y, pull_back = jax.vjp(jax.jit(fast_cpu.product), x, kernel)
    expected = x @ kernel, dy @ kernel.T, x.T @ dy
    for actual, one in zip((y, *pull_back(dy)), expected, strict=True):
        np.testing.assert_allclose(actual, one, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(fast_cpu.product(x, kernel), x @ kernel, rtol=1e-4)


def test_dense_products_may_be_mapped_over_runs():
    x, kernels = random(4, 6, 5), random(2, 5, 3)
    loss = lambda kernel: jnp.sum(jnp.sin(fast_cpu.product(x[0], kernel)))  # noqa: E731
    found = jax.jit(jax.vmap(jax.grad(loss)))(kernels)
    for one, kernel in zip(found, kernels, strict=True):
        expected = x[0].T @ np.cos(x[0] @ kernel)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)
