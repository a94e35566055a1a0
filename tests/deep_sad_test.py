import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("loss", deep_sad.LOSSES)
def test_every_loss_separates_normal_from_anomalous(blobs, loss):
    data, x_test, labels = blobs
    scores = np.asarray(deep_sad.score(fit(data, loss=loss), x_test))
    assert np.isfinite(scores).all()
    # Five standard deviations of the AUROC of scores that know nothing.
    chance = np.sqrt((200 + 90 + 1) / (12 * 200 * 90))
    assert sklearn.metrics.roc_auc_score(labels, scores) > 0.5 + 5 * chance


def test_losses_with_labels_are_far_from_the_center_for_known_anomalies(blobs):
    data, _, _ = blobs
    for loss in ("deep_sad", "hypersphere", "deviation"):
        model = fit(data, loss=loss)
        scores = np.asarray(deep_sad.score(model, data.x))
        assert np.median(scores[200:]) > 10 * np.median(scores[:200])


def test_deep_svdd_does_not_see_labels(blobs):
    data, x_test, _ = blobs
    blind = data._replace(semi_targets=0 * data.semi_targets)
    for loss in ("one_class", "soft_boundary"):
        np.testing.assert_array_equal(
            deep_sad.score(fit(data, loss=loss), x_test),
            deep_sad.score(fit(blind, loss=loss), x_test),
        )


def test_a_share_of_nu_is_outside_the_soft_boundary(blobs):
    data, _, _ = blobs
    model = fit(data, loss="soft_boundary", nu=0.3)
    scores = np.asarray(deep_sad.score(model, data.x))
    # The example on the border has a score of zero, up to rounding.
    assert np.sum(scores > 1e-6 * scores.max()) == int(0.3 * 230)
    encoder = networks.build_encoder(SPEC)
    embeddings = encoder.apply(model.encoder, data.x, train=False)
    distances = losses.squared_distance(embeddings, model.center)
    np.testing.assert_allclose(
        scores, distances - model.radius**2, atol=1e-5 * float(distances.max())
    )


def test_the_soft_boundary_of_a_batch_has_the_least_loss():
    objective = deep_sad.deep_sad_objective(SPEC, loss="soft_boundary", nu=0.25)
    params, model_state = objective.init(jax.random.key(0))
    center = np.full(SPEC.rep_dim, 0.1, np.float32)
    x = np.random.default_rng(0).random((40, 10), np.float32)
    per_example, _ = objective.loss(
        params,
        {**model_state, "center": center},
        training.Batch(x, np.zeros(40)),
        jax.random.key(1),
    )
    encoder = networks.build_encoder(SPEC)
    embeddings, _ = encoder.apply(
        {"params": params, **model_state}, x, train=True, mutable=["batch_stats"]
    )
    total = np.mean(per_example)
    for radius in np.linspace(0, 3, 100):
        other = losses.soft_boundary_loss(embeddings, center, radius, nu=0.25)
        assert total <= np.mean(other) + 1e-6


def test_the_soft_boundary_loss_is_the_mean_of_the_farthest_examples():
    objective = deep_sad.deep_sad_objective(SPEC, loss="soft_boundary", nu=0.25)
    params, model_state = objective.init(jax.random.key(0))
    model_state["center"] = np.full(SPEC.rep_dim, 0.1, np.float32)
    x = np.random.default_rng(0).random((40, 10), np.float32)
    encoder = networks.build_encoder(SPEC)

    def loss(params):
        batch = training.Batch(x, np.zeros(40))
        return jnp.mean(objective.loss(params, model_state, batch, None)[0])

    def farthest(params):
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        embeddings, _ = encoder.apply(variables, x, train=True, mutable=["batch_stats"])
        distances = losses.squared_distance(embeddings, model_state["center"])
        return jnp.mean(jnp.sort(distances)[-10:])

    actual, expected = (
        jax.jit(jax.value_and_grad(f))(params) for f in (loss, farthest)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        actual,
        expected,
    )


def test_groups_are_recorded_as_training_sees_them(blobs):
    data, _, _ = blobs
    # One batch of everything, at a learning rate that changes nothing.
    once = training.Optimization(1e-30, epochs=1, batch_size=230)
    plain = fit(data, train=once)
    model = fit(data, train=once, record_groups=True)
    np.testing.assert_array_equal(
        deep_sad.score(model, data.x), deep_sad.score(plain, data.x)
    )
    recorded = model.history["train"]
    assert set(recorded) - set(plain.history["train"]) == {
        f"{name}_{group}"
        for name in ("distance", "log_det", "isotropic")
        for group in ("normal", "unlabelled", "anomaly")
    }
    before = networks.encoder_variables(model.autoencoder)
    encoder = networks.build_encoder(SPEC)
    embeddings, _ = encoder.apply(before, data.x, train=True, mutable=["batch_stats"])
    distances = losses.squared_distance(embeddings, model.center)
    for group, rows in (("unlabelled", slice(200)), ("anomaly", slice(200, None))):
        np.testing.assert_allclose(
            recorded[f"distance_{group}"], [np.mean(distances[rows])], rtol=1e-4
        )
        _, log_det = np.linalg.slogdet(np.cov(embeddings[rows].T, bias=True))
        np.testing.assert_allclose(recorded[f"log_det_{group}"], [log_det], atol=0.05)
    assert np.isnan(recorded["distance_normal"]).all()


def test_unknown_losses_are_named(blobs):
    with pytest.raises(ValueError, match="loss is 'svm'; it must be one of deep_sad"):
        fit(blobs[0], loss="svm")
    reported = []
    with pytest.raises(ValueError, match="eta is -1.0; it must be > 0"):
        fit(blobs[0], eta=-1.0, on_epochs=lambda *_: reported.append(1))
    assert not reported  # nothing was trained before
    with pytest.raises(ValueError, match="initial is a model of MLP.*but network is"):
        fit(
            training.training_set(np.zeros((40, 9), np.float32)),
            network=networks.mlp_for_table(9),
            initial=fit(blobs[0], train=training.Optimization(epochs=0)),
        )
    with pytest.raises(ValueError, match=r"nu is 1.0; it must be in \(0, 1\)"):
        fit(blobs[0], loss="soft_boundary", nu=1.0)
