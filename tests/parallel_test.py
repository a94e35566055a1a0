"""One device, many devices and many processes give the same numbers.

CPUs are made to look like several devices, which has to be said before JAX starts: the
checks run in processes of their own, for which this file is the program.
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from deepsad_jax import (
    forward,
    losses,
    methods,
    model,
    modules,
    networks,
    parallel,
    preprocessing,
    training,
)
from deepsad_jax.detectors import classifier, deep_sad, generative

STAGE = training.Stage(training.Adam(1e-3, (2,)), epochs=3, batch_size=16)
# Few layers, where the network is of no importance, since each takes long to compile.
SMALL = networks.MLPEncoder((8,), 3)


def problem(shape, seed=0, size=70):
    rng = np.random.default_rng(seed)
    x = rng.random((90, *shape), np.float32)
    data = training.training_set(x, rng.integers(-1, 2, size), np.arange(size))
    return training.padded(data, 80)  # runs of unlike size share their programs


def arrays_of(fitted):
    found, record = fitted
    base = found.base.variables if found.base is not None else {}
    return found.variables, base, record.history


def largest_difference(a, b):
    differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(differences))


def assert_close(a, b, rtol=1e-3, atol=1e-4):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(check, a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def check_collectives():
    """`total` and its like, where a layer or an objective may call them."""

    @jax.custom_vjp
    def square(x):
        return parallel.total(x**2)

    square.defvjp(
        lambda x: (square(x), x), lambda x, g: (2 * x * parallel.shares() * g,)
    )

    def function(x):
        assert parallel.gather(x).shape == (8,)

        def body(carry, _):
            return carry + parallel.mean(jnp.mean(x)), parallel.total(jnp.sum(x))

        mean, totals = lax.scan(body, 0.0, length=3)
        gradient = jax.grad(lambda x: jnp.sum(square(x)))(x)
        whole = parallel.gather(jnp.stack([x, gradient], axis=1))
        same = parallel.own_share(whole[:, 0]) - x
        return mean, totals, whole, parallel.total(jnp.sum(same**2))

    x = np.arange(8, dtype=np.float32)
    for plan in (parallel.one(), parallel.split_batch(4)):
        compiled = plan.compile(lambda x: function(x), split=0)
        mean, totals, whole, same = jax.device_get(compiled(plan.by_device(x)))
        np.testing.assert_allclose(mean, 3 * 3.5)
        np.testing.assert_allclose(totals, [28.0] * 3)
        np.testing.assert_allclose(whole[:, 0], x)
        np.testing.assert_allclose(whole[:, 1], 2 * x * plan.devices)
        assert same == 0
    assert parallel.shares() == 1


def check_shared_batches(method, shape, devices):
    data, key, plan = problem(shape), jax.random.key(3), parallel.split_batch(devices)
    one, several = method.fit(key, data), method.fit(key, data, plan=plan)
    # Sums over the batch in another order; Adam's steps are 1e-3, and where a gradient
    # is nearly zero its rounding decides a few hundredths of one.
    assert largest_difference(arrays_of(several)[:2], arrays_of(one)[:2]) < 5e-5
    assert_close(several[1].history, one[1].history)
    scores = model.score(several[0], data.x, plan=plan)
    assert_close(scores, model.score(one[0], data.x), atol=1e-5)
    return one[0], data.x


def check_perceptrons_that_share_batches():
    found, x = check_shared_batches(small_method(21), (21,), 8)
    # Scoring shares the rows alone: whatever their number, the same bits.
    rows = np.tile(x, (30, 1))
    for size in (1, 90, 2700):
        for function in (model.score, model.embed):
            shared = function(found, rows[:size], plan=parallel.split_batch(4))
            np.testing.assert_array_equal(shared, function(found, rows[:size]))


def check_images_that_share_batches():
    method = deep_sad.DeepSAD(train=STAGE, pretrain=STAGE)
    check_shared_batches(method, (8, 8, 1), 4)


class Residual(nn.Module):
    """A network of a user's own, of Flax's layers alone."""

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(4, (3, 3), 2, use_bias=False)(x)))
        x = x + nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        return nn.Dense(5, use_bias=False)(x.mean((1, 2)))


def focal(embeddings, semi_targets, center, *, gamma=2.0):
    distance = losses.squared_distance(embeddings, center)
    return jnp.where(semi_targets == -1, 1 / (distance + 1e-3), distance) * gamma


def check_stock_modules_that_share_batches():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 4, 100)
    stage = training.Stage(optax.adamw(schedule), epochs=3, batch_size=16)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8)
    data = training.training_set(x, rng.integers(-1, 2, 64))
    method = deep_sad.DeepSAD(encoder=Residual(), loss=focal, train=stage)
    one, four = (
        method.fit(jax.random.key(0), data, plan=plan)
        for plan in (None, parallel.split_batch(4))
    )
    assert forward.is_convolutional(one[0].objective, (12, 12, 3))
    # Statistics of the whole batch: without, they would differ by their own size.
    assert_close(arrays_of(four), arrays_of(one), rtol=1e-4, atol=1e-5)
    scores = model.score(four[0], x, plan=parallel.split_batch(4))
    assert_close(scores, model.score(one[0], x), rtol=1e-4)


def check_nnx_modules_and_streams_that_share_batches():
    from flax import nnx

    class Encoder(nnx.Module):
        def __init__(self, *, rngs):
            options = {"use_bias": False, "rngs": rngs}
            self.first = nnx.Linear(10, 16, **options)
            self.norm = nnx.BatchNorm(16, use_scale=False, **options)
            self.second = nnx.Linear(16, 4, **options)

        def __call__(self, x):
            return self.second(nnx.relu(self.norm(self.first(x))))

    x = problem((10,)).x[:64]
    targets = np.resize([0, 0, 1, -1], 64)
    batches = [(x[i::4], targets[i::4]) for i in range(4)]
    stage = training.Stage(optax.adam(1e-3), epochs=3)
    method = deep_sad.DeepSAD(encoder=Encoder(rngs=nnx.Rngs(0)), train=stage)
    one, four = (
        method.fit(jax.random.key(0), batches, plan=plan)
        for plan in (None, parallel.split_batch(4))
    )
    assert_close(arrays_of(four), arrays_of(one), rtol=1e-4, atol=1e-5)


def check_nnx_modules_draw_for_each_device():
    from flax import nnx

    class Dropping(nnx.Module):
        def __init__(self, *, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(x)

    network, plan = modules.network(Dropping), parallel.split_batch(2)
    variables = network.init(jax.random.key(0), np.ones((1, 40)))

    def run(variables, rows):
        found, after = network.apply_train(variables, rows, jax.random.key(1))
        return parallel.gather(found), after

    found, after = plan.compile(run, split=1)(
        variables, plan.by_device(np.ones((2, 40), np.float32))
    )
    assert (found[0] != found[1]).any()
    rest, before = after["rest"], variables["rest"]
    assert {n: (rest[n] != before[n]).any() for n in rest} == {
        "drop/rngs/key": False,
        "drop/rngs/count": True,
    }


def runs_of_unlike_size(count):
    return [
        methods.Run(jax.random.key(seed), problem((6,), seed, size=60 + 3 * seed))
        for seed in range(count)
    ]


def check_many_runs():
    runs, method = runs_of_unlike_size(6), small_method(6)
    singles = [method.fit(run.key, run.data) for run in runs]
    # Six runs on four devices: two are padding.
    for together in (False, True):
        plan = parallel.Plan(4, many=True, together=together, shared_inputs=False)
        found = method.fit_many(runs, plan=plan)
        for single, several, run in zip(singles, found, runs, strict=True):
            scores = [model.score(one[0], run.data.x) for one in (several, single)]
            if not together:
                assert_equal(arrays_of(several), arrays_of(single))
                np.testing.assert_array_equal(*scores)
            # Side by side, batched matrix products sum in another order.
            differences = arrays_of(several)[:2], arrays_of(single)[:2]
            assert largest_difference(*differences) <= 2e-5
            assert_close(*scores, atol=1e-6)


def check_many_runs_of_the_same_rows():
    data = problem((6,))
    sets = [data._replace(indices=data.indices[::-1] + i) for i in range(3)]
    scaling = preprocessing.auto(data.x)
    runs = [methods.Run(jax.random.key(i), sets[i], scaling) for i in range(3)]
    method = deep_sad.DeepSAD(encoder=SMALL, train=STAGE)
    plan = method.plan_for(runs)
    assert plan == parallel.Plan(3, many=True, together=False, shared_inputs=True)
    for run, several in zip(runs, method.fit_many(runs, plan=plan), strict=True):
        single = method.fit(*run[:2], preprocessing=scaling)
        assert_equal(arrays_of(several), arrays_of(single))


def check_other_methods():
    """One device, four that share batches, and many runs, one by one or together."""
    runs = runs_of_unlike_size(3)
    for method in (
        classifier.Classifier(encoder=SMALL, train=STAGE),
        deep_sad.DeepSVDD(
            encoder=SMALL, loss="soft_boundary", train=STAGE, record_groups=True
        ),
    ):
        singles = [arrays_of(method.fit(run.key, run.data)) for run in runs]
        plan = parallel.split_batch(4)
        four = method.fit(runs[0].key, runs[0].data, plan=plan)
        assert_close(arrays_of(four), singles[0])
        for together, check in ((False, assert_equal), (True, assert_close)):
            plan = parallel.Plan(2, many=True, together=together, shared_inputs=False)
            found = map(arrays_of, method.fit_many(runs, plan=plan))
            for single, run in zip(singles, found, strict=True):
                check(run, single)


M1_M2 = generative.M1M2(encoder=SMALL, train=STAGE, pretrain=STAGE)


def check_generative_models_that_share_batches():
    check_shared_batches(M1_M2, (6,), 4)


def check_many_generative_runs():
    """To the bit with all effort of compiling alone: see `full_effort_test`."""
    runs = runs_of_unlike_size(3)
    plan = parallel.Plan(2, many=True, together=False, shared_inputs=False)
    for run, several in zip(runs, M1_M2.fit_many(runs, plan=plan), strict=True):
        assert_equal(arrays_of(several), arrays_of(M1_M2.fit(run.key, run.data)))


def check_m2_of_images():
    encoder = networks.ConvEncoder((8, 8, 1), (2,), 3)
    data, method = problem((8, 8, 1)), generative.M2(encoder=encoder, train=STAGE)
    one, four = (
        arrays_of(method.fit(jax.random.key(0), data, plan=plan))
        for plan in (None, parallel.split_batch(4))
    )
    assert_close(four, one)


def small_method(columns):
    decoder = networks.MLPDecoder((8,), columns)
    return deep_sad.DeepSAD(encoder=SMALL, decoder=decoder, train=STAGE, pretrain=STAGE)


def check_processes(address, process, path):
    jax.distributed.initialize(address, 2, int(process))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    with pytest.raises(ValueError, match="the 2 processes have 4 in all, and must use"):
        parallel.split_batch(2)
    data, plan = problem((21,)), parallel.split_batch()
    found, _ = small_method(21).fit(jax.random.key(3), data, plan=plan)
    scores = model.score(found, data.x, plan=plan)
    np.savez(path, scores=scores, center=found.variables["center"])


CHECKS = {name: check for name, check in globals().items() if name[:6] == "check_"}


def program(devices, *arguments):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def test_devices_agree():
    finish(
        program(
            8,
            "check_collectives",
            "check_perceptrons_that_share_batches",
            "check_many_runs",
            "check_many_runs_of_the_same_rows",
            "check_nnx_modules_and_streams_that_share_batches",
            "check_nnx_modules_draw_for_each_device",
            "check_images_that_share_batches",
            "check_stock_modules_that_share_batches",
            "check_other_methods",
            "check_generative_models_that_share_batches",
            "check_m2_of_images",
        )
    )


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    finish(
        *(
            program(2, "processes", address, str(i), str(path))
            for i, path in enumerate(paths)
        )
    )
    with np.load(paths[0]) as first, np.load(paths[1]) as second:
        np.testing.assert_array_equal(first["scores"], second["scores"])
        data, key = problem((21,)), jax.random.key(3)
        one, _ = small_method(21).fit(key, data)
        np.testing.assert_allclose(first["center"], one.variables["center"], atol=2e-5)
        expected = model.score(one, data.x)
        np.testing.assert_allclose(first["scores"], expected, rtol=1e-3, atol=1e-5)


def test_stacked_runs_come_back_in_their_order():
    plan = parallel.Plan(many=True)
    runs = [{"a": jnp.full((2, 3), i), "b": jnp.array(i)} for i in range(5)]
    stacked = parallel.stack(runs, plan)
    assert stacked["a"].shape == (1, 5, 2, 3)
    assert_equal(parallel.unstack(stacked, 5), jax.device_get(runs))


@pytest.mark.parametrize("many", [False, True])
def test_what_is_compiled_ahead_is_what_is_called(many, compiled):
    def double(x):
        return 2 * x

    plan = parallel.Plan(many=many, together=False)
    made = plan.compile(double, options={"xla_backend_optimization_level": 1})
    x = np.ones((1, 3, 5) if many else 5)
    assert compiled(lambda: made.lower(x).compile()) == ["jit(double)"]
    assert not compiled(made, x)


def test_impossible_plans_are_refused():
    for make in (parallel.Plan, parallel.split_batch):
        with pytest.raises(ValueError, match="devices is 1000; it must be from 1 to"):
            make(1000)
    with pytest.raises(ValueError, match="devices is 0; it must be from 1 to"):
        parallel.Plan(0, many=True)
    with pytest.raises(ValueError, match="convolutions is 'fast'; it must be one of"):
        parallel.Plan(many=True, convolutions="fast")


def test_many_runs_are_planned_for_the_backend():
    plan = parallel.many(5, shared_inputs=True, convolutional=False)
    assert plan == parallel.Plan(1, many=True, together=False, shared_inputs=True)
    assert parallel.many(1, shared_inputs=True, convolutional=False) is None
    assert parallel.many(5, shared_inputs=True, convolutional=True) is None
    assert parallel.one() == parallel.split_batch(1) == parallel.Plan()


if __name__ == "__main__":
    if sys.argv[1] == "processes":
        check_processes(*sys.argv[2:])
    else:
        for name in sys.argv[1:]:
            CHECKS[name]()
