import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from deepsad_jax import losses

CENTER = np.array([0.5, -1.0, 2.0], np.float32)


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def test_importing_losses_loads_nothing_heavy():
    program = (
        "import sys; from deepsad_jax import losses; "
        "heavy = {'flax', 'optax', 'orbax', 'sklearn', 'scipy.stats', 'matplotlib',"
        " 'tensorflow_datasets', 'tensorflow', 'absl.flags', 'ml_collections'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_squared_distance_is_that_of_numpy(embeddings):
    expected = np.linalg.norm(embeddings - CENTER, axis=1) ** 2
    actual = losses.squared_distance(embeddings, CENTER)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_deep_sad_loss_is_the_power_of_the_paper(embeddings):
    semi_targets = np.array([0, 1, -1, 0, 1, -1, 0])
    distance = np.sum((embeddings.astype(np.float64) - CENTER) ** 2, axis=1)
    power = 0.3 * (distance + 1e-6) ** semi_targets.astype(float)
    expected = np.where(semi_targets == 0, distance, power)
    actual = losses.deep_sad_loss(embeddings, semi_targets, CENTER, eta=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_deep_sad_loss_without_labels_is_one_class_deep_svdd(embeddings):
    actual = losses.deep_sad_loss(embeddings, np.zeros(7), CENTER, eta=5.0)
    np.testing.assert_array_equal(actual, losses.one_class_loss(embeddings, CENTER))


def test_soft_boundary_loss_closed_form():
    embeddings = CENTER + np.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 3.0]])
    actual = losses.soft_boundary_loss(embeddings, CENTER, 2.0, nu=0.1)
    np.testing.assert_allclose(actual, [4.0, 4 + 5 / 0.1, 4 + 21 / 0.1], rtol=1e-6)


def test_soft_boundary_radius_is_optimal_at_the_quantile(embeddings):
    # The derivative in R^2 is 1 - share outside / nu: zero if nu of them are outside.
    distances = np.sort(np.asarray(losses.squared_distance(embeddings, CENTER)))

    def total(squared_radius):
        radius = np.sqrt(squared_radius)
        loss = losses.soft_boundary_loss(embeddings, CENTER, radius, nu=2.5 / 7)
        return float(jnp.mean(loss))

    best = min(np.linspace(0, distances[-1], 400), key=total)
    assert distances[3] < best < distances[5]


def test_reconstruction_error_averages_over_pixels_and_channels():
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 4, 5, 6, 3), np.float32)
    expected = [np.mean((a - b) ** 2) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(losses.reconstruction_error(x, y), expected, rtol=1e-6)


@pytest.mark.parametrize("semi_target", [-1, 0, 1])
@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-3, 1.0, 1e15, 1e25])
def test_deep_sad_gradient_is_finite(semi_target, distance):
    def loss(z):
        return jnp.sum(losses.deep_sad_loss(z, jnp.array([semi_target]), CENTER))

    gradient = jax.grad(loss)(jnp.asarray(CENTER + distance)[None])
    assert np.isfinite(gradient).all()


def test_soft_boundary_gradient_is_finite_at_zero():
    gradients = jax.grad(
        lambda z, r: jnp.sum(losses.soft_boundary_loss(z, CENTER, r)), (0, 1)
    )(jnp.asarray(CENTER)[None], jnp.zeros(()))
    assert all(np.isfinite(g).all() for g in gradients)


def test_anomalies_are_pushed_away_and_normals_pulled_in(embeddings):
    def gradient(semi_target):
        targets = jnp.full(7, semi_target)
        return jax.grad(lambda z: jnp.sum(losses.deep_sad_loss(z, targets, CENTER)))(
            embeddings
        )

    outwards = embeddings - CENTER
    assert (np.sum(gradient(-1) * outwards, axis=1) < 0).all()
    assert (np.sum(gradient(1) * outwards, axis=1) > 0).all()
    assert (np.sum(gradient(0) * outwards, axis=1) > 0).all()


def test_deep_sad_gradient_against_finite_differences(embeddings):
    targets = jnp.array([0, 1, -1, 0, 1, -1, 0])
    with jax.enable_x64(True):
        z = jnp.asarray(embeddings, jnp.float64)
        test_util.check_grads(
            lambda z: losses.deep_sad_loss(z, targets, CENTER, eta=0.7),
            (z,),
            order=1,
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: losses.deep_sad_loss(z, y, CENTER, eta=0.5),
        lambda z, y: losses.one_class_loss(z, CENTER),
        lambda z, y: losses.soft_boundary_loss(z, CENTER, 1.0, nu=0.2),
    ],
    ids=["deep_sad", "one_class", "soft_boundary"],
)
def test_jit_and_vmap_agree_with_eager(loss, embeddings):
    targets = np.array([0, 1, -1, 0, 1, -1, 0])
    eager = loss(embeddings, targets)
    np.testing.assert_allclose(jax.jit(loss)(embeddings, targets), eager, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(embeddings, targets), eager, rtol=1e-6)


def test_clamp_center_moves_small_components_and_keeps_signs():
    center = np.array([-0.5, -0.05, -0.0, 0.0, 0.02, 0.1, 3.0])
    expected = [-0.5, -0.1, 0.1, 0.1, 0.1, 0.1, 3.0]
    np.testing.assert_allclose(losses.clamp_center(center), expected, rtol=1e-6)
    assert losses.clamp_center(jnp.array([0.2]), minimum=0.3) == pytest.approx(0.3)


def test_wrong_arguments_are_named(embeddings):
    with pytest.raises(ValueError, match="eta is 0.*must be > 0"):
        losses.deep_sad_loss(embeddings, np.zeros(7), CENTER, eta=0)
    with pytest.raises(ValueError, match="epsilon is -1"):
        losses.deep_sad_loss(embeddings, np.zeros(7), CENTER, epsilon=-1)
    with pytest.raises(ValueError, match=r"semi_targets has shape \(6,\)"):
        losses.deep_sad_loss(embeddings, np.zeros(6), CENTER)
    with pytest.raises(ValueError, match="last axes must be equal"):
        losses.squared_distance(embeddings, CENTER[:2])
    with pytest.raises(ValueError, match="nu is 1.5"):
        losses.soft_boundary_loss(embeddings, CENTER, 1.0, nu=1.5)
    with pytest.raises(ValueError, match="reconstruction has shape"):
        losses.reconstruction_error(embeddings, CENTER)
