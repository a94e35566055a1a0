import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from jax import test_util

from deepsad_jax import (
    epochs,
    forward,
    generative,
    losses,
    networks,
    objectives,
    training,
)

ENCODER = networks.MLPEncoder((8,), 3)
DECODER = networks.MLPDecoder((8,), 6)
CENTER = np.array([0.3, -0.2, 0.5], np.float32)
M2 = generative.m2_for(networks.MLPEncoder((6,), 4), (10,))
ROWS = 20


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x = rng.random((ROWS, 6), np.float32)
    return training.Batch(x, rng.permutation([0, 0, 0, 1, -1] * 4).astype(np.float32))


def called(objective, batch):
    """Initial variables, losses, the next variables and metrics, scores after it."""
    variables = jax.jit(objective.init)(jax.random.key(0), batch.x)
    if "center" in variables:
        variables["center"] = CENTER
    loss = jax.jit(objective.loss)
    found, (after, metrics) = loss(variables, batch, jax.random.key(1))
    scores = jax.jit(objective.score)(after, batch.x)
    return variables, found, after, training.computed(metrics), scores


def numpy_layers(params, statistics, x, names, train):
    """Dense layers with batch norm and leaky ReLUs, and a linear one, in float64."""
    x = np.asarray(x, np.float64)
    for name in names[:-1]:
        x = x @ np.asarray(params[name]["kernel"], np.float64)
        norm = statistics[name.replace("hidden", "hidden_bn")]
        mean, var = (x.mean(0), x.var(0)) if train else (norm["mean"], norm["var"])
        x = (x - mean) / np.sqrt(var + 1e-4)
        x = np.where(x > 0, x, 0.01 * x)
    return x @ np.asarray(params[names[-1]]["kernel"], np.float64)


def numpy_embeddings(variables, x, train):
    params, statistics = variables["params"], variables["batch_stats"]
    return numpy_layers(params, statistics, x, ("hidden1", "code"), train)


def numpy_part(variables, part, x, names, train):
    return numpy_layers(
        variables["params"][part], variables["batch_stats"][part], x, names, train
    )


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


def test_the_loss_of_an_autoencoder_is_the_mean_squared_error(batch):
    objective = objectives.Autoencoder(ENCODER, DECODER)
    variables, found, after, _, scores = called(objective, batch)

    def errors(variables, train):
        codes = numpy_part(variables, "encoder", batch.x, ("hidden1", "code"), train)
        names = ("hidden1", "output")
        logits = numpy_part(variables, "decoder", codes, names, train)
        return np.mean((batch.x - scipy.special.expit(logits)) ** 2, axis=1)

    assert_close(found, errors(variables, True))
    assert_close(scores, errors(after, False))
    codes = numpy_part(after, "encoder", batch.x, ("hidden1", "code"), False)
    assert_close(objective.embed(after, batch.x), codes)


def test_deep_sad_is_a_loss_on_embeddings_and_its_score_the_distance(batch):
    loss = functools.partial(losses.deep_sad_loss, eta=0.5)
    objective = objectives.DeepSAD(ENCODER, loss, record_groups=True)
    variables, found, after, recorded, scores = called(objective, batch)
    z = numpy_embeddings(variables, batch.x, True)
    distance = np.sum((z - CENTER) ** 2, axis=1)
    targets = batch.semi_targets
    weighted = 0.5 * (distance + 1e-6) ** targets
    assert_close(found, np.where(targets == 0, distance, weighted))
    assert_close(recorded["spread"], np.sqrt(np.mean(z.var(axis=0))))
    for name, target in (("normal", 1), ("unlabelled", 0), ("anomaly", -1)):
        expected = distance[targets == target].mean()
        assert_close(recorded[f"distance_{name}"], expected)
    np.testing.assert_array_equal(after["center"], CENTER)
    z = numpy_embeddings(after, batch.x, False)
    assert_close(scores, np.sum((z - CENTER) ** 2, axis=1))
    assert_close(objective.embed(after, batch.x), z)


def test_the_center_is_unknown_until_it_is_found(batch):
    variables = jax.eval_shape(
        objectives.DeepSAD(ENCODER).init, jax.random.key(0), batch.x
    )
    assert variables["center"].shape == (3,)
    variables = jax.jit(objectives.DeepSAD(ENCODER).init)(jax.random.key(0), batch.x)
    assert np.isnan(variables["center"]).all()


def test_soft_boundary_is_the_mean_of_the_farthest(batch):
    objective = objectives.SoftBoundary(ENCODER, nu=0.2)
    variables, found, after, _, scores = called(objective, batch)
    z = numpy_embeddings(variables, batch.x, True)
    distance = np.sort(np.sum((z - CENTER) ** 2, axis=1))
    # Of the 20 rows, four are outside.
    assert_close(np.mean(found), distance[-4:].mean())
    assert after["radius"] == 0.0  # until training has ended
    z = numpy_embeddings(after, batch.x, False)
    expected = np.sum((z - CENTER) ** 2, axis=1)
    assert_close(scores, expected)
    inside = objective.score({**after, "radius": jnp.float32(2.0)}, batch.x)
    assert_close(inside, expected - 4.0)

    network = {"batch_stats": variables["batch_stats"]}

    @jax.jit
    @jax.grad
    def expected(params):
        z, _ = ENCODER.apply(
            {**network, "params": params}, batch.x, True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.sort(jnp.sum((z - CENTER) ** 2, axis=1))[-4:])

    @jax.jit
    @jax.grad
    def gradient(params):
        full = {**variables, "params": params}
        return jnp.mean(objective.loss(full, batch, jax.random.key(1))[0])

    params = variables["params"]
    jax.tree.map(assert_close, gradient(params), expected(params))


@pytest.mark.parametrize("nu", [0.05, 0.1, 0.33, 0.9])
def test_no_radius_has_a_smaller_loss_than_the_boundary(nu):
    z = np.random.default_rng(0).normal(size=(101, 2)).astype(np.float32)
    distances = losses.squared_distance(z, np.zeros(2))

    def loss(radius):
        return np.mean(losses.soft_boundary_loss(z, np.zeros(2), radius, nu=nu))

    radius = objectives.boundary(distances, nu)
    others = np.sqrt(np.linspace(0, distances.max(), 200))
    assert loss(radius) <= min(map(loss, others)) * (1 + 1e-6)
    # At most a share of nu is outside.
    assert np.mean(np.asarray(distances) > 1.000001 * radius**2) <= nu


def test_the_loss_of_a_classifier_is_the_log_loss_of_anomalies(batch):
    variables, found, after, _, scores = called(objectives.Classifier(ENCODER), batch)

    def logits(variables, train):
        codes = numpy_part(variables, "encoder", batch.x, ("hidden1", "code"), train)
        logit = variables["params"]["logit"]
        return codes @ np.asarray(logit["kernel"], np.float64)[:, 0] + logit["bias"]

    probabilities = scipy.special.expit(logits(variables, True))
    expected = sklearn.metrics.log_loss(batch.semi_targets < 0, probabilities)
    assert_close(np.mean(found), expected)
    # A score is the log-odds that evaluation has, whatever else is in the batch.
    assert_close(scores, logits(after, False))
    score = functools.partial(objectives.Classifier(ENCODER).score, after)
    assert_close(score(batch.x[:1]), scores[:1])


def test_the_loss_of_a_vae_is_on_average_that_of_its_code(batch):
    # A decoder that ignores the code: cross-entropy, and the divergence of the code.
    objective = objectives.Elbo(generative.VAE((5,), 3, 6))
    variables = jax.jit(objective.init)(jax.random.key(0), batch.x)
    params = variables["params"]
    for layer in params["decoder"].values():
        layer["kernel"] = 0 * layer["kernel"]
    params["decoder"]["output"]["bias"] = jnp.linspace(-1, 1, 6)

    @jax.jit
    def mean(keys):
        draw = functools.partial(objective.loss, variables, batch)
        return jax.vmap(lambda key: draw(key)[0])(keys).mean(axis=0)

    found = mean(jax.random.split(jax.random.key(1), 4000))
    ones = scipy.special.expit(np.linspace(-1, 1, 6))
    entropy = -(batch.x @ np.log(ones) + (1 - batch.x) @ np.log(1 - ones))
    model = objective.module
    mu, log_var = model.apply(variables, batch.x, method=model.encode)
    kl = 0.5 * np.sum(mu**2 + np.exp(log_var) - 1 - log_var, axis=1)
    np.testing.assert_allclose(found, entropy + kl, atol=0.1)


@pytest.fixture(scope="module")
def of_m2():
    objective = objectives.M2(M2, alpha=0.1)
    x = np.random.default_rng(0).random((16, 10), np.float32)
    variables = jax.jit(objective.init)(jax.random.key(0), x)

    @jax.jit
    @jax.value_and_grad
    def loss(params, semi_targets):
        batch = training.Batch(x, semi_targets)
        full = {**variables, "params": params}
        return jnp.mean(objective.loss(full, batch, jax.random.key(1))[0])

    return variables, x, loss, jax.jit(functools.partial(M2.apply, train=True))


@pytest.mark.parametrize("kinds", [(0,), (1, -1), (0, 1, -1)])
def test_batches_without_labeled_or_unlabeled_examples(kinds, of_m2):
    variables, x, loss, terms = of_m2
    semi_targets = np.random.default_rng(1).choice(kinds, 16).astype(np.float32)
    value, gradient = loss(variables["params"], semi_targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # The sum of the means over both groups, each example's loss from the same noise.
    noise = jax.random.normal(jax.random.key(1), (1, 2, 16, 4))
    bounds, log_q = terms({"params": variables["params"]}, x, noise)
    q = np.exp(log_q)
    unlabeled = -np.sum(q * (bounds - log_q), axis=1)
    classes = (semi_targets < 0).astype(int)
    labeled = -(bounds + 0.1 * log_q)[np.arange(16), classes]
    groups = unlabeled[semi_targets == 0], labeled[semi_targets != 0]
    expected = sum(np.mean(group) for group in groups if len(group))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gradient_of_m2_against_finite_differences():
    x = np.random.default_rng(0).random((8, 10))
    semi_targets = np.array([0, 0, 0, 1, -1, 0, -1, 0.0])
    with jax.enable_x64(True):
        objective = objectives.M2(M2.clone(dtype=jnp.float64), alpha=0.1)
        variables = jax.jit(objective.init)(jax.random.key(0), x)
        params = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), variables["params"]
        )
        batch = training.Batch(jnp.asarray(x), jnp.asarray(semi_targets))

        def loss(params):
            full = {**variables, "params": params}
            return jnp.mean(objective.loss(full, batch, jax.random.key(1))[0])

        test_util.check_grads(
            jax.jit(loss), (params,), order=1, modes=["rev"], rtol=1e-6
        )


def weighted(embeddings, semi_targets, center, *, weight=1.0):
    return weight * losses.deep_sad_loss(embeddings, semi_targets, center)


def deep_sad(weight=2.0, width=8):
    return objectives.DeepSAD(
        networks.MLPEncoder((width,), 3), functools.partial(weighted, weight=weight)
    )


def test_objectives_are_equal_by_value():
    assert deep_sad() == deep_sad() and hash(deep_sad()) == hash(deep_sad())
    assert objectives.DeepSAD(ENCODER, "deep_sad") == objectives.DeepSAD(ENCODER)
    assert objectives.M2(M2.copy()) == objectives.M2(M2)
    assert deep_sad(4) != deep_sad(4.0)
    assert deep_sad(1) != deep_sad(True)
    assert deep_sad(width=4) != deep_sad(width=4.0)
    boundaries = [objectives.SoftBoundary(ENCODER, nu) for nu in (0.1, 0.2)]
    assert boundaries[0] != boundaries[1]
    assert objectives.SoftBoundary(ENCODER, 0.1) == boundaries[0]
    assert boundaries[0].nu == 0.1
    same = objectives.DeepSAD(ENCODER, boundaries[0].loss_function)
    assert same != boundaries[0]


def test_equal_objectives_share_their_compiled_programs(batch, compiled):
    data, scores = training.training_set(batch.x, batch.semi_targets), []

    def use(weight):  # of modules, losses and optimizers made anew
        objective = deep_sad(weight)
        stage = training.Stage(training.Adam(1e-3), 3, batch_size=4)
        uses = ("init", "train")
        trainer = epochs.Trainer([jax.random.key(0)], [data], None, uses)
        variables = trainer.init(objective, "init")
        variables = {**variables, "center": CENTER}
        variables = trainer.run("train", objective, stage, variables)
        scores.append(forward.evaluate(objective, "score", variables, batch.x))

    assert compiled(use, 2.0)
    assert not compiled(use, 2.0)
    np.testing.assert_array_equal(*scores)
    assert compiled(use, 2)
    assert not compiled(use, 2)


def test_every_named_loss_is_one_of_embeddings_and_a_center(batch):
    z = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    for name, loss in objectives.NAMED.items():
        assert objectives.named_loss(name) is loss
        assert loss(z, batch.semi_targets, CENTER).shape == (ROWS,)
    deviation = objectives.named_loss("deviation")(z, batch.semi_targets, CENTER)
    distance = np.sum((z - CENTER) ** 2, axis=1)
    above = np.maximum(5.0 - distance, 0.0)
    assert_close(deviation, np.where(batch.semi_targets < 0, above, distance))
    with pytest.raises(ValueError, match="loss is 'focal'; it must be one of deep_sad"):
        objectives.named_loss("focal")
    with pytest.raises(ValueError, match="loss is 'focal'; it must be one of deep_sad"):
        objectives.DeepSAD(ENCODER, "focal")


class Pixels(nn.Module):
    """An encoder whose embeddings are no vectors."""

    def __call__(self, x):
        return x


def test_encoders_that_give_no_vectors_are_refused():
    x = jnp.zeros((2, 4, 3))
    with pytest.raises(ValueError, match=r"encoder returns shape \(2, 4, 3\) for x of"):
        objectives.DeepSAD(Pixels()).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="decoder is None; it must be a Linen module"):
        objectives.Autoencoder(ENCODER, None)
