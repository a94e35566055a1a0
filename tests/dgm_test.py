import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from jax import test_util

from deepsad_jax import dgm, generative, losses, networks, training

FAST = training.Optimization(3e-3, epochs=60, milestones=(40,), batch_size=32)
SPEC = networks.MLPArchitecture((10,), (24, 12), 4)


@pytest.fixture(scope="module")
def bits():
    """Normal points have ones in front, anomalies behind; some of these are known."""
    rng = np.random.default_rng(0)
    of_class = np.repeat([[0.9, 0.1], [0.1, 0.9]], 5, axis=1)
    labels = np.repeat([0, 1, 0, 1], [200, 30, 100, 100])
    x = (rng.random((430, 10)) < of_class[labels]).astype(np.float32)
    data = training.training_set(x[:230], np.repeat([0, -1], [200, 30]))
    return data, x[230:], labels[230:]


def fit(data, method, **options):
    options = {"network": SPEC, "train": FAST, "pretrain": FAST, **options}
    return dgm.fit(jax.random.key(0), data, method=method, **options)


@pytest.fixture(scope="module", params=dgm.METHODS)
def fitted(request, bits):
    return fit(bits[0], request.param)


def test_anomalies_score_higher(bits, fitted):
    _, x_test, labels = bits
    scores = np.asarray(dgm.score(fitted, x_test))
    # Five standard deviations of the AUROC of scores that know nothing.
    chance = np.sqrt((100 + 100 + 1) / (12 * 100 * 100))
    assert sklearn.metrics.roc_auc_score(labels, scores) > 0.5 + 5 * chance


def test_m2_nearly_reaches_the_bayes_classifier(bits):
    # The data are what M2 assumes: the best score counts the ones behind.
    data, x_test, labels = bits
    best = sklearn.metrics.roc_auc_score(
        labels, x_test[:, 5:].sum(1) - x_test[:, :5].sum(1)
    )
    scores = np.asarray(dgm.score(fit(data, "m2"), x_test))
    spread = np.sqrt(0.25 / 100)  # of an AUROC of a hundred examples of each kind
    assert sklearn.metrics.roc_auc_score(labels, scores) > best - spread


def test_the_bound_of_a_vae_is_below_the_entropy_of_the_data(bits):
    # No model has a larger mean likelihood than the truth, on average.
    data, x_test, labels = bits
    fitted = fit(data._replace(semi_targets=0 * data.semi_targets), "vae")
    normal = x_test[labels == 0]
    entropy = 10 * scipy.stats.bernoulli(0.9).entropy()
    noise = jax.random.normal(jax.random.key(1), (100, len(normal), SPEC.rep_dim))
    model = generative.build_vae(SPEC)
    bounds = jax.vmap(lambda e: model.apply({"params": fitted.params}, normal, e))(
        noise
    )
    spread = 10 * 0.3 * np.log(9) / np.sqrt(len(normal))
    assert np.mean(bounds) < -entropy + 3 * spread
    # And it has learned more than independent fair coins.
    assert np.mean(bounds) > -10 * np.log(2)


def test_the_score_of_a_vae_is_its_bound_decoded_from_the_mean(bits):
    data, x, _ = bits
    fitted = fit(data, "vae")
    model = generative.build_vae(SPEC)
    bound = model.bind({"params": fitted.params})
    mean, log_var = bound.encode(x)
    expected = losses.gaussian_kl(mean, log_var)
    expected -= losses.bernoulli_log_likelihood(x, bound.decoder(mean))
    np.testing.assert_allclose(dgm.score(fitted, x), expected, rtol=1e-5)


def test_m1_m2_holds_the_vae_that_the_same_seed_trains(bits):
    data, x_test, _ = bits
    stacked, vae = fit(data, "m1_m2"), fit(data, "vae")
    np.testing.assert_array_equal(
        dgm.likelihood_score(stacked, x_test), dgm.score(vae, x_test)
    )
    # The frozen half moves nothing, and is in nobody's way: the rest has been trained.
    jax.tree.map(np.testing.assert_array_equal, stacked.model_state["m1"], vae.params)
    assert set(stacked.params) == {"m2"}
    assert set(stacked.history) == {"pretrain", "train"}
    with pytest.raises(ValueError, match="only m1_m2 has a VAE inside"):
        dgm.likelihood_score(vae, x_test)


def test_what_is_beyond_one_scores_as_one(bits):
    # A Bernoulli variable has no larger value, and the formula would reward it.
    data, x, _ = bits
    fitted = fit(data, "vae")
    beyond = np.where(x > 0.5, 2.5, -0.3)
    np.testing.assert_array_equal(dgm.score(fitted, beyond), dgm.score(fitted, x))


def test_a_model_starts_from_one_of_its_own(bits, fitted):
    data, _, _ = bits
    for method in set(dgm.METHODS) - {fitted.method}:
        with pytest.raises(ValueError, match=f"initial is a model of {fitted.method}"):
            fit(data, method, initial=fitted)
    other = training.training_set(np.zeros((40, 9), np.float32), [-1, 0] * 20)
    with pytest.raises(ValueError, match="initial is a model of MLP.*but network is"):
        fit(other, fitted.method, initial=fitted, network=networks.mlp_for_table(9))


@pytest.mark.parametrize("kinds", [(0,), (1, -1), (0, 1, -1)])
def test_batches_without_labelled_or_unlabelled_examples(kinds):
    objective = dgm.m2_objective(SPEC, alpha=0.1)
    params, model_state = objective.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = rng.random((16, 10), np.float32)
    semi_targets = jnp.asarray(rng.choice(kinds, 16), jnp.float32)

    def loss(params, semi_targets):
        batch = training.Batch(x, semi_targets)
        return jnp.mean(objective.loss(params, model_state, batch, key)[0])

    key = jax.random.key(1)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, semi_targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # The sum of the means over both groups, each example's loss from the same noise.
    noise = jax.random.normal(key, (1, 2, 16, SPEC.rep_dim))
    terms = generative.build_m2(SPEC).apply({"params": params}, x, noise, True)
    per_example = losses.m2_loss(*terms, semi_targets, alpha=0.1)
    groups = [per_example[semi_targets == 0], per_example[semi_targets != 0]]
    expected = sum(np.mean(group) for group in groups if len(group))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gradient_of_the_network_against_finite_differences():
    x = np.random.default_rng(0).random((8, 10))
    semi_targets = np.array([0, 0, 0, 1, -1, 0, -1, 0.0])
    with jax.enable_x64(True):
        objective = dgm.m2_objective(SPEC, alpha=0.1, dtype=jnp.float64)
        params, model_state = objective.init(jax.random.key(0))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        batch = training.Batch(jnp.asarray(x), jnp.asarray(semi_targets))

        def loss(params):
            key = jax.random.key(1)
            return jnp.mean(objective.loss(params, model_state, batch, key)[0])

        test_util.check_grads(
            jax.jit(loss), (params,), order=1, modes=["rev"], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "hidden", "latent", "features"),
    [
        ("mnist_DGM_M2", (128, 64), 32, 784),
        ("fmnist_DGM_M1M2", (256, 128), 64, 784),
        ("cifar10_DGM_M1M2", (512, 256), 128, 3072),
        ("arrhythmia_DGM_M2", (128, 64), 32, 274),
        ("satimage-2_DGM_M2", (32, 16), 8, 36),
        ("thyroid_DGM_M2", (32, 16), 4, 6),
    ],
)
def test_sizes_of_the_paper(name, hidden, latent, features):
    model = generative.build(name)
    assert (model.hidden, model.latent, model.features) == (hidden, latent, features)


def test_initial_weights_have_glorots_variance_and_no_bias():
    params, _ = dgm.m2_objective("mnist_LeNet").init(jax.random.key(0))
    kernel = params["encoder"]["hidden1"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (786 + 128)), rtol=0.02)
    assert scipy.stats.kstest(kernel.ravel() / np.std(kernel), "norm").pvalue > 1e-3
    assert not np.any(params["decoder"]["output"]["bias"])
    extreme = dgm._distribute(["kernel"], (1, 3), np.array([[-1.0, 0.0, 1.0]]))
    assert np.isfinite(extreme).all()


def test_wrong_arguments_are_named(bits):
    data, _, _ = bits
    with pytest.raises(ValueError, match="method is 'm3'; it must be one of vae"):
        fit(data, "m3")
    with pytest.raises(ValueError, match="alpha is -1; it must be >= 0"):
        fit(data, "m2", alpha=-1)
    with pytest.raises(ValueError, match=r"x has values from 0 to 2; .* \[0, 1\]"):
        fit(data._replace(x=2 * data.x), "m2")
    with pytest.raises(ValueError, match="less than one batch of 500"):
        fit(data, "m2", train=training.Optimization(batch_size=500))
    for x in (data.x[:, :9], data.x[0], data.x[None], data.x[:0]):
        with pytest.raises(ValueError, match=r"this model takes \[n, 10\] with n > 0"):
            dgm.score(fit(data, "m2"), x)
    blind = data._replace(semi_targets=0 * data.semi_targets)
    with pytest.raises(ValueError, match="m2 learns from known anomalies, but there"):
        fit(blind, "m2")
    with pytest.raises(ValueError, match="network has no hidden layer"):
        fit(data, "m2", network=networks.MLPArchitecture((10,), (), 4))
    with pytest.raises(ValueError, match="takes examples of 10 features"):
        generative.build_vae(SPEC).init(jax.random.key(0), data.x[:, :9], 0.0)
    for name in ("mnist_DGM_M3", "svhn_DGM_M2", "mnist"):
        with pytest.raises(ValueError, match="must be SET_DGM_M2 or SET_DGM_M1M2"):
            generative.build(name)
