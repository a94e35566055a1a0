import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics

import deepsad_jax as sad
from deepsad_jax import losses, modules, networks, objectives, preprocessing, training
from deepsad_jax.detectors import deep_sad

FAST = training.Stage(training.Adam(1e-3, milestones=(20,)), epochs=30, batch_size=32)
NOTHING = training.Stage(epochs=0, batch_size=32)
# Of few layers, which compile sooner.
PAIR = networks.Pair(
    networks.MLPEncoder((16,), 4), networks.MLPDecoder((16,), 10), (10,)
)
LOSSES = [*objectives.NAMED, "soft_boundary"]


@pytest.fixture(scope="module")
def blobs():
    """Normal points near the origin, anomalies of two kinds, one of them labeled."""
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
    # Embeddings are compared with those of the same rows.
    options = {"preprocessing": preprocessing.Unchanged(), **options}
    options = {"encoder": PAIR.encoder, "decoder": PAIR.decoder, **options}
    options = {"train": FAST, "pretrain": FAST, **options}
    return deep_sad.fit(jax.random.key(0), data, **options)


@pytest.fixture(scope="module")
def fitted(blobs):
    return fit(blobs[0])


def embedded(variables, x, **options):
    network = {k: v for k, v in variables.items() if k not in ("center", "radius")}
    return PAIR.encoder.apply(network, x, **options)


def encoder_of(base):
    return modules.part(base.variables, "encoder")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_labeled_anomalies_are_found_better_than_without_labels(blobs, fitted):
    data, x_test, labels = blobs
    blind, _ = fit(data._replace(semi_targets=0 * data.semi_targets))
    known = np.r_[:200, 200:230]

    def auroc(model):
        scores = sad.score(model, x_test)
        return sklearn.metrics.roc_auc_score(labels[known], scores[known])

    assert auroc(fitted[0]) > auroc(blind)


def test_scores_are_distances_to_the_center(blobs, fitted):
    _, x_test, _ = blobs
    model, _ = fitted
    embeddings = embedded(model.variables, x_test, train=False)
    np.testing.assert_allclose(sad.embed(model, x_test), embeddings, atol=1e-5)
    expected = losses.squared_distance(embeddings, model.variables["center"])
    np.testing.assert_allclose(sad.score(model, x_test), expected, rtol=1e-5)


def test_center_is_the_mean_embedding_of_the_pretrained_encoder(blobs, fitted):
    data, _, _ = blobs
    embeddings = embedded(encoder_of(fitted[0].base), data.x, train=False)
    for center, rows in (("all", slice(None)), ("without_anomalies", slice(200))):
        model, _ = (
            fitted if center == "all" else fit(data, train=NOTHING, center=center)
        )
        expected = losses.clamp_center(np.mean(embeddings[rows], axis=0))
        np.testing.assert_allclose(model.variables["center"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="all examples are known anomalies; there is"):
        only = data._replace(semi_targets=0 * data.semi_targets - 1)
        fit(only, train=NOTHING, pretrain=NOTHING, center="without_anomalies")


def test_the_encoder_starts_from_the_autoencoders(blobs):
    model, _ = fit(blobs[0], train=NOTHING)
    network = {k: v for k, v in model.variables.items() if k != "center"}
    assert_equal(network, encoder_of(model.base))


def test_the_reconstruction_error_is_the_score_of_the_model_it_started_from(
    blobs, fitted
):
    _, x_test, _ = blobs
    base = fitted[0].base
    decoder = modules.part(base.variables, "decoder")
    codes = embedded(encoder_of(base), x_test, train=False)
    reconstruction = PAIR.decoder.apply(decoder, codes, train=False)
    expected = np.mean(np.square(x_test - reconstruction), axis=1)
    np.testing.assert_allclose(sad.score(base, x_test), expected, rtol=1e-4)


def test_without_pretraining_the_encoder_is_random_and_there_is_no_autoencoder(blobs):
    model, record = fit(blobs[0], train=NOTHING, pretrain=None)
    assert model.base is None and "pretrain" not in record.history
    with pytest.raises(ValueError, match="model is a NoneType; it must be a Model"):
        sad.score(model.base, blobs[1])


def test_an_initial_model_is_continued_with_its_center(blobs, fitted):
    data, x_test, _ = blobs
    model, record = fitted
    same, _ = fit(data, train=NOTHING, initial=model)
    np.testing.assert_array_equal(sad.score(same, x_test), sad.score(model, x_test))
    assert same.base is model.base and same.preprocessing == model.preprocessing
    more, more_record = fit(data, initial=model)
    assert_equal(more.variables["center"], model.variables["center"])
    last = more_record.history["train"]["loss"][-1]
    assert last < record.history["train"]["loss"][0]


def test_an_autoencoder_is_an_initial_model_too(blobs, fitted):
    data, x_test, _ = blobs
    method = deep_sad.Autoencoder(PAIR.encoder, PAIR.decoder, pretrain=FAST)
    unchanged = preprocessing.Unchanged()
    base, _ = method.fit(jax.random.key(0), data, preprocessing=unchanged)
    np.testing.assert_array_equal(
        sad.score(base, x_test), sad.score(fitted[0].base, x_test)
    )
    model, record = fit(data, initial=base)
    assert list(record.history) == ["train"]
    np.testing.assert_array_equal(
        sad.score(model, x_test), sad.score(fitted[0], x_test)
    )


def test_runs_are_reproducible_bit_by_bit(blobs, fitted):
    data, x_test, _ = blobs
    again, _ = fit(data)
    assert_equal(again.variables, fitted[0].variables)
    np.testing.assert_array_equal(
        sad.score(again, x_test), sad.score(fitted[0], x_test)
    )
    other, _ = deep_sad.fit(
        jax.random.key(1), data, encoder=PAIR.encoder, train=FAST, pretrain=None
    )
    assert np.any(other.variables["center"] != again.variables["center"])


def test_a_run_compiles_nothing_that_an_earlier_one_compiled(blobs, compiled):
    fit(blobs[0])
    assert not compiled(fit, blobs[0])
    assert compiled(fit, blobs[0], eta=7.0)  # what has to be compiled is noticed


def test_what_is_equal_by_value_is_compiled_once(blobs, compiled):
    def own(embeddings, semi_targets, center, *, power):
        del semi_targets
        return losses.one_class_loss(embeddings, center) ** power

    def options():
        return {
            "encoder": networks.MLPEncoder((8,), 2),
            "decoder": None,
            "loss": functools.partial(own, power=2),
            "train": training.Stage(training.Adam(1e-3), epochs=2, batch_size=32),
            "pretrain": None,
        }

    assert compiled(fit, blobs[0], **options())
    assert not compiled(fit, blobs[0], **options())


def test_a_collapsed_hypersphere_names_the_epoch():
    data = training.training_set(np.full((230, 10), 0.5, np.float32))
    message = "hypersphere collapsed in epoch 1: all embeddings are equal"
    with pytest.raises(training.TrainingError, match=message):
        fit(data)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_separates_normal_from_anomalous(blobs, loss):
    data, x_test, labels = blobs
    scores = sad.score(fit(data, loss=loss)[0], x_test)
    assert np.isfinite(scores).all()
    # Five standard deviations of the AUROC of scores that know nothing.
    chance = np.sqrt((200 + 90 + 1) / (12 * 200 * 90))
    assert sklearn.metrics.roc_auc_score(labels, scores) > 0.5 + 5 * chance


def test_losses_with_labels_are_far_from_the_center_for_known_anomalies(blobs):
    data, _, _ = blobs
    for loss in ("deep_sad", "hypersphere", "deviation"):
        scores = sad.score(fit(data, loss=loss)[0], data.x)
        assert np.median(scores[200:]) > 10 * np.median(scores[:200])


def test_a_loss_and_an_optimizer_of_ones_own_are_trained(blobs):
    data, x_test, _ = blobs

    def signed(embeddings, semi_targets, center):
        distance = losses.squared_distance(embeddings, center)
        weights = jnp.where(semi_targets == -1, -0.1, 1.0)
        return weights * jnp.sqrt(distance + 1e-6)

    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, 20, 200))
    stage = training.Stage(optimizer, epochs=20, batch_size=32)
    model, record = fit(data, loss=signed, train=stage)
    batch = training.Batch(data.x, data.semi_targets)
    before = {**encoder_of(model.base), "center": model.variables["center"]}
    (start, end) = (
        np.mean(model.objective.loss(v, batch, jax.random.key(0))[0])
        for v in (before, model.variables)
    )
    assert end < start and record.history["train"]["loss"][-1] < start


def test_deep_svdd_does_not_see_labels(blobs):
    data, x_test, _ = blobs
    blind = data._replace(semi_targets=0 * data.semi_targets)
    for loss in ("one_class", "soft_boundary"):
        np.testing.assert_array_equal(
            sad.score(fit(data, loss=loss)[0], x_test),
            sad.score(fit(blind, loss=loss)[0], x_test),
        )
    unchanged = preprocessing.Unchanged()
    method = deep_sad.DeepSVDD(PAIR.encoder, PAIR.decoder, train=FAST, pretrain=FAST)
    model, _ = method.fit(jax.random.key(0), data, preprocessing=unchanged)
    assert model.info["method"] == "deep_svdd"
    expected, _ = fit(data, loss="one_class")
    np.testing.assert_array_equal(sad.score(model, x_test), sad.score(expected, x_test))


def test_a_share_of_nu_is_outside_the_soft_boundary(blobs):
    data, _, _ = blobs
    model, _ = fit(data, loss="soft_boundary", nu=0.3)
    scores = sad.score(model, data.x)
    # The example on the border has a score of zero, up to rounding.
    assert np.sum(scores > 1e-6 * scores.max()) == int(0.3 * 230)
    embeddings = embedded(model.variables, data.x, train=False)
    distances = losses.squared_distance(embeddings, model.variables["center"])
    np.testing.assert_allclose(
        scores,
        distances - model.variables["radius"] ** 2,
        atol=1e-5 * float(distances.max()),
    )
    same, _ = fit(data, loss="soft_boundary", nu=0.3, train=NOTHING, initial=model)
    assert_equal(same.variables["radius"], model.variables["radius"])


def boundary_problem():
    objective = objectives.SoftBoundary(PAIR.encoder, nu=0.25)
    x = np.random.default_rng(0).random((40, 10), np.float32)
    variables = objective.init(jax.random.key(0), x)
    center = np.full(PAIR.encoder.rep_dim, 0.1, np.float32)
    return objective, {**variables, "center": center}, x


def test_the_soft_boundary_of_a_batch_has_the_least_loss():
    objective, variables, x = boundary_problem()
    batch = training.Batch(x, np.zeros(40))
    per_example, _ = objective.loss(variables, batch, jax.random.key(1))
    embeddings, _ = embedded(variables, x, train=True, mutable=["batch_stats"])
    total = np.mean(per_example)
    for radius in np.linspace(0, 3, 100):
        other = losses.soft_boundary_loss(
            embeddings, variables["center"], radius, nu=0.25
        )
        assert total <= np.mean(other) + 1e-6


def test_the_soft_boundary_loss_is_the_mean_of_the_farthest_examples():
    objective, variables, x = boundary_problem()

    def loss(params):
        whole, batch = {**variables, "params": params}, training.Batch(x, np.zeros(40))
        return jnp.mean(objective.loss(whole, batch, jax.random.key(1))[0])

    def farthest(params):
        whole = {**variables, "params": params}
        embeddings, _ = embedded(whole, x, train=True, mutable=["batch_stats"])
        distances = losses.squared_distance(embeddings, variables["center"])
        return jnp.mean(jnp.sort(distances)[-10:])

    actual, expected = (
        jax.jit(jax.value_and_grad(f))(variables["params"]) for f in (loss, farthest)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        actual,
        expected,
    )


def test_groups_are_recorded_as_training_sees_them(blobs):
    data, _, _ = blobs
    # One batch of everything, at a learning rate that changes nothing.
    once = training.Stage(training.Adam(1e-30), epochs=1, batch_size=230)
    plain, plain_record = fit(data, train=once)
    model, record = fit(data, train=once, record_groups=True)
    np.testing.assert_array_equal(sad.score(model, data.x), sad.score(plain, data.x))
    recorded = record.history["train"]
    assert set(recorded) - set(plain_record.history["train"]) == {
        f"{name}_{group}"
        for name in ("distance", "log_det", "isotropic")
        for group in ("normal", "unlabelled", "anomaly")
    }
    before = encoder_of(model.base)
    embeddings, _ = embedded(before, data.x, train=True, mutable=["batch_stats"])
    distances = losses.squared_distance(embeddings, model.variables["center"])
    for group, rows in (("unlabelled", slice(200)), ("anomaly", slice(200, None))):
        np.testing.assert_allclose(
            recorded[f"distance_{group}"], [np.mean(distances[rows])], rtol=1e-4
        )
        _, log_det = np.linalg.slogdet(np.cov(embeddings[rows].T, bias=True))
        np.testing.assert_allclose(recorded[f"log_det_{group}"], [log_det], atol=0.05)
    assert np.isnan(recorded["distance_normal"]).all()


@pytest.mark.parametrize(
    "options, message",
    {
        "key 0": ({"key": 0}, "key is 0; it must be a random key: jax.random.key(0)"),
        "key of floats": ({"key": jnp.zeros(2)}, "it must be a random key"),
        "several keys": (
            {"key": jax.random.split(jax.random.key(0))},
            "it must be a random key",
        ),
        "raw numbers": ({"key": np.uint32(3)}, "key is np.uint32(3); it must be a"),
        "few examples": (
            {"data": training.training_set(np.zeros((31, 10), np.float32))},
            "train: the training set has 31 examples, less than one batch of 32",
        ),
        "a bare array": (
            {"data": np.zeros((40, 10))},
            "batch 0 of data is a ndarray; it must be (x, semi_targets); whole",
        ),
        "no data": ({"data": None}, "data is a NoneType; it must be a training set"),
        "another loss": (
            {"loss": "svm"},
            "loss is 'svm'; it must be one of deep_sad, hypersphere, deviation, one_",
        ),
        "a number as loss": ({"loss": 3}, "loss is 3; it must be a function"),
        "eta below 0": ({"eta": -1.0}, "eta is -1.0; it must be > 0"),
        "eta as text": ({"eta": "1"}, "eta is '1'; it must be > 0 and finite"),
        "infinite eta": ({"eta": np.inf}, "eta is inf; it must be > 0 and finite"),
        "eta of no use": (
            {"eta": 2.0, "loss": "one_class"},
            "eta is 2.0, but the loss has no option eta",
        ),
        "eta of the soft boundary": (
            {"eta": 2.0, "loss": "soft_boundary"},
            "eta is 2.0, but soft_boundary sees no labels",
        ),
        "nu of another loss": (
            {"nu": 0.3},
            "nu is 0.3, which is of soft_boundary alone",
        ),
        "nu of 1": (
            {"loss": "soft_boundary", "nu": 1.0},
            "nu is 1.0; it must be in (0, 1)",
        ),
        "center": ({"center": "mean"}, "center is 'mean'; it must be all or without"),
        "initial as text": ({"initial": "x"}, "initial is a str; it must be a model"),
        "unknown encoder": (
            {"encoder": "lenet"},
            "network is 'lenet'; it must be one of digits_LeNet, mnist_LeNet",
        ),
        "encoder of other shapes": (
            {"encoder": "mnist_LeNet"},
            "encoder mnist_LeNet takes examples of shape (28, 28, 1), but those of "
            "the data have (10,)",
        ),
        "a number as encoder": ({"encoder": 3}, "encoder is 3; it must be a Linen"),
        "dtype": ({"dtype": "float16"}, "dtype is 'float16'; it must be float32 or"),
        "no dtype": ({"dtype": "abc"}, "dtype is 'abc'; it must be float32 or"),
        "no stage": ({"train": None}, "train is None; it must be a training.Stage"),
        "epochs as stage": ({"train": 3}, "train is 3; it must be a training.Stage"),
        "devices as plan": ({"plan": 3}, "plan is 3; it must be a parallel.Plan"),
        "preprocessing": ({"preprocessing": 3}, "preprocessing is 3; it must be a"),
    }.values(),
    ids=lambda value: None if isinstance(value, dict) else "",
)
def test_arguments_are_refused_before_anything_is_compiled(
    blobs, compiled, options, message
):
    reported = []
    options = {"pretrain": None, "data": blobs[0], **options}
    key = options.pop("key", jax.random.key(0))
    options = {"train": FAST, "observe": lambda *_: reported.append(1), **options}

    def refused():
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            deep_sad.fit(key, **options)
        assert not reported and "\n" not in str(caught.value)

    assert not compiled(refused)


def test_devices_are_counted_before_anything_is_compiled(blobs, monkeypatch):
    with pytest.raises(ValueError, match="devices is 1000; it must be from 1 to "):
        sad.parallel.split_batch(1000)
    with pytest.raises(ValueError, match="devices is '2'; it must be from 1 to "):
        sad.parallel.split_batch("2")
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size is 32; the 3 devices must divide"):
        fit(blobs[0], plan=sad.parallel.split_batch(3))


def test_an_initial_model_of_another_kind_is_refused(blobs, fitted):
    other = training.training_set(np.zeros((40, 9), np.float32))
    with pytest.raises(ValueError, match=r"initial is a model of .*\(10,\), but those"):
        fit(other, initial=fitted[0])
    with pytest.raises(ValueError, match="initial is a model of another encoder"):
        fit(blobs[0], initial=fitted[0], encoder=networks.MLPEncoder((8,), 2))
    method = sad.detectors.METHODS["supervised"](encoder=PAIR.encoder, train=NOTHING)
    classifier, _ = method.fit(jax.random.key(0), blobs[0])
    with pytest.raises(
        ValueError, match="initial is a model of supervised, from which"
    ):
        fit(blobs[0], initial=classifier)


@pytest.mark.parametrize(
    "loss, shape",
    [
        (lambda z, t, c: jnp.mean(z), r"\(\)"),
        (lambda z, t, c: jnp.square(z - c), r"\(\d+, 4\)"),
        (lambda z, t, c: t.astype(int), r"\(\d+,\) and dtype int32"),
    ],
    ids=["a mean", "of each number", "integers"],
)
def test_a_loss_that_is_not_one_number_for_each_example_is_named(blobs, loss, shape):
    message = f"the loss returns shape {shape}.*it must return one number for each"
    with pytest.raises(ValueError, match=message):
        fit(blobs[0], loss=loss, pretrain=None)


def test_what_needs_an_autoencoder_says_so(blobs):
    key, data = jax.random.key(0), blobs[0]
    with pytest.raises(ValueError, match="decoder is None; an encoder of your own nee"):
        deep_sad.Autoencoder(encoder=networks.MLPEncoder((8,), 2)).fit(key, data)
    with pytest.raises(ValueError, match="pretrain is None; the method autoencoder"):
        deep_sad.Autoencoder(pretrain=None).fit(key, data)
    alone, _ = fit(data, train=NOTHING, pretrain=None)
    with pytest.raises(ValueError, match="a model of deep_sad, has no autoencoder"):
        deep_sad.Autoencoder(initial=alone).fit(key, data)


def test_raw_rows_are_scaled_by_the_model(blobs):
    data, x_test, labels = blobs
    units = np.logspace(-3, 3, 10)
    options = {"encoder": PAIR.encoder, "decoder": PAIR.decoder}
    options |= {"train": FAST, "pretrain": FAST}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled, _ = deep_sad.fit(jax.random.key(0), data, **options)
        raw = training.training_set(data.x * units + 5.0, data.semi_targets)
        model, _ = deep_sad.fit(jax.random.key(0), raw, **options)
        scores = sad.score(model, x_test * units + 5.0)
    np.testing.assert_allclose(
        sklearn.metrics.roc_auc_score(labels, scores),
        sklearn.metrics.roc_auc_score(labels, sad.score(scaled, x_test)),
        atol=0.02,
    )


WEIGHT = 1.0


def _weighted(embeddings, semi_targets, center):
    return WEIGHT * losses.deep_sad_loss(embeddings, semi_targets, center)


class _Weight:
    weight = 1.0

    def __call__(self, *arguments):
        return self.weight * losses.deep_sad_loss(*arguments)


def test_what_a_loss_or_an_optimizer_reads_from_outside_counts(monkeypatch):
    rng, held, rate = np.random.default_rng(0), _Weight(), 1e-3
    data = training.training_set(rng.random((64, 4), np.float32), np.zeros(64))

    def history(loss=None, optimizer=None):
        stage = training.Stage(optimizer or training.Adam(1e-3), 1, 32)
        made = deep_sad.DeepSAD(
            encoder=networks.MLPEncoder((8,), 3), train=stage, loss=loss or "deep_sad"
        )
        fitted, record = made.fit(jax.random.key(0), data)
        return record.history["train"]["loss"][0], sad.score(fitted, data.x)

    optimizer = lambda steps: optax.adam(rate)  # noqa: E731
    first = [history(_weighted), history(held), history(None, optimizer)]
    monkeypatch.setitem(globals(), "WEIGHT", 10.0)
    held.weight, rate = 10.0, 1e-1
    then = [history(_weighted), history(held), history(None, optimizer)]
    for i in range(2):
        np.testing.assert_allclose(then[i][0], 10 * first[i][0], rtol=1e-2)
    assert np.abs(then[2][1] / first[2][1] - 1).max() > 0.1
