import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import deepsad_jax as sad
from deepsad_jax import losses, metrics, networks, objectives, training

ENCODER = networks.MLPEncoder((8,), 3)
SIZE = 24


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x = rng.random((SIZE, 6), np.float32)
    return training.Batch(x, rng.integers(-1, 2, SIZE).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Nearest:
    """An objective of a user's own: the distance to the nearest of some prototypes."""

    count: int = 3

    def init(self, key, x):
        return {"params": {"p": jax.random.uniform(key, (self.count, x.shape[1]))}}

    def score(self, variables, x):
        away = x[:, None] - variables["params"]["p"]
        return jnp.min(jnp.sum(jnp.square(away), axis=2), axis=1)

    def loss(self, variables, batch, key):
        distance = self.score(variables, batch.x)
        return distance, (variables, {"largest": metrics.Mean.of(distance.max())})


def steps(objective, optimizer, variables, batches):
    """States and losses of a loop of one's own."""
    step = jax.jit(training.make_step(objective, optimizer))
    state, values = training.start(variables, optimizer), []
    for i, batch in enumerate(batches):
        state, recorded = step(state, batch, jax.random.key(i))
        values.append(float(recorded["loss"].compute()))
    return state, values


def test_a_step_is_adam_with_coupled_l2(batch):
    # torch.optim.Adam adds weight_decay * w to the gradient before the moments; with
    # optax, the same is a loss with the term weight_decay / 2 |w|^2.
    objective = objectives.Autoencoder(ENCODER, networks.MLPDecoder((8,), 6))
    optimizer = training.Adam(0.01, weight_decay=0.1)(1)
    state = training.init(objective, optimizer, jax.random.key(0), batch.x)

    def penalized(params):
        variables = {**state.variables, "params": params}
        loss = jnp.mean(objective.loss(variables, batch, jax.random.key(0))[0])
        return loss + 0.05 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

    params = state.variables["params"]
    adam = optax.adam(0.01)
    updates, _ = adam.update(jax.jit(jax.grad(penalized))(params), adam.init(params))
    expected = optax.apply_updates(params, updates)
    step = jax.jit(training.make_step(objective, optimizer))
    actual, _ = step(state, batch, jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        actual.variables["params"],
        expected,
    )


def test_learning_rate_drops_at_each_milestone():
    steps_of_epoch = 3
    adam = training.Adam(1.0, milestones=(2, 4), weight_decay=0.0)(steps_of_epoch)
    state, rates = adam.init(0.0), []
    for _ in range(6 * steps_of_epoch):
        # Of equal gradients, a step of Adam is the learning rate.
        update, state = adam.update(jnp.float32(1.0), state, 0.0)
        rates.append(-float(update))
    expected = np.repeat([1, 1, 0.1, 0.1, 0.01, 0.01], steps_of_epoch)
    np.testing.assert_allclose(rates, expected, rtol=1e-4)


def test_bytes_are_scaled_to_the_unit_interval():
    x = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(training.as_float(jnp.asarray(x)), x / 255.0, rtol=1e-6)


def test_an_objective_of_ones_own_trains_in_a_loop_of_ones_own(batch):
    objective = Nearest()
    optimizer = optax.sgd(0.1)
    state = training.init(objective, optimizer, jax.random.key(0), batch.x)
    before = state.variables["params"]["p"]
    state, values = steps(objective, optimizer, state.variables, [batch] * 30)
    assert values[-1] < 0.9 * values[0]
    # One step of gradient descent moves a prototype by its share of what is nearest.
    first, _ = steps(objective, optimizer, {"params": {"p": before}}, [batch])
    p = np.asarray(before, np.float64)
    nearest = ((batch.x[:, None] - p) ** 2).sum(2).argmin(1)
    for j in range(3):
        step = 0.1 * 2 * (batch.x[nearest == j] - p[j]).sum(0) / SIZE
        actual = first.variables["params"]["p"][j]
        np.testing.assert_allclose(actual, p[j] + step, rtol=1e-5)


def focal(embeddings, semi_targets, center, *, gamma=2.0):
    """A loss of a user's own: far unlabeled examples count less."""
    distance = losses.squared_distance(embeddings, center)
    per_example = losses.deep_sad_loss(embeddings, semi_targets, center)
    return jnp.where(semi_targets == 0, jnp.exp(-distance) ** gamma, 1) * per_example


class Stock(nn.Module):
    """An encoder of a user's own, of Flax's layers alone."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, use_scale=False)(x)
        return nn.Dense(3, use_bias=False)(nn.gelu(x))


@pytest.mark.filterwarnings("ignore:the encoder's")
def test_a_loop_of_ones_own_does_what_fit_does(batch):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 10)
    optimizer = optax.adamw(schedule, weight_decay=0.01)
    loss = functools.partial(focal, gamma=0.5)
    data = sad.training_set(batch.x, batch.semi_targets)
    # Batches as large as the training set: their order is that of a sum.
    fit = functools.partial(
        sad.fit, jax.random.key(3), data, encoder=Stock(), loss=loss, pretrain=None
    )
    start, _ = fit(train=sad.Stage(optimizer, epochs=0, batch_size=SIZE))
    model, record = fit(train=sad.Stage(optimizer, epochs=8, batch_size=SIZE))

    rows = training.Batch(start.preprocessing(batch.x), batch.semi_targets)
    objective = objectives.DeepSAD(Stock(), loss)
    assert objective == model.objective
    state, values = steps(objective, optimizer, start.variables, [rows] * 8)
    assert values[-1] < values[0]
    np.testing.assert_allclose(record.history["train"]["loss"], values, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        model.variables,
        jax.device_get(state.variables),
    )


def test_a_stream_is_trained_as_a_loop_over_its_batches(batch):
    batches = [(batch.x[i::3], batch.semi_targets[i::3]) for i in range(3)]

    def optimizer(steps):  # a function of the number of steps in an epoch
        return optax.adam(lambda count: 1e-2 / (1 + count // steps))

    stage = functools.partial(sad.Stage, optimizer)
    key = jax.random.key(3)
    fit = functools.partial(sad.fit, key, batches, encoder=ENCODER, pretrain=None)
    start, _ = fit(train=stage(epochs=0))
    model, record = fit(train=stage(epochs=2))
    rows = [training.Batch(start.preprocessing(x), t) for x, t in batches]
    objective = objectives.DeepSAD(ENCODER)
    state, values = steps(objective, optimizer(3), start.variables, rows * 2)
    means = np.reshape(values, (2, 3)).mean(axis=1)
    np.testing.assert_allclose(record.history["train"]["loss"], means, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        model.variables,
        jax.device_get(state.variables),
    )


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (
            training.Stage,
            {"on_divergence": "panic"},
            "on_divergence is 'panic'; it must be stop or",
        ),
        (training.Adam, {"learning_rate": 0.0}, "learning_rate is 0.0; it must be > 0"),
        (training.Adam, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (training.Adam, {"learning_rate": 1e39}, "learning_rate is 1e.39"),
        (training.Stage, {"epochs": -1}, "epochs is -1; it must be >= 0"),
        (training.Stage, {"epochs": 2.0}, "epochs is 2.0; it must be >= 0"),
        (training.Stage, {"epochs": True}, "epochs is True; it must be >= 0"),
        (training.Stage, {"batch_size": 1}, "batch_size is 1; it must be >= 2"),
        (training.Adam, {"weight_decay": -1e-3}, "weight_decay is -0.001"),
        (training.Adam, {"milestones": ("a",)}, r"milestones is \('a',\)"),
        (training.Stage, {"optimizer": 1e-3}, "optimizer is 0.001; it must be an opt"),
    ],
)
def test_wrong_hyper_parameters_are_named(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_stages_are_values():
    assert training.Adam(1e-3, [5]) == training.Adam(1e-3, (5,))
    assert hash(training.Stage(epochs=3)) == hash(training.Stage(epochs=3))
    optimizer = optax.adam(1e-3)
    assert training.Stage(optimizer) == training.Stage(optimizer)
    assert training.Stage(optimizer).optimizer_for(7) is optimizer
    assert training.Stage(lambda steps: optimizer).optimizer_for(7) is optimizer


X = np.random.default_rng(0).random((5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"x has shape \(3,\); it must be of rank 2 to 5"),
        ({"x": X[None, None, None, None]}, "it must be of rank 2 to 5"),
        ({"x": X[:0]}, "not empty"),
        ({"x": X, "semi_targets": [0, 0]}, "semi_targets has 2 entries for 5 examples"),
        ({"x": X, "semi_targets": [0, 1, 2, 0, 0]}, "semi_targets contains 2; allowed"),
        ({"x": X, "indices": [0, 5]}, "row numbers from 0 to 4"),
        ({"x": X, "indices": [-1]}, "row numbers from 0 to 4"),
        ({"x": X, "indices": [0.5]}, "row numbers from 0 to 4"),
        ({"x": X, "indices": []}, "non-empty list"),
    ],
)
def test_wrong_training_sets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.training_set(**arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.where(X == X[2, 1], np.nan, X), r"contains nan .row 2, column 1; 1 such"),
        (np.where(X == X[4, 0], np.inf, X), "contains inf .row 4, column 0"),
        (X + 1j, "x has shape .5, 3. and dtype complex.*; it must hold real numbers"),
    ],
)
def test_rows_that_are_no_finite_numbers_are_refused_before_training(x, message):
    with pytest.raises(ValueError, match=message):
        sad.fit(jax.random.key(0), training.training_set(x), train=SHORT, pretrain=None)


SHORT = training.Stage(epochs=1, batch_size=2)


def test_a_training_set_cannot_be_traced():
    with pytest.raises(ValueError, match="x is traced by jit, vmap or grad; it must"):
        jax.jit(training.training_set)(X)


def test_what_is_no_key_is_refused():
    data = training.training_set(X)
    for key in (0, "key", np.zeros(2), None):
        with pytest.raises(ValueError, match="it must be a random key: jax.random.key"):
            sad.fit(key, data, train=SHORT)
    training.check_key(jax.random.key(0))
    training.check_key(jax.random.PRNGKey(0))


def test_batches_that_cannot_be_filled_or_shared_are_refused():
    stage = training.Stage(batch_size=71)
    with pytest.raises(ValueError, match="has 70 examples, less than one batch of 71"):
        training.check_batches(stage, 70)
    with pytest.raises(ValueError, match="batch_size is 71; the 2 devices must divide"):
        training.check_batches(stage, 100, devices=2)
    training.check_batches(dataclasses.replace(stage, epochs=0), 70, devices=2)


def test_padding_adds_entries_that_do_not_count():
    data = training.training_set(X, [0, 1, -1], [4, 2, 0])
    padded = training.padded(data, 5)
    np.testing.assert_array_equal(padded.indices, [4, 2, 0, 0, 0])
    np.testing.assert_array_equal(padded.semi_targets, [0, 1, -1, 0, 0])
    assert padded.size == 3 and padded.x is data.x


def test_what_makes_an_optimizer_makes_one():
    with pytest.raises(ValueError, match="^optimizer is <function adam .* such as"):
        training.Stage(optax.adam)
    with pytest.raises(ValueError, match="what optimizer makes is 0.1; it must be"):
        training.Stage(lambda steps: 0.1).optimizer_for(3)


def _fit(optimizer, **options):
    rng = np.random.default_rng(0)
    data = training.training_set(rng.random((64, 4), np.float32), np.zeros(64))
    stage = training.Stage(optimizer, epochs=3, batch_size=32)
    encoder = nn.Dense(3, use_bias=False)
    options = {"encoder": encoder, "train": stage, **options}
    return sad.fit(jax.random.key(0), data, **options)


def test_an_optimizer_that_looks_at_the_loss_is_given_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.1, patience=0, atol=1e9)
    _, slowed = _fit(optax.chain(optax.sgd(0.1), plateau))
    _, plain = _fit(optax.sgd(0.1))
    losses_ = [r.history["train"]["loss"] for r in (slowed, plain)]
    assert losses_[0][0] == pytest.approx(losses_[1][0], rel=0.2)
    assert losses_[0][-1] > 1.1 * losses_[1][-1]  # never good enough: ever slower


def test_optimizers_that_cannot_be_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"update\(\) is missing .* 'value_fn', and a"):
        _fit(optax.lbfgs())

    @dataclasses.dataclass
    class Thawed:
        def __call__(self, steps):
            return optax.sgd(0.1)

    with pytest.raises(ValueError, match="optimizer, a Thawed, cannot be hashed"):
        training.Stage(Thawed())
    with pytest.warns(UserWarning, match="schedule-free optimizer has other param"):
        _fit(optax.contrib.schedule_free_sgd(1e-2))
    with pytest.raises(ValueError, match="keeper is 'folder'; it must be a checkpoin"):
        _fit(optax.sgd(0.1), keeper="folder")


def test_debugging_of_nans_finds_none():
    with jax.debug_nans(True):
        _fit(optax.sgd(0.1))


def test_embeddings_are_float32_whatever_computes_them():
    encoder = nn.Dense(3, use_bias=False, dtype=jnp.bfloat16)
    fitted, _ = _fit(optax.sgd(0.1), encoder=encoder)
    x = np.zeros((2, 4), np.float32)
    assert sad.embed(fitted, x).dtype == np.float32
    assert jax.eval_shape(lambda x: sad.embed(fitted, x), x).dtype == np.float32
