import functools

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from deepsad_jax import model, networks, preprocessing, training
from deepsad_jax.detectors import generative

ENCODER = networks.MLPEncoder((24, 12), 4)
FAST = training.Stage(training.Adam(3e-3, (40,)), epochs=60, batch_size=32)
NOTHING = training.Stage(epochs=0, batch_size=32)
METHODS = (generative.VAE, generative.M2, generative.M1M2)


@functools.cache
def bits():
    """Normal points have ones in front, anomalies behind; some of these are known."""
    rng = np.random.default_rng(0)
    of_class = np.repeat([[0.9, 0.1], [0.1, 0.9]], 5, axis=1)
    labels = np.repeat([0, 1, 0, 1], [200, 30, 100, 100])
    x = (rng.random((430, 10)) < of_class[labels]).astype(np.float32)
    data = training.training_set(x[:230], np.repeat([0, -1], [200, 30]))
    return data, x[230:], labels[230:]


def fit(method, data=None, **options):
    options = {"encoder": ENCODER, "train": FAST, "pretrain": FAST, **options}
    own = {"preprocessing": options.pop("preprocessing", None)}
    return method(**options).fit(jax.random.key(0), data or bits()[0], **own)


fitted = functools.cache(fit)


@pytest.mark.parametrize("method", METHODS)
def test_anomalies_score_higher(method):
    _, x_test, labels = bits()
    scores = model.score(fitted(method)[0], x_test)
    # Five standard deviations of the AUROC of scores that know nothing.
    chance = np.sqrt((100 + 100 + 1) / (12 * 100 * 100))
    assert sklearn.metrics.roc_auc_score(labels, scores) > 0.5 + 5 * chance


def test_m2_nearly_reaches_the_bayes_classifier():
    # The data are what M2 assumes: the best score counts the ones behind.
    _, x_test, labels = bits()
    best = sklearn.metrics.roc_auc_score(
        labels, x_test[:, 5:].sum(1) - x_test[:, :5].sum(1)
    )
    scores = model.score(fitted(generative.M2)[0], x_test)
    spread = np.sqrt(0.25 / 100)  # of an AUROC of a hundred examples of each kind
    assert sklearn.metrics.roc_auc_score(labels, scores) > best - spread


def test_the_bound_of_a_vae_is_below_the_entropy_of_the_data():
    # No model has a larger mean likelihood than the truth, on average.
    _, x_test, labels = bits()
    trained, _ = fitted(generative.VAE)
    normal = x_test[labels == 0]
    entropy = 10 * scipy.stats.bernoulli(0.9).entropy()
    noise = jax.random.normal(jax.random.key(1), (100, len(normal), 4))
    bound = functools.partial(trained.objective.module.apply, trained.variables, normal)
    bounds = jax.jit(jax.vmap(bound))(noise)
    spread = 10 * 0.3 * np.log(9) / np.sqrt(len(normal))
    assert np.mean(bounds) < -entropy + 3 * spread
    # And it has learned more than independent fair coins.
    assert np.mean(bounds) > -10 * np.log(2)


def test_m1_m2_holds_the_vae_that_the_same_seed_trains():
    _, x_test, _ = bits()
    (stacked, record), (vae, _) = fitted(generative.M1M2), fitted(generative.VAE)
    assert stacked.base.info["method"] == "vae" and vae.base is None
    np.testing.assert_array_equal(
        model.score(stacked.base, x_test), model.score(vae, x_test)
    )
    # The frozen half moves nothing, and is in nobody's way: the rest has been trained.
    frozen, original = stacked.variables["m1"], vae.variables["params"]
    jax.tree.map(np.testing.assert_array_equal, frozen["encoder"], original["encoder"])
    assert set(stacked.variables["params"]) == {"m2"}
    assert set(record.history) == {"pretrain", "train"}


def test_what_is_beyond_one_scores_as_one():
    # A Bernoulli variable has no larger value, and the formula would reward it.
    _, x, _ = bits()
    trained, _ = fitted(generative.VAE)
    beyond = np.where(x > 0.5, 2.5, -0.3)
    with pytest.warns(UserWarning, match="x looks scaled in another way"):
        scores = model.score(trained, beyond)
    np.testing.assert_array_equal(scores, model.score(trained, x))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_starts_from_one_of_its_own(method):
    trained, _ = fitted(method)
    again, record = fit(method, initial=trained, train=NOTHING)
    x = bits()[1]
    np.testing.assert_array_equal(model.score(again, x), model.score(trained, x))
    assert (again.base is None) == (trained.base is None)
    assert "pretrain" not in record.history
    for other in set(METHODS) - {method}:
        with pytest.raises(ValueError, match=f"initial is a model of {method.method}"):
            fit(other, initial=trained)
    nine = training.training_set(np.zeros((40, 9), np.float32), [-1, 0] * 20)
    with pytest.raises(ValueError, match=r"initial is .* of shape \(10,\), but .*\(9,"):
        fit(method, nine, initial=trained, encoder=None)
    with pytest.raises(ValueError, match="initial is a model of other sizes"):
        fit(method, initial=trained, encoder=networks.MLPEncoder((8,), 3))


def test_divergence_is_rolled_back(caplog):
    def diverging(on_divergence):
        stage = training.Stage(training.Adam(1e3, ()), 6, 16, on_divergence)
        return fit(generative.VAE, pretrain=stage)

    with pytest.raises(training.DivergenceError, match="training diverged"):
        diverging("stop")
    trained, record = diverging("rollback")
    assert "updates are now times 1e-01" in caplog.text
    assert np.isfinite(record.history["pretrain"]["loss"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.variables))


def test_wrong_arguments_are_named():
    data, _, _ = bits()
    with pytest.raises(ValueError, match="alpha is -1; it must be >= 0"):
        fit(generative.M2, alpha=-1)
    twice = data._replace(x=2 * data.x)
    with pytest.raises(ValueError, match=r"x has values from 0 to 2 .* \[0, 1\]"):
        fit(generative.M2, twice, preprocessing=preprocessing.Unchanged())
    with pytest.raises(ValueError, match="train: .*less than one batch of 500"):
        fit(generative.M2, train=training.Stage(batch_size=500))
    for x in (data.x[:, :9], data.x[0], data.x[None], data.x[:0]):
        with pytest.raises(ValueError, match=r"x has shape .*(\[n, 10\]|not be empty)"):
            model.score(fitted(generative.M2)[0], x)
    blind = data._replace(semi_targets=0 * data.semi_targets)
    with pytest.raises(ValueError, match="m2 learns from known anomalies, but there"):
        fit(generative.M2, blind)
    with pytest.raises(ValueError, match="encoder has no hidden layer"):
        fit(generative.M2, encoder=networks.MLPEncoder((), 4))
    with pytest.raises(ValueError, match="pretrain is None; m1_m2 stands on a VAE"):
        fit(generative.M1M2, pretrain=None)
    pair = (lambda key, x: {}, lambda variables, x: x)
    with pytest.raises(ValueError, match="encoder is a tuple; vae takes Linen modules"):
        fit(generative.VAE, encoder=pair)
