import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import sklearn.metrics
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


def test_hypersphere_gradient_is_continuous_where_its_forms_meet():
    def gradient(z):
        loss = losses.hypersphere_loss(jnp.array([[z]]), jnp.zeros(1), jnp.zeros(1))
        return loss[0]

    actual = [jax.grad(gradient)(z) for z in (0.999, 1.0, 1.001)]
    np.testing.assert_allclose(actual, np.sqrt(0.5), rtol=2e-3)


DISTANCES = np.array([0.0, 1e-30, 1e-6, 1e-3, 4e-3, 0.05, 1.0, 1e15, 1e25], "float32")


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("loss", [losses.deep_sad_loss, losses.hypersphere_loss])
def test_gradients_are_finite(loss, dtype, epsilon):
    # 300 is far for float16, whose squares are beyond its range.
    most = float(jnp.finfo(dtype).max)
    distances = np.minimum(DISTANCES, 300.0 if most < 1e5 else np.inf)
    z = jnp.tile(jnp.asarray(CENTER + distances[:, None], dtype), (3, 1))
    targets = np.repeat([-1, 0, 1], len(DISTANCES))

    @jax.jit
    def gradient(z):
        values, pullback = jax.vjp(
            lambda z: loss(z, targets, CENTER, epsilon=epsilon), z
        )
        return values, *pullback(jnp.ones_like(values))

    values, gradients = gradient(z)
    assert values.dtype == jnp.float32 and gradients.dtype == dtype
    gradients = np.asarray(gradients, np.float32)
    assert (values >= 0).all()
    assert np.isfinite(values[np.tile(distances, 3) < 1e16]).all()
    assert np.isfinite(gradients).all()
    # Narrow numbers are widened first, and their gradients are the nearest there are.
    wide_values, wide = gradient(z.astype(jnp.float32))
    np.testing.assert_allclose(values, wide_values, rtol=1e-6)
    np.testing.assert_allclose(
        gradients, np.clip(wide, -most, most), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_numbers_are_widened_first(dtype, embeddings):
    z = jnp.asarray(embeddings, dtype)
    targets = jnp.array([0, 1, -1, 0, 1, -1, 0])
    for name in ("deviation", "one_class", "soft_boundary", "classification"):
        loss = OF_EMBEDDINGS[name]
        actual, expected = loss(z, targets), loss(z.astype(jnp.float32), targets)
        assert actual.dtype == jnp.float32
        np.testing.assert_array_equal(actual, expected)
    x = jnp.full((1, 4), 300.0, dtype)
    errors = losses.reconstruction_error(x, jnp.zeros((1, 4)))
    np.testing.assert_allclose(errors, [9e4], rtol=1e-2)


def test_hypersphere_loss_is_the_cross_entropy_of_the_publication(embeddings):
    semi_targets = np.array([0, 1, -1, 0, 1, -1, 0])
    z = embeddings.astype(np.float64) - CENTER
    huber = np.sqrt(np.sum(z**2, axis=1) + 1) - 1
    # Cross-entropy of the probability exp(-h) that an example is normal.
    expected = -scipy.special.xlogy(semi_targets >= 0, np.exp(-huber))
    expected -= scipy.special.xlogy(semi_targets < 0, 1 - np.exp(-huber))
    expected *= np.where(semi_targets == 0, 1.0, 0.3)
    actual = losses.hypersphere_loss(embeddings, semi_targets, CENTER, eta=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_hypersphere_loss_is_accurate_near_the_center():
    z = np.array([[1e-4, 0, 0], [1e-4, 0, 0]])
    actual = losses.hypersphere_loss(z, np.array([0, -1]), np.zeros(3), epsilon=1e-12)
    # h = 1e-8 / 2 for d = 1e-8, and -log(1 - exp(-h)) = -log h.
    np.testing.assert_allclose(actual, [5e-9, -np.log(5e-9)], rtol=1e-3)


def test_deviation_loss_is_that_of_the_publication():
    scores = np.array([-1.0, 4.0, 4.0, 40.0, 4.0, 9.0])
    semi_targets = np.array([0, 0, -1, -1, 1, 1])
    deviation = (scores - 2.0) / 4.0
    anomalous = semi_targets < 0
    expected = (1 - anomalous) * np.abs(deviation)
    expected += anomalous * np.maximum(0, 3.0 - deviation)
    expected *= np.where(semi_targets == 0, 1.0, 0.5)
    actual = losses.deviation_loss(
        scores, semi_targets, eta=0.5, mean=2.0, std=4.0, margin=3.0
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_classification_loss_is_the_log_loss_against_all_others():
    logits = np.random.default_rng(0).normal(size=30) * 3
    semi_targets = np.random.default_rng(1).integers(-1, 2, 30)
    expected = sklearn.metrics.log_loss(semi_targets < 0, scipy.special.expit(logits))
    actual = np.mean(losses.classification_loss(logits, semi_targets))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bernoulli_log_likelihood_is_that_of_scipy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 8)) * 2
    p = scipy.special.expit(logits)
    ones = rng.integers(0, 2, (5, 8))
    expected = scipy.stats.bernoulli.logpmf(ones, p).sum(axis=1)
    actual = losses.bernoulli_log_likelihood(ones, logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    gray = rng.random((5, 8))
    expected = np.sum(gray * np.log(p) + (1 - gray) * np.log(1 - p), axis=1)
    actual = losses.bernoulli_log_likelihood(gray, logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Certain and right, certain and wrong, without overflow.
    actual = losses.bernoulli_log_likelihood(np.ones((2, 1)), np.array([[200], [-200]]))
    np.testing.assert_allclose(actual, [0.0, -200.0])


def test_gaussian_log_density_is_that_of_scipy():
    z, mean, log_var = np.random.default_rng(0).normal(size=(3, 4, 5))
    for i in range(4):
        normal = scipy.stats.multivariate_normal(mean[i], np.diag(np.exp(log_var[i])))
        actual = losses.gaussian_log_density(z[i], mean[i], log_var[i])
        np.testing.assert_allclose(actual, normal.logpdf(z[i]), rtol=1e-5)
    expected = scipy.stats.norm.logpdf(z).sum(axis=1)
    np.testing.assert_allclose(losses.gaussian_log_density(z), expected, rtol=1e-5)


@pytest.mark.parametrize(("mean", "log_var"), [(0.0, 0.0), (1.5, -2.0), (-0.3, 1.0)])
def test_gaussian_kl_is_the_integral(mean, log_var):
    q = scipy.stats.norm(mean, np.exp(log_var / 2))

    def integrand(z):
        return q.pdf(z) * (q.logpdf(z) - scipy.stats.norm.logpdf(z))

    expected, _ = scipy.integrate.quad(integrand, -20, 20, points=[mean])
    actual = losses.gaussian_kl(np.array([mean]), np.array([log_var]))
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-5)


def test_lower_bound_is_tight_for_the_true_posterior_and_low_for_another():
    rng = np.random.default_rng(0)
    x, logits = rng.random(6), rng.normal(size=6)
    # A decoder that ignores the code: the posterior is the prior, p(x) the likelihood.
    evidence = losses.bernoulli_log_likelihood(x, logits)
    z = rng.normal(size=3)
    tight = losses.evidence_lower_bound(x, logits, z, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(tight, evidence, rtol=1e-6)
    # The mean of another one's is low by the divergence from the posterior.
    mean, log_var = np.array([0.5, -1.0, 0.0]), np.array([0.2, 0.0, -0.7])
    z = mean + np.exp(log_var / 2) * rng.normal(size=(200_000, 3))
    like = [np.broadcast_to(a, (len(z), 6)) for a in (x, logits)]
    loose = losses.evidence_lower_bound(*like, z, mean, log_var)
    expected = evidence - losses.gaussian_kl(mean, log_var)
    np.testing.assert_allclose(np.mean(loose), expected, atol=0.02)


def test_m2_loss_is_that_of_the_publication():
    rng = np.random.default_rng(0)
    bounds = rng.normal(size=(6, 2)) * 5
    q = rng.dirichlet([1, 1], 6)
    semi_targets = np.array([0, 1, -1, 0, 1, -1])
    expected = []
    for i, target in enumerate(semi_targets):
        if target == 0:
            expected.append(-q[i] @ bounds[i] - scipy.stats.entropy(q[i]))
        else:
            y = 0 if target == 1 else 1
            expected.append(-bounds[i, y] - 0.3 * np.log(q[i, y]))
    actual = losses.m2_loss(bounds, np.log(q), semi_targets, alpha=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_m2_loss_of_the_best_classifier_is_the_marginal_likelihood():
    # Over q the unlabeled bound is largest at the posterior: log of the summed bounds.
    bounds = np.array([[-3.0, -4.5]])
    posterior = scipy.special.log_softmax(bounds, axis=1)
    best = losses.m2_loss(bounds, posterior, np.zeros(1))
    np.testing.assert_allclose(best, -scipy.special.logsumexp(bounds), rtol=1e-6)
    other = losses.m2_loss(bounds, np.log([[0.6, 0.4]]), np.zeros(1))
    assert other > best


@pytest.mark.parametrize(
    ("semi_targets", "expected"),
    [
        ([0, 0, 1, -1], (1 + 2) / 2 + (3 + 5) / 2),
        ([0, 0, 0, 1], (1 + 2 + 3) / 3 + 5),
        ([0, 0, 0, 0], 11 / 4),  # no labeled example
        ([1, -1, 1, 1], 11 / 4),  # no unlabeled example
    ],
)
def test_balanced_losses_have_the_sum_of_both_means(semi_targets, expected):
    weighted = losses.balanced(jnp.array([1.0, 2.0, 3.0, 5.0]), jnp.array(semi_targets))
    np.testing.assert_allclose(jnp.mean(weighted), expected, rtol=1e-6)


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


OF_EMBEDDINGS = {
    "deep_sad": lambda z, y: losses.deep_sad_loss(z, y, CENTER, eta=0.5),
    "hypersphere": lambda z, y: losses.hypersphere_loss(z, y, CENTER, eta=0.5),
    "deviation": lambda z, y: losses.deviation_loss(z[..., 0], y, eta=0.5),
    "one_class": lambda z, y: losses.one_class_loss(z, CENTER),
    "soft_boundary": lambda z, y: losses.soft_boundary_loss(z, CENTER, 1.0, nu=0.2),
    "classification": lambda z, y: losses.classification_loss(z[..., 0], y),
    "bernoulli": lambda z, y: losses.bernoulli_log_likelihood(jax.nn.sigmoid(z), z),
    "kl": lambda z, y: losses.gaussian_kl(z, z[..., ::-1]),
    "bound": lambda z, y: losses.evidence_lower_bound(
        z, z**2, 2 * z, z + 1, jnp.sin(z)
    ),
    "m2": lambda z, y: losses.m2_loss(
        jnp.sin(z[..., :2]), jax.nn.log_softmax(z[..., 1:]), y, alpha=0.3
    ),
}


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
def test_gradients_against_finite_differences(name, embeddings):
    targets = jnp.array([0, 1, -1, 0, 1, -1, 0])
    with jax.enable_x64(True):
        z = jnp.asarray(embeddings, jnp.float64)
        loss = jax.jit(lambda z: OF_EMBEDDINGS[name](z, targets))
        test_util.check_grads(loss, (z,), order=1, rtol=1e-6)


@pytest.mark.parametrize("loss", OF_EMBEDDINGS.values(), ids=OF_EMBEDDINGS)
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


OF_TARGETS = {
    name: OF_EMBEDDINGS[name]
    for name in ("deep_sad", "hypersphere", "deviation", "classification", "m2")
}


@pytest.mark.parametrize("loss", OF_TARGETS.values(), ids=OF_TARGETS)
def test_other_targets_are_refused_or_give_nan(loss, embeddings):
    for strange in (2, 0.5, -2, np.nan):
        targets = np.array([0, 1, -1, strange, 1, -1, 0])
        with pytest.raises(ValueError, match=f"semi_targets contains {strange}; allow"):
            loss(embeddings, targets)
        with pytest.raises(ValueError, match="allowed are .1 .known normal., 0"):
            jax.jit(lambda z, y=targets: loss(z, y))(embeddings)
        values = jax.jit(loss)(embeddings, targets)  # here they are traced
        np.testing.assert_array_equal(np.isnan(values), np.arange(7) == 3)


@pytest.mark.parametrize("loss", [losses.deep_sad_loss, losses.hypersphere_loss])
@pytest.mark.parametrize("name", ["eta", "epsilon"])
@pytest.mark.parametrize(
    "value",
    [
        *(0, -1.0, np.float32(-1), np.int8(-1), np.inf, np.nan, "1", None, True),
        *(np.array(-1), jnp.float32(-1), jnp.bfloat16(-1)),
    ],
    ids=repr,
)
def test_hyper_parameters_out_of_range_are_refused(loss, name, value, embeddings):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be .* finite"):
        loss(embeddings, np.zeros(7), CENTER, **{name: value})


def test_epsilon_is_at_least_what_float32_can_differentiate(embeddings):
    with pytest.raises(ValueError, match="epsilon is 1e-13; it must be at least 1e-12"):
        losses.deep_sad_loss(embeddings, np.zeros(7), CENTER, epsilon=1e-13)
    # What is traced cannot be seen, and is the caller's responsibility.
    traced = jax.jit(
        lambda e: losses.deep_sad_loss(embeddings, np.zeros(7), CENTER, eta=e)
    )
    assert np.isfinite(traced(-1.0)).all()


@pytest.mark.parametrize("eta", [2, np.array(2), jnp.float32(2), jnp.bfloat16(2)])
def test_hyper_parameters_of_any_real_type_are_taken(eta, embeddings):
    targets = np.ones(7)
    expected = losses.deep_sad_loss(embeddings, targets, CENTER, eta=2.0)
    found = losses.deep_sad_loss(embeddings, targets, CENTER, eta=eta)
    np.testing.assert_allclose(found, expected, 1e-6)


def test_booleans_may_mean_either_and_are_refused(embeddings):
    known = np.arange(7) < 3
    for loss in (losses.deep_sad_loss, losses.hypersphere_loss):
        with pytest.raises(ValueError, match="semi_targets holds booleans"):
            loss(embeddings, known, CENTER)
    for loss in (losses.deviation_loss, losses.classification_loss):
        with pytest.raises(ValueError, match="semi_targets holds booleans"):
            jax.jit(loss)(np.zeros(7), known)


@pytest.mark.parametrize("nu", [0, 1.5, jnp.float32(-1), np.array(2), "1"])
def test_nu_is_a_share(nu, embeddings):
    with pytest.raises(ValueError, match=rf"nu is {nu}; it must be in \(0, 1\]"):
        losses.soft_boundary_loss(embeddings, CENTER, 1.0, nu=nu)


def test_wrong_arguments_are_named(embeddings):
    with pytest.raises(ValueError, match=r"semi_targets has shape \(6,\)"):
        losses.deep_sad_loss(embeddings, np.zeros(6), CENTER)
    with pytest.raises(ValueError, match="last axes must be equal"):
        losses.squared_distance(embeddings, CENTER[:2])
    with pytest.raises(ValueError, match="nu is 1.5"):
        losses.soft_boundary_loss(embeddings, CENTER, 1.0, nu=1.5)
    with pytest.raises(ValueError, match="reconstruction has shape"):
        losses.reconstruction_error(embeddings, CENTER)
    with pytest.raises(ValueError, match=r"semi_targets has shape \(7,\), but scores"):
        losses.deviation_loss(np.zeros(6), np.zeros(7))
    with pytest.raises(ValueError, match=r"but logits has shape \(7, 1\)"):
        losses.classification_loss(np.zeros((7, 1)), np.zeros(7))
    with pytest.raises(ValueError, match=r"but losses has shape \(7, 1\)"):
        losses.balanced(jnp.zeros((7, 1)), np.zeros(7))
    with pytest.raises(ValueError, match="margin is 0"):
        losses.deviation_loss(np.zeros(7), np.zeros(7), margin=0)
    with pytest.raises(ValueError, match="logits has shape"):
        losses.bernoulli_log_likelihood(embeddings, CENTER)
    with pytest.raises(ValueError, match="alpha is -0.1"):
        losses.m2_loss(np.zeros((7, 2)), np.zeros((7, 2)), np.zeros(7), alpha=-0.1)
    with pytest.raises(ValueError, match=r"log_q has shape \(7, 3\)"):
        losses.m2_loss(np.zeros((7, 2)), np.zeros((7, 3)), np.zeros(7))
