import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepsad_jax import deep_sad, dgm, parallel, training

NETWORK = "thyroid_mlp"
LOOP = parallel.Execution()
STEPS = parallel.Execution(per_step=True)
HYPER = training.Optimization(
    learning_rate=1e-3, epochs=4, milestones=(2,), batch_size=16
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.random((90, 6), np.float32)
    return training.training_set(x, rng.integers(-1, 2, 70), rng.permutation(90)[:70])


def trained(data, execution=LOOP, pieces=(0, 4), key=1, optimization=HYPER):
    objective = deep_sad.autoencoder_objective(NETWORK)
    start = training.make_start(objective, optimization, execution)
    state = start(*objective.init(jax.random.key(0)))
    advance = training.make_advance(objective, optimization, execution)
    for first, last in zip(pieces[:-1], pieces[1:], strict=True):
        state = advance(state, data, jax.random.key(key), first, last)
    return state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_key_gives_the_same_bits_and_another_does_not(data):
    assert_equal(trained(data), trained(data))
    other = trained(data, key=2)
    kernel = other.params["encoder"]["code"]["kernel"]
    assert np.any(kernel != trained(data).params["encoder"]["code"]["kernel"])


def test_training_may_be_cut_into_pieces(data):
    assert_equal(trained(data), trained(data, pieces=(0, 1, 3, 4)))


def test_one_call_per_batch_gives_what_the_loop_gives(data):
    steps, loop = trained(data, STEPS), trained(data, LOOP)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), steps, loop)


def test_padding_changes_nothing(data):
    padded = data._replace(
        indices=jnp.pad(data.indices, (0, 30)),
        semi_targets=jnp.pad(data.semi_targets, (0, 30)),
    )
    assert_equal(trained(data), trained(padded))


def test_each_epoch_sees_every_example_at_most_once_in_another_order(data):
    def order(epoch):
        shuffled, _ = training._prepare(data, jax.random.key(0), epoch)
        return np.asarray(shuffled)

    np.testing.assert_array_equal(np.sort(order(0)), np.arange(70))
    assert np.any(order(0) != order(1))
    firsts = [order(epoch)[0] for epoch in range(200)]
    assert len(set(firsts)) > 50  # 70 possible, 200 draws


def test_a_step_is_adam_with_coupled_l2(data):
    # torch.optim.Adam adds weight_decay * w to the gradient before the moments; with
    # optax, the same is a loss with the term weight_decay / 2 |w|^2.
    optimization = training.Optimization(weight_decay=0.1, batch_size=2, epochs=1)
    objective = deep_sad.autoencoder_objective(NETWORK)
    params, model_state = objective.init(jax.random.key(0))
    batch = training.Batch(data.x[:8], data.semi_targets[:8])
    state = training.make_start(objective, optimization, LOOP)(params, model_state)
    step = training.make_step(objective, optimization)

    def penalised(params):
        loss = jnp.mean(objective.loss(params, model_state, batch, None)[0])
        return loss + 0.05 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

    adam = optax.adam(0.01)
    updates, _ = adam.update(jax.grad(penalised)(params), adam.init(params))
    expected = optax.apply_updates(params, updates)
    actual, _ = step(state, batch, jax.random.key(0), 0.01)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        actual.params,
        expected,
    )


def test_learning_rate_drops_at_each_milestone():
    optimization = training.Optimization(learning_rate=1.0, milestones=(2, 4))
    rates = [float(optimization.learning_rate_at(e)) for e in range(6)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_bytes_are_scaled_to_the_unit_interval():
    x = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(training.as_float(jnp.asarray(x)), x / 255.0, rtol=1e-6)


@pytest.mark.parametrize("execution", [LOOP, STEPS], ids=["loop", "steps"])
@pytest.mark.parametrize("size", [1, 4, 11])
def test_evaluation_includes_the_last_partial_chunk(execution, size):
    x = np.random.default_rng(0).random((20, 3), np.float32)

    def function(params, model_state, x):
        return jnp.sum(x, axis=1) * params + model_state

    evaluate = training.make_evaluate(function, execution, chunk=4)
    rows = np.arange(20)[::-1][:size]
    actual = evaluate(jnp.float32(2.0), jnp.float32(1.0), x, rows)
    np.testing.assert_allclose(actual, 2 * x[rows].sum(1) + 1, rtol=1e-6)


def test_fit_reports_every_epoch_once(data):
    objective = deep_sad.autoencoder_objective(NETWORK)
    state = training.make_start(objective, HYPER, LOOP)(
        *objective.init(jax.random.key(0))
    )
    reported = []
    advance = training.make_advance(objective, HYPER, LOOP)
    fitted = training.fit(
        advance,
        state,
        data,
        jax.random.key(1),
        epochs=4,
        on_epochs=lambda done, state, history: reported.append(done),
    )
    assert reported[0] == 1 and reported[-1] == 4
    assert reported == sorted(set(reported))
    assert_equal(fitted, trained(data))
    assert np.isfinite(fitted.history["loss"]).all()


def test_divergence_names_the_epoch(data):
    optimization = training.Optimization(
        learning_rate=1e38, epochs=6, batch_size=16, weight_decay=1.0
    )
    objective = deep_sad.autoencoder_objective(NETWORK)
    state = training.make_start(objective, optimization, LOOP)(
        *objective.init(jax.random.key(0))
    )
    advance = training.make_advance(objective, optimization, LOOP)
    message = r"training diverged: the loss of epoch [1-6] is .*smaller learning rate"
    with pytest.raises(training.TrainingError, match=message):
        training.fit(advance, state, data, jax.random.key(0), epochs=6)


def fit_vae(data, learning_rate, on_divergence="rollback", execution=LOOP, **options):
    optimization = training.Optimization(
        learning_rate,
        epochs=8,
        batch_size=16,
        weight_decay=0.0,
        on_divergence=on_divergence,
    )
    options = {"network": NETWORK, "method": "vae", "pretrain": optimization, **options}
    key = options.pop("key", jax.random.key(0))
    return dgm.fit(key, data, execution=execution, **options)


def test_rollback_goes_on_with_a_smaller_learning_rate(data, caplog):
    data = data._replace(x=jnp.clip(data.x, 0, 1))
    with pytest.raises(training.DivergenceError, match="training diverged"):
        fit_vae(data, 1e3, "stop")
    fitted = fit_vae(data, 1e3)
    assert np.isfinite(fitted.history["pretrain"]["loss"]).all()
    assert "rolled back, the learning rate is now times 1e-01" in caplog.text
    # Where nothing diverges, nothing changes.
    calm = [fit_vae(data, 1e-3, on) for on in ("rollback", "stop")]
    jax.tree.map(np.testing.assert_array_equal, calm[0].params, calm[1].params)


def test_rollback_does_not_depend_on_the_pieces_of_training(data, monkeypatch):
    data = data._replace(x=jnp.clip(data.x, 0, 1))
    whole = fit_vae(data, 1e3)
    clock = itertools.count()  # a second for each piece: an epoch at a time
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    stepwise = fit_vae(data, 1e3)
    jax.tree.map(np.testing.assert_array_equal, whole.params, stepwise.params)


def test_rollback_gives_up_after_five_times(data):
    data = data._replace(x=jnp.clip(data.x, 0, 1))
    with pytest.raises(
        training.DivergenceError, match="rolled back five times already"
    ):
        fit_vae(data, 1e30)


def test_rollback_slows_only_the_runs_that_diverge(data):
    data = data._replace(x=jnp.clip(data.x, 0, 1))
    many = parallel.Execution(many=True, together=False)
    keys = [jax.random.key(i) for i in range(6)]
    stacked = parallel.stack([data._replace(x=0)] * 6, many)._replace(x=data.x)
    together = fit_vae(stacked, 30.0, key=parallel.stack(keys, many), execution=many)
    runs = parallel.unstack(together.replace(seconds={}), 6)
    for key, run in zip(keys, runs, strict=True):
        single = fit_vae(data, 30.0, key=key)
        jax.tree.map(np.testing.assert_array_equal, run.params, single.params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"on_divergence": "panic"}, "on_divergence is 'panic'; it must be stop or"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be > 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"epochs": -1}, "epochs is -1; it must be >= 0"),
        ({"batch_size": 1}, "batch_size is 1; it must be >= 2"),
        ({"weight_decay": -1e-3}, "weight_decay is -0.001"),
        ({"milestones": ("a",)}, r"milestones is \('a',\)"),
    ],
)
def test_wrong_hyper_parameters_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        training.Optimization(**fields)


X = np.random.default_rng(0).random((5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"x has shape \(3,\)"),
        ({"x": X[:0]}, "not empty"),
        ({"x": X.astype(np.int32)}, "x has dtype int32; it must be floating, or uint8"),
        (
            {"x": np.where(X == X[2, 1], np.nan, X)},
            r"contains nan at \[2, 1\] \(1 such",
        ),
        ({"x": np.where(X == X[4, 0], np.inf, X)}, r"contains inf at \[4, 0\]"),
        ({"x": X.astype(np.float64) * 1e300}, "not a finite float32"),
        (
            {"x": X, "semi_targets": [0, 0]},
            r"semi_targets has shape \(2,\); there are 5",
        ),
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


def test_batches_that_cannot_be_filled_or_shared_are_refused():
    optimization = training.Optimization(batch_size=71)
    with pytest.raises(ValueError, match="has 70 examples, less than one batch of 71"):
        training.check_batches(optimization, 70)
    with pytest.raises(ValueError, match="batch_size is 71; the 2 devices must divide"):
        training.check_batches(optimization, 100, devices=2)
