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


@pytest.mark.parametrize("upsample", [False, True])
def test_convolution_gradients_are_those_of_the_plain_one(upsample):
    x, kernel = random(2, 8, 8, 1 if not upsample else 3), None
    kernel = random(5, 5, x.shape[-1], 4)
    weights = random(2, 16, 16, 4) if upsample else random(2, 8, 8, 4)

    def plain(x, kernel):
        if upsample:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        y = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(2, 2), (2, 2)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(y * weights)

    def ours(x, kernel):
        form = layers.upsample_and_convolve if upsample else layers.convolve
        return jnp.sum(form(x, kernel, 2) * weights)

    for actual, expected in zip(
        jax.grad(ours, (0, 1))(x, kernel),
        jax.grad(plain, (0, 1))(x, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


def test_max_pool_is_the_maximum_of_each_window_and_drops_odd_edges():
    x = random(2, 5, 6, 3)
    expected = lax.reduce_window(
        x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


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
