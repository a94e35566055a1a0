import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepsad_jax import layers


def random(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_max_pool_is_the_maximum_of_each_window_and_drops_odd_edges():
    x = random(2, 5, 6, 3)
    expected = lax.reduce_window(
        x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


def test_max_pool_of_windows_is_that_of_the_images():
    windows = random(2, 3, 4, 4, 5)
    images = windows.reshape(2, 3, 4, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5)
    expected = layers.max_pool(images.reshape(2, 6, 8, 5))
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
