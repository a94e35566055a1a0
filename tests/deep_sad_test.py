import jax
import numpy as np
import pytest
import sklearn.metrics

from deepsad_jax import deep_sad, losses, networks, training

FAST = training.Optimization(1e-3, epochs=30, milestones=(20,), batch_size=32)
SPEC = networks.mlp_for_table(10)


@pytest.fixture(scope="module")
def blobs():
    """Normal points near the origin, anomalies of two kinds, one of them labelled."""
    rng = np.random.default_rng(0)
    normal = rng.normal(0.5, 0.08, (400, 10))
    known, unknown = np.full((2, 60, 10), 0.5)
    known[:, :5] += rng.normal(0, 0.3, (60, 5))
    unknown[:, 5:] += rng.normal(0, 0.3, (60, 5))
    x = np.concatenate([normal[:200], known[:30]]).astype(np.float32)
    semi_targets = np.repeat([0, -1], [200, 30])
    x_test = np.concatenate([normal[200:], known[30:], unknown]).astype(np.float32)
    labels = np.repeat([0, 1], [200, 90])
    return training.training_set(x, semi_targets), x_test, labels


def fit(data, **options):
    options = {"network": SPEC, "train": FAST, "pretrain": FAST, **options}
    return deep_sad.fit(jax.random.key(0), data, **options)


@pytest.fixture(scope="module")
def fitted(blobs):
    return fit(blobs[0])


def test_labelled_anomalies_are_found_better_than_without_labels(blobs, fitted):
    data, x_test, labels = blobs
    blind = fit(data._replace(semi_targets=0 * data.semi_targets))
    known = np.r_[:200, 200:230]

    def auroc(model):
        scores = np.asarray(deep_sad.score(model, x_test))
        return sklearn.metrics.roc_auc_score(labels[known], scores[known])

    assert auroc(fitted) > auroc(blind)


def test_scores_are_distances_to_the_center(blobs, fitted):
    _, x_test, _ = blobs
    encoder = networks.build_encoder(SPEC)
    embeddings = encoder.apply(fitted.encoder, x_test, train=False)
    expected = losses.squared_distance(embeddings, fitted.center)
    np.testing.assert_allclose(deep_sad.score(fitted, x_test), expected, rtol=1e-5)


def test_center_is_the_mean_embedding_of_the_pretrained_encoder(blobs, fitted):
    data, _, _ = blobs
    encoder = networks.build_encoder(SPEC)
    variables = networks.encoder_variables(fitted.autoencoder)
    embeddings = encoder.apply(variables, data.x, train=False)
    expected = losses.clamp_center(np.mean(embeddings, axis=0))
    np.testing.assert_allclose(fitted.center, expected, atol=1e-5)


def test_the_encoder_starts_from_the_autoencoders(blobs):
    nothing = training.Optimization(epochs=0, batch_size=32)
    model = fit(blobs[0], train=nothing)
    expected = networks.encoder_variables(model.autoencoder)
    jax.tree.map(np.testing.assert_array_equal, model.encoder, expected)


def test_without_pretraining_the_encoder_is_random_and_there_is_no_autoencoder(blobs):
    data, x_test, _ = blobs
    nothing = training.Optimization(epochs=0, batch_size=32)
    model = fit(data, train=nothing, pretrain=None)
    assert model.autoencoder is None and "pretrain" not in model.history
    with pytest.raises(ValueError, match="trained without one"):
        deep_sad.reconstruction_score(model, x_test)


def test_an_initial_model_is_continued_with_its_center(blobs, fitted):
    data, x_test, _ = blobs
    nothing = training.Optimization(epochs=0, batch_size=32)
    same = fit(data, train=nothing, initial=fitted)
    np.testing.assert_array_equal(
        deep_sad.score(same, x_test), deep_sad.score(fitted, x_test)
    )
    more = fit(data, initial=fitted)
    np.testing.assert_array_equal(more.center, fitted.center)
    assert more.history["train"]["loss"][-1] < fitted.history["train"]["loss"][0]


def test_runs_are_reproducible_bit_by_bit(blobs, fitted):
    data, x_test, _ = blobs
    again = fit(data)
    jax.tree.map(np.testing.assert_array_equal, again.encoder, fitted.encoder)
    np.testing.assert_array_equal(
        deep_sad.score(again, x_test), deep_sad.score(fitted, x_test)
    )


def test_a_run_compiles_nothing_that_an_earlier_one_compiled(blobs, fitted, caplog):
    def compilations(**options):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            fit(blobs[0], **options)
        return [r for r in caplog.messages if "Compiling jit(advance)" in r]

    assert not compilations()
    assert compilations(eta=7.0)  # what has to be compiled is noticed


def test_a_collapsed_hypersphere_names_the_epoch():
    data = training.training_set(np.full((64, 10), 0.5, np.float32))
    message = "hypersphere collapsed in epoch 1: all embeddings are equal"
    with pytest.raises(training.TrainingError, match=message):
        fit(data)


def test_too_few_examples_are_refused_before_anything_is_compiled(blobs):
    small = training.training_set(np.zeros((31, 10), np.float32))
    with pytest.raises(ValueError, match="31 examples, less than one batch of 32"):
        fit(small)
