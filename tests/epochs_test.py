import dataclasses
import functools
import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsad_jax import (
    cpu_settings,
    epochs,
    forward,
    generative,
    metrics,
    networks,
    objectives,
    parallel,
    training,
)

AUTOENCODER = objectives.Autoencoder(
    networks.MLPEncoder((8,), 3), networks.MLPDecoder((8,), 6)
)
STAGE = training.Stage(training.Adam(1e-3, (2,)), epochs=4, batch_size=16)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.random((90, 6), np.float32)
    return training.training_set(x, rng.integers(-1, 2, 70), rng.permutation(90)[:70])


@functools.cache
def programs(convolutional=False):
    return epochs.Programs(AUTOENCODER, STAGE, parallel.one(), convolutional)


@functools.cache
def initial():
    return jax.jit(AUTOENCODER.init)(jax.random.key(0), jnp.zeros((1, 6)))


def trained(data, pieces=(0, 4), key=1, made=None):
    made = made or programs()
    state, series = made.start(initial()), []
    for first, last in zip(pieces[:-1], pieces[1:], strict=True):
        state, found = made.advance(state, data, jax.random.key(key), first, last)
        series.append(found["loss"].compute()[: last - first])
    return jax.device_get(state), np.concatenate(series)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_key_gives_the_same_bits_and_another_does_not(data):
    assert_equal(trained(data), trained(data))
    kernels = [
        trained(data, key=key)[0].variables["params"]["encoder"]["code"]["kernel"]
        for key in (1, 2)
    ]
    assert np.any(kernels[0] != kernels[1])


def test_training_may_be_cut_into_pieces(data):
    assert_equal(trained(data), trained(data, pieces=(0, 1, 3, 4)))


def test_one_call_per_batch_gives_what_the_loop_gives(data):
    steps, loop = trained(data, made=programs(convolutional=True)), trained(data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), steps, loop)


def test_padding_changes_nothing(data):
    assert_equal(trained(data), trained(training.padded(data, 100)))


@dataclasses.dataclass(frozen=True)
class Seen:
    """Trains nothing, and notes in which step of an epoch each row has been seen."""

    rows: int

    def init(self, key, x):
        return {"params": {}, "seen": jnp.zeros(self.rows), "step": jnp.zeros(())}

    def loss(self, variables, batch, key):
        step = variables["step"] + 1
        rows = (255 * batch.x[:, 0, 0, 0]).round().astype(int)
        seen = variables["seen"].at[rows].add(step)
        target = metrics.Mean.of(batch.semi_targets)
        variables = {**variables, "seen": seen, "step": step}
        return batch.x[:, 0, 0, 0], (variables, {"target": target})


def test_each_epoch_sees_every_example_at_most_once_in_another_order():
    x = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)  # bytes, seen as x / 255
    rng = np.random.default_rng(0)
    rows, targets = rng.permutation(90)[:70], rng.integers(-1, 2, 70)
    data = training.padded(training.training_set(x, targets, rows), 100)
    stage = training.Stage(optax.sgd(1.0), batch_size=16)
    made = epochs.Programs(Seen(90), stage, parallel.one(), False)
    start, orders = Seen(90).init(None, None), []
    for epoch in range(40):
        state = made.start(start)
        key = jax.random.key(0)
        state, found = made.advance(state, data, key, epoch, epoch + 1)
        seen = np.asarray(state.variables["seen"])
        # Four whole batches of different rows, all of them in the training set.
        assert np.bincount(seen.astype(int)).tolist() == [90 - 64, 16, 16, 16, 16]
        assert not np.any(seen[np.setdiff1d(np.arange(90), rows)])
        # The targets go with their rows.
        mean = targets[np.isin(rows, np.flatnonzero(seen))].mean()
        np.testing.assert_allclose(found["target"].compute()[0], mean, atol=1e-6)
        orders.append(seen)
    assert len({order.tobytes() for order in orders}) == 40
    # Every example comes first, is left out, and so on: 40 draws of 16 of 70, 6 of 70.
    orders = np.array(orders)[:, rows]
    assert np.all((orders == 1).any(axis=0)) and np.mean((orders == 0).any(0)) > 0.9


@dataclasses.dataclass(frozen=True)
class Quartic:
    """w^4 / 4, on which gradient descent diverges from afar and converges nearby."""

    def init(self, key, x):
        return {"params": {"w": 1.1 * 10.0 ** jax.random.randint(key, (), 0, 3)}}

    def score(self, variables, x):
        return 0.25 * variables["params"]["w"] ** 4 + 0.0 * jnp.sum(x, axis=1)

    def loss(self, variables, batch, key):
        return self.score(variables, batch.x), (variables, {})


def descend(w, rate, epochs):
    """Gradient descent with rollback, four steps an epoch: losses and weight."""
    history, slowdown, rollbacks, first = [], np.float32(1), 0, w
    while len(history) < epochs:
        before, values = w, []
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(4):
                values.append(np.float32(0.25) * w**4)
                w = w - slowdown * np.float32(rate(4 * len(history) + step)) * w**3
            mean = np.mean(np.array(values, np.float32))
        if np.isfinite(mean) and np.isfinite(w):
            history.append(mean)
            continue
        w, history = (before, history) if slowdown == 1 else (first, [])
        slowdown, rollbacks = np.float32(0.1) * slowdown, rollbacks + 1
    return history, w, rollbacks


def rolled_back(data, rate, on="rollback", seeds=(0,), plan=None):
    """Starts, ends and losses of runs of all seeds, five epochs."""
    stage = training.Stage(optax.sgd(rate), 6, batch_size=16, on_divergence=on)
    keys = [jax.random.key(seed) for seed in seeds]
    trainer = epochs.Trainer(keys, [data] * len(keys), plan, ("init", "train"))
    start = trainer.init(Quartic(), "init")
    end = trainer.run("train", Quartic(), stage, start)
    start, end = (
        np.array([one["params"]["w"] for one in trainer.take(variables)])
        for variables in (start, end)
    )
    return start, end, [one["train"]["loss"] for one in trainer.take(trainer.history)]


# By what keys the three weights to start from are drawn.
NEAR, FAR, FARTHEST = 1, 0, 7


def test_rollback_goes_on_with_updates_of_a_tenth(data, caplog):
    with pytest.raises(training.DivergenceError, match="training diverged: the loss"):
        rolled_back(data, 0.1, "stop", [FAR])
    for seed, times in ((FAR, 1), (FARTHEST, 3)):
        caplog.clear()
        (start,), (end,), (losses,) = rolled_back(data, 0.1, seeds=[seed])
        assert "rolled back to epoch 0, updates are now times 1e-01" in caplog.text
        assert len(caplog.records) == times
        history, expected, rollbacks = descend(start, lambda count: 0.1, 6)
        assert rollbacks == times
        np.testing.assert_allclose(losses, history, rtol=1e-4)
        np.testing.assert_allclose(end, expected, rtol=1e-4)
    # Where nothing diverges, nothing changes.
    calm = [rolled_back(data, 0.1, on, [NEAR]) for on in ("rollback", "stop")]
    assert_equal(*calm)


def test_rollback_does_not_depend_on_the_pieces_of_training(data, monkeypatch):
    def spike(count):  # in the first step of the fifth epoch, inside a piece
        return jnp.where(count == 16, 3e3, 1e-2)

    whole = rolled_back(data, spike, seeds=[FAR])
    clock = itertools.count()  # a second for each piece: an epoch at a time
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: float(next(clock)))
    assert_equal(whole, rolled_back(data, spike, seeds=[FAR]))
    history, _, rollbacks = descend(whole[0][0], spike, 6)
    assert rollbacks > 0 and np.isfinite(history[3])
    np.testing.assert_allclose(whole[2][0], history, rtol=1e-4)


def test_rollback_gives_up_after_five_times(data, caplog):
    message = "rolled back five times already"
    with pytest.raises(training.DivergenceError, match=message):
        rolled_back(data, 1e30)
    assert len(caplog.records) == 5


@dataclasses.dataclass(frozen=True)
class Rooted(Quartic):
    """A slope whose gradient is NaN below some point, though the loss is not."""

    below: float = 0.0

    def loss(self, variables, batch, key):
        w = variables["params"]["w"]
        w = w + 0.0 * jnp.sqrt(jnp.maximum(w - self.below, 0.0))
        return w + 0.0 * jnp.sum(batch.x, axis=1), (variables, {})


@pytest.mark.parametrize("epochs_", [1, 6])
def test_parameters_without_values_are_noticed_in_their_epoch(data, epochs_):
    stage = training.Stage(optax.sgd(0.1), epochs_, batch_size=16)
    trainer = epochs.Trainer([jax.random.key(FAR)], [data], None, ("init", "train"))
    start = trainer.init(Quartic(), "init")
    first = float(start["params"]["w"])
    told = []
    trainer._observe = lambda name, done, history: told.append(done)
    # A step of 0.1 downwards; the last one of that epoch passes the point.
    objective = Rooted(first - 0.4 * (epochs_ - 1) - 0.25)
    message = f"the loss of epoch {epochs_} is nan"
    with pytest.raises(training.DivergenceError, match=message):
        trainer.run("train", objective, stage, start)
    assert all(done < epochs_ for done in told)


@pytest.mark.parametrize("rate", [3.0, 300.0])
def test_rollback_begins_anew_where_going_back_is_of_no_avail(data, rate):
    """Weights of 1e9 are finite, and no slower step from there is of use."""
    (start,), (end,), (losses,) = rolled_back(data, rate, seeds=[NEAR])
    history, expected, rollbacks = descend(start, lambda count: rate, 6)
    assert rollbacks > 1 and np.isfinite(losses).all() and abs(end) < 1.1
    np.testing.assert_allclose(losses, history, rtol=1e-4)
    np.testing.assert_allclose(end, expected, rtol=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_rollback_slows_only_the_runs_that_diverge(data, together):
    plan = parallel.Plan(many=True, together=together)
    seeds = (0, 1, 7, 2, 6, 8)
    starts, ends, losses = rolled_back(data, 0.1, seeds=seeds, plan=plan)
    assert len(set(starts)) == 3
    for seed, *run in zip(seeds, starts, ends, losses, strict=True):
        single = rolled_back(data, 0.1, seeds=[seed])
        assert_equal(single, tuple([value] for value in run))


def test_divergence_names_the_epoch(data):
    optimizer = training.Adam(1e38, weight_decay=1.0)
    stage = training.Stage(optimizer, epochs=6, batch_size=16)
    trainer = epochs.Trainer([jax.random.key(0)], [data], None, ("init", "train"))
    variables = trainer.init(Quartic(), "init")
    message = r"training diverged: the loss of epoch [1-6] is .*smaller learning rate"
    with pytest.raises(training.TrainingError, match=message):
        trainer.run("train", Quartic(), stage, variables)


def test_a_trainer_reports_every_epoch_once_and_leaves_its_start_alone(data):
    reported = []

    def observe(stage, done, history):
        reported.append(done)
        assert stage == "train" and np.isfinite(history["loss"][:done]).all()
        assert np.isnan(history["loss"][done:]).all()

    uses = ("init", "train")
    trainer = epochs.Trainer([jax.random.key(7)], [data], None, uses, observe)
    start = trainer.init(AUTOENCODER, "init")
    copy = jax.device_get(start)
    variables = trainer.run("train", AUTOENCODER, STAGE, start)
    assert_equal(start, copy)
    assert reported[0] == 1 and reported[-1] == 4
    assert reported == sorted(set(reported))
    # As the epochs themselves, of the key of that use.
    made = programs()
    state, found = made.advance(made.start(start), data, trainer.keys["train"], 0, 4)
    assert_equal(variables, state.variables)
    assert_equal(trainer.history["train"]["loss"], found["loss"].compute()[:4])
    assert trainer.seconds["train"] > 0


def test_short_stages_without_random_draws_are_compiled_with_less_effort(
    data, monkeypatch
):
    def effort(objective, stage=STAGE, data=data):
        trainer = epochs.Trainer([jax.random.key(7)], [data], None, ("init", "train"))
        return trainer._effort(objective, stage)

    trainer = epochs.Trainer([jax.random.key(7)], [data], None, ("init", "train"))
    start = trainer.init(AUTOENCODER, "init")
    found = trainer.run("train", AUTOENCODER, STAGE, start)
    long = dataclasses.replace(STAGE, epochs=10**5)
    assert effort(AUTOENCODER) == cpu_settings.BRIEF
    assert effort(AUTOENCODER, long) == cpu_settings.USUAL
    assert effort(objectives.Elbo(generative.VAE((8,), 3, 6))) == cpu_settings.USUAL
    # Four epochs of five steps (of the 90 rows there are, whatever is trained on) of
    # 16 x 6 inputs, the parameters and statistics.
    numbers = sum(leaf.size for leaf in jax.tree.leaves(start)) + 16 * 6
    monkeypatch.setattr(epochs, "_BRIEF", 20 * numbers + 1)
    assert effort(AUTOENCODER) == cpu_settings.BRIEF
    monkeypatch.setattr(epochs, "_BRIEF", 20 * numbers)
    assert effort(AUTOENCODER) == cpu_settings.USUAL
    series = objectives.DeepSAD(networks.for_shape((7, 2)).encoder)
    other = data._replace(x=np.zeros((90, 7, 2), np.float32))
    assert effort(series, data=other) == cpu_settings.SHORT
    assert effort(series, long, data=other) == cpu_settings.USUAL
    # The usual effort gives the same numbers, up to rounding.
    same = trainer.run("train", AUTOENCODER, STAGE, start)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, jax.device_get(same), jax.device_get(found))


def test_a_use_has_a_key_of_its_own_and_its_place_decides(data):
    def keys(*uses):
        trainer = epochs.Trainer([jax.random.key(7)], [data], None, uses)
        return {
            use: tuple(jax.random.key_data(trainer.keys[use]).tolist()) for use in uses
        }

    few, more = keys("init", "train"), keys("init", "train", "another")
    assert few.items() <= more.items() and len(set(more.values())) == 3


@pytest.mark.parametrize("size", [1, 16, 17, 512, 530])
def test_evaluation_includes_the_last_partial_chunk(size):
    x = np.random.default_rng(0).random((600, 3), np.float32)
    rows = np.arange(600)[::-1][:size]
    variables = {"params": {"w": np.float32(2.0)}}
    evaluate = functools.partial(forward.evaluate, Summed(), "score", variables)
    expected = 2 * x[rows].sum(1)
    np.testing.assert_allclose(evaluate(x, rows=rows), expected, rtol=1e-6)
    np.testing.assert_allclose(evaluate(x[rows]), expected, rtol=1e-6)
    # Whatever else is in a chunk, a row has its value.
    np.testing.assert_array_equal(evaluate(x[rows])[:1], evaluate(x[rows][:1]))


class Summed(Quartic):
    """With a score that tells the rows apart."""

    def score(self, variables, x):
        return variables["params"]["w"] * jnp.sum(x, axis=1)


class Foreign(nn.Module):
    """An encoder of a user's own, one convolution of which is inside a branch."""

    @nn.compact
    def __call__(self, x):
        x = jax.checkpoint(jax.nn.relu)(nn.Conv(2, (3,))(x))
        return x.mean(axis=1)


def test_a_program_with_a_convolution_is_found_out():
    found = {
        name: forward.is_convolutional(objectives.DeepSAD(encoder), shape)
        for name, (encoder, shape) in {
            "perceptron": (networks.for_shape((10,)).encoder, (10,)),
            "fmnist": (networks.build_encoder("fmnist_LeNet"), (28, 28, 1)),
            "series": (networks.for_shape((30, 2)).encoder, (30, 2)),
            "foreign": (Foreign(), (9, 2)),
        }.items()
    }
    assert found.pop("perceptron") is False
    assert all(found.values()), found


class Columns(NamedTuple):
    """A metric of a user's own: the mean of each column."""

    total: jax.Array
    count: jax.Array

    def merge(self, other):
        return Columns(self.total + other.total, self.count + other.count)

    def compute(self):  # of many epochs at once, with a leading axis
        means = self.total / self.count[..., None]
        return {f"column_{i}": means[..., i] for i in range(means.shape[-1])}


class Watched(Quartic):
    def loss(self, variables, batch, key):
        columns = Columns(batch.x.sum(axis=0), jnp.float32(len(batch.x)))
        return self.score(variables, batch.x), (variables, {"columns": columns})


def test_metrics_of_ones_own_are_recorded_for_examples_of_any_shape(data):
    stage = training.Stage(optax.sgd(1e-3), 3, batch_size=35)
    for columns in (6, 4):
        some = data._replace(x=data.x[:, :columns])
        uses = ("init", "train")
        trainer = epochs.Trainer([jax.random.key(0)], [some], None, uses)
        variables = trainer.init(Watched(), "init")
        trainer.run("train", Watched(), stage, variables)
        history = trainer.history["train"]
        assert set(history) == {"loss", *(f"column_{i}" for i in range(columns))}
        for i in range(columns):
            expected = np.full(3, some.x[some.indices, i].mean())
            np.testing.assert_allclose(history[f"column_{i}"], expected, rtol=1e-5)
