import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepsad_jax import fast_cpu, layers, parallel


def random(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def apply_norm(x, statistics, train, pool=False):
    module = layers.BatchNorm(train=train)
    return module.apply(
        {"batch_stats": statistics}, x, pool=pool, mutable=["batch_stats"]
    )


STATISTICS = {"mean": np.full(3, 0.5, np.float32), "var": np.full(3, 2.0, np.float32)}


def test_batch_norm_uses_biased_variance_and_keeps_the_unbiased():
    # torch.nn.BatchNorm: normalizes by the biased variance, records the unbiased one.
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
    np.testing.assert_array_equal(fused, fast_cpu.max_pool(apart))
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def plain_norm(x, pool):
    axes = tuple(range(x.ndim - 1))
    variance = jnp.mean(jnp.square(x - jnp.mean(x, axes)), axes)
    y = (x - jnp.mean(x, axes)) / jnp.sqrt(variance + 1e-4)
    return fast_cpu.max_pool(y) if pool else y


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


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.1])
def test_rows_are_normalized_and_rectified_as_defined(slope):
    def run(x, function=lambda x: layers.normalize_rows(x, 1e-4, slope)[0]):
        y, pull_back = jax.vjp(function, x)
        return y, *pull_back(jnp.cos(y))

    @jax.jit
    def defined(x):
        return run(x, lambda x: nn.leaky_relu(plain_norm(x, False), slope))

    x = random(8, 5)
    found, expected = jax.jit(run)(x), defined(x)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    shares = jax.jit(jax.vmap(run, axis_name=parallel.AXIS))(x.reshape(4, 2, 5))
    for share, whole in zip(shares, found, strict=True):
        np.testing.assert_allclose(share.reshape(whole.shape), whole, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 4, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_a_leaky_relu_may_come_last(shape, train):
    x, module = random(*shape), layers.BatchNorm(train=train)
    variables = {"batch_stats": STATISTICS}
    apart, state = module.apply(variables, x, mutable=["batch_stats"])
    joined, same = module.apply(variables, x, slope=0.1, mutable=["batch_stats"])
    np.testing.assert_allclose(joined, nn.leaky_relu(apart, 0.1), atol=1e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_batch_norm_over_shares_of_a_batch_is_that_of_the_batch(pool):
    x = random(8, 4, 4, 3)

    def run(x):
        outputs, pull_back = jax.vjp(lambda x: layers.normalize(x, 1e-4, pool), x)
        zeros = jnp.zeros(3)
        return *outputs, *pull_back((jnp.sin(outputs[0]), zeros, zeros))

    y, mean, var, dx = jax.jit(run)(x)
    shares = jax.jit(jax.vmap(run, axis_name=parallel.AXIS))(x.reshape(4, 2, 4, 4, 3))
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


def test_running_statistics_over_shares_of_a_batch_are_those_of_the_batch():
    x = random(8, 3)
    _, expected = apply_norm(x, STATISTICS, train=True)
    _, shares = jax.vmap(
        lambda x: apply_norm(x, STATISTICS, train=True), axis_name=parallel.AXIS
    )(x.reshape(4, 2, 3))
    first = jax.tree.map(lambda leaf: leaf[0], shares)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), first, expected)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (layers.fan_in_bound, (25 * 8) ** -0.5),
        (layers.fan_out_bound, (25 * 4) ** -0.5),
        (layers.xavier_bound, (2 / 1.0001) ** 0.5 * (6 / (25 * 12)) ** 0.5),
    ],
    ids=["fan_in", "fan_out", "xavier"],
)
def test_uniform_initializers_fill_their_bound(bound, expected):
    shape = (5, 5, 8, 4)
    assert bound(shape) == pytest.approx(expected)
    keys = jax.random.split(jax.random.key(0), 20)
    draws = jax.vmap(lambda key: layers.Uniform(bound)(key, shape))(keys)
    assert np.abs(draws).max() <= expected
    assert np.abs(draws).max() > 0.99 * expected
    # The variance of U(-b, b) is b^2 / 3; 16,000 draws.
    assert np.var(draws) == pytest.approx(expected**2 / 3, rel=0.03)
    assert np.mean(draws) == pytest.approx(0.0, abs=0.02 * expected)


def test_glorot_initializer_is_normal_of_its_variance():
    draws = np.asarray(layers.Glorot()(jax.random.key(0), (300, 100)))
    deviation = (2 / 400) ** 0.5
    assert np.isfinite(draws).all()
    assert draws.std() == pytest.approx(deviation, rel=0.02)
    # 68.27 and 95.45 percent within one and two deviations.
    assert np.mean(np.abs(draws) < deviation) == pytest.approx(0.6827, abs=0.01)
    assert np.mean(np.abs(draws) < 2 * deviation) == pytest.approx(0.9545, abs=0.005)


def test_initializers_are_equal_if_their_rules_are():
    assert layers.Uniform(layers.fan_in_bound) == layers.PYTORCH
    assert hash(layers.Glorot()) == hash(layers.Glorot())
    assert layers.Uniform(layers.xavier_bound) != layers.PYTORCH
    dense = [nn.Dense(3, kernel_init=layers.Uniform()) for _ in range(2)]
    assert dense[0] == dense[1] and hash(dense[0]) == hash(dense[1])


class Mixed(nn.Module):
    """Our initializers, Flax's own, and ours in a body that a scan traces once."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(50, use_bias=False, kernel_init=layers.PYTORCH, name="ours")(x)
        x = nn.Dense(50, name="foreign")(x)
        x = nn.Dense(50, use_bias=False, kernel_init=layers.PYTORCH, name="second")(x)
        body = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        inner = nn.Dense(50, use_bias=False, kernel_init=layers.PYTORCH, name="scanned")
        return body(inner, x, None)[0]


def init_mixed(key):
    return Mixed().init(key, jnp.zeros((1, 50)))


def init_pooled(key):
    return layers.init_from_one_draw(init_mixed, key)["params"]


def test_one_draw_serves_our_kernels_and_leaves_others_alone():
    key = jax.random.key(3)
    draw = jax.random.uniform(key, (2 * 50 * 50,), minval=-1.0) * 50**-0.5
    flax, pooled = init_mixed(key)["params"], jax.jit(init_pooled)(key)
    kernels = [pooled[name]["kernel"] for name in ("ours", "second")]
    np.testing.assert_allclose(np.ravel(kernels), draw, rtol=1e-6)
    for name in ("foreign", "scanned"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            pooled[name],
            flax[name],
        )
    first, second = pooled["scanned"]["kernel"]
    assert not np.array_equal(first, second)


def test_one_draw_of_each_of_many_runs():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(init_pooled))(keys)
    for run, key in enumerate(keys):
        jax.tree.map(
            lambda a, b, run=run: np.testing.assert_allclose(a[run], b, rtol=1e-6),
            together,
            init_pooled(key),
        )


@pytest.mark.parametrize("sizes", [(1,), (4, 9), (5, 6, 8)])
def test_halving_is_max_pooling_that_keeps_odd_ends(sizes):
    x = random(2, *sizes, 3)
    halved = layers.halve(x)
    assert halved.shape == (2, *(layers.halved(size) for size in sizes), 3)
    window = (1, *(2 if size > 4 else 1 for size in sizes), 1)
    expected = lax.reduce_window(x, -np.inf, lax.max, window, window, "SAME")
    np.testing.assert_array_equal(halved, expected)
    doubled = layers.double(halved, sizes)
    assert doubled.shape == x.shape and (doubled >= x).all()
