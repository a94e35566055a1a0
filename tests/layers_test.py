import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepsad_jax import layers


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


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 14)])
def test_upsampled_convolution_is_the_plain_one(size, padding, channels):
    x, kernel = random(3, *size, channels), random(5, 5, channels, 6)
    upsampled = x.repeat(2, axis=1).repeat(2, axis=2)
    expected = plain_convolution(upsampled, kernel, padding)
    actual = layers.upsample_and_convolve(x, kernel, padding)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (12, 10)])
def test_convolution_is_the_plain_one(size, padding, channels):
    x, kernel = random(3, *size, channels), random(5, 5, channels, 6)
    expected = plain_convolution(x, kernel, padding)
    actual = layers.convolve(x, kernel, padding)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def images_of(windows):
    """Undoes the grouping of pooling windows `[N, H / 2, W / 2, 4, C]`."""
    n, h, w, _, c = windows.shape
    windows = windows.reshape(n, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return windows.reshape(n, 2 * h, 2 * w, c)


FORMS = {
    "plain": lambda x, k: layers.convolve(x, k, 2),
    "tiles": lambda x, k: images_of(layers.convolve_tiles(x, k)),
    "rows": lambda x, k: layers.convolve_rows(x, k, 2, False, False),
    "row_windows": lambda x, k: images_of(layers.convolve_rows(x, k, 2, False, True)),
    "upsampled": lambda x, k: layers.upsample_and_convolve(x, k, 2),
    "upsampled_cropped": lambda x, k: layers.upsample_and_convolve(x, k, 1),
    "upsampled_rows": lambda x, k: layers.convolve_rows(x, k, 2, True, False),
    "upsampled_rows_cropped": lambda x, k: layers.convolve_rows(x, k, 1, True, False),
}


def plain_form(name):
    def convolution(x, kernel):
        if name.startswith("upsampled"):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        padding = 1 if name.endswith("cropped") else 2
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return convolution


def values_and_gradients(convolution, x, kernel):
    @jax.jit
    def run(x, kernel):
        y, pull_back = jax.vjp(convolution, x, kernel)
        return y, *pull_back(jnp.asarray(random(*y.shape)))

    return run(x, kernel)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 10)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_values_and_gradients_of_the_plain_one(form, size, channels):
    x, kernel = random(3, *size, channels), random(5, 5, channels, 4)
    for actual, expected in zip(
        values_and_gradients(FORMS[form], x, kernel),
        values_and_gradients(plain_form(form), x, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max()
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_may_be_mapped_over_runs(form):
    x, kernel = random(2, 3, 4, 4, 2), random(2, 5, 5, 2, 4)
    mapped = jax.vmap(lambda x, k: values_and_gradients(FORMS[form], x, k))(x, kernel)
    for run in range(2):
        alone = values_and_gradients(FORMS[form], x[run], kernel[run])
        for actual, expected in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(actual[run], expected, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_bfloat16(form):
    x, kernel = random(3, 4, 4, 2), random(5, 5, 2, 4)
    actual = FORMS[form](x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    expected = FORMS[form](x, kernel)
    error = np.abs(actual.astype(np.float32) - expected).max()
    assert error <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("size", "channels", "features", "options"),
    [
        ((28, 28), 1, 8, {"pooled": True}),
        ((14, 14), 8, 4, {"pooled": True}),
        ((7, 5), 2, 4, {"pooled": True}),
        ((16, 16), 32, 64, {"pooled": True}),
        ((4, 4), 8, 16, {}),
        ((6, 6), 8, 4, {"padding": 1}),
        ((8, 8), 4, 8, {"upsample": True, "padding": 1}),
        ((8, 8), 32, 16, {"upsample": True}),
    ],
)
def test_convolution_module_on_every_backend(
    monkeypatch, backend, size, channels, features, options
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = random(2, *size, channels), random(5, 5, channels, features)
    module = layers.Convolution(features, **options)
    actual = module.apply({"params": {"kernel": kernel}}, x)
    if actual.ndim == 5:
        assert backend == "cpu" and options["pooled"]
        actual = images_of(actual)
    if options.get("upsample"):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    expected = plain_convolution(x, kernel, options.get("padding", 2))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_narrow_layers_are_matrix_products_on_cpus_alone(monkeypatch):
    shapes = [((1, 28, 28, 1), 8), ((1, 14, 14, 8), 4), ((1, 16, 16, 32), 64)]

    def forms():
        return [layers.convolution_form(*shape, 2, False, True) for shape in shapes]

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert forms() == ["tiles", "rows", "plain"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert forms() == ["plain"] * 3


def test_max_pool_is_the_maximum_of_each_window_and_drops_odd_edges():
    x = random(2, 5, 6, 3)
    expected = lax.reduce_window(
        x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


def test_max_pool_of_windows_is_that_of_the_images():
    windows = random(2, 3, 4, 4, 5)
    expected = layers.max_pool(images_of(windows))
    np.testing.assert_array_equal(layers.max_pool(windows), expected)


def apply_norm(x, statistics, train, pool=False):
    module = layers.BatchNorm(train=train)
    return module.apply(
        {"batch_stats": statistics}, x, pool=pool, mutable=["batch_stats"]
    )


STATISTICS = {"mean": np.full(3, 0.5, np.float32), "var": np.full(3, 2.0, np.float32)}


def test_batch_norm_uses_biased_variance_and_keeps_the_unbiased():
    # torch.nn.BatchNorm: normalises by the biased variance, records the unbiased one.
    x = random(6, 4, 4, 3)
    y, updated = apply_norm(x, STATISTICS, train=True)
    flat = x.reshape(-1, 3).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-4)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    running = updated["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.45 + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        running["var"], 1.8 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )


def test_batch_norm_in_evaluation_uses_and_keeps_the_running_statistics():
    x = random(6, 3)
    y, updated = apply_norm(x, STATISTICS, train=False)
    np.testing.assert_allclose(y, (x - 0.5) / np.sqrt(2.0 + 1e-4), rtol=1e-5)
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], STATISTICS["mean"])


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_with_pooling_is_batch_norm_then_pooling(train):
    x = random(4, 6, 6, 3)
    fused, state = apply_norm(x, STATISTICS, train, pool=True)
    apart, expected_state = apply_norm(x, STATISTICS, train)
    np.testing.assert_array_equal(fused, layers.max_pool(apart))
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def plain_norm(x, pool):
    axes = tuple(range(x.ndim - 1))
    variance = jnp.mean(jnp.square(x - jnp.mean(x, axes)), axes)
    y = (x - jnp.mean(x, axes)) / jnp.sqrt(variance + 1e-4)
    return layers.max_pool(y) if pool else y


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((7, 5), False),
        ((3, 4, 5, 6), False),
        ((3, 4, 6, 5), True),
        ((3, 5, 7, 2), True),
        ((3, 2, 3, 4, 5), True),
    ],
)
def test_batch_norm_gradient_is_that_of_the_definition(shape, pool):
    # Rounded, so that windows have equal maxima, which share their gradient.
    x = np.round(random(*shape), 1)
    y, plain_pull_back = jax.vjp(lambda x: plain_norm(x, pool), x)
    actual, pull_back = jax.vjp(lambda x: layers.normalize(x, 1e-4, pool)[0], x)
    np.testing.assert_allclose(actual, y, atol=1e-5)
    dy = random(*y.shape)
    np.testing.assert_allclose(pull_back(dy)[0], plain_pull_back(dy)[0], atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_batch_norm_over_shares_of_a_batch_is_that_of_the_batch(pool):
    x = random(8, 4, 4, 3)

    def run(x, axis_name=None):
        outputs, pull_back = jax.vjp(
            lambda x: layers.normalize(x, 1e-4, pool, axis_name), x
        )
        zeros = jnp.zeros(3)
        return *outputs, *pull_back((jnp.sin(outputs[0]), zeros, zeros))

    y, mean, var, dx = run(x)
    shares = jax.vmap(lambda x: run(x, "devices"), axis_name="devices")(
        x.reshape(4, 2, 4, 4, 3)
    )
    np.testing.assert_allclose(shares[0].reshape(y.shape), y, atol=1e-5)
    np.testing.assert_allclose(shares[1][0], mean, atol=1e-6)
    np.testing.assert_allclose(shares[2][0], var, atol=1e-6)
    np.testing.assert_allclose(shares[3].reshape(dx.shape), dx, atol=1e-5)


def test_batch_norm_computes_in_float32_and_keeps_bfloat16():
    x = random(16, 4, 4, 3).astype(jnp.bfloat16)
    y, mean, _ = layers.normalize(x, 1e-4, True)
    assert y.dtype == jnp.bfloat16 and mean.dtype == jnp.float32
    dx = jax.grad(lambda x: jnp.sum(layers.normalize(x, 1e-4, True)[0] ** 3))(x)
    assert dx.dtype == jnp.bfloat16
    expected = plain_norm(x.astype(np.float32), True)
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=0.02)


def test_batch_norm_keeps_the_digits_of_a_small_variance():
    x = (100.0 + 1e-2 * random(64, 3)).astype(np.float32)
    y, _ = apply_norm(x, STATISTICS, train=True)
    flat = x.astype(np.float64)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-4)
    np.testing.assert_allclose(y, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (layers.fan_in_bound, (25 * 8) ** -0.5),
        (layers.fan_out_bound, (25 * 4) ** -0.5),
        (layers.xavier_bound, (2 / 1.0001) ** 0.5 * (6 / (25 * 12)) ** 0.5),
    ],
    ids=["fan_in", "fan_out", "xavier"],
)
def test_initialisers_are_uniform_within_their_bound(bound, expected):
    shape = (5, 5, 8, 4)
    assert bound(shape) == pytest.approx(expected)
    draws = np.stack(
        [layers.uniform(bound)(jax.random.key(i), shape) for i in range(20)]
    )
    assert np.abs(draws).max() <= expected
    assert np.abs(draws).max() > 0.99 * expected
    # The variance of U(-b, b) is b^2 / 3; 16,000 draws.
    assert draws.var() == pytest.approx(expected**2 / 3, rel=0.03)
    assert draws.mean() == pytest.approx(0.0, abs=0.02 * expected)
