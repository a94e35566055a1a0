"""One device, many devices and many processes give the same numbers.

CPUs are made to look like several devices, which has to be said before JAX starts: the
checks run in processes of their own (this file, called as a program).
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsad_jax import deep_sad, dgm, networks, parallel, supervised, training

STAGE = training.Optimization(1e-3, epochs=3, milestones=(2,), batch_size=16)


def problem(network, seed=0, size=70):
    rng = np.random.default_rng(seed)
    shape = networks.resolve(network).input_shape
    x = rng.random((90, *shape), np.float32)
    data = training.training_set(x, rng.integers(-1, 2, size), np.arange(size))
    return training.padded(data, 80)


def fit(network, key, data, execution):
    return deep_sad.fit(
        key, data, network=network, train=STAGE, pretrain=STAGE, execution=execution
    )


def largest_difference(a, b):
    a, b = ((m.encoder, m.center, m.autoencoder) for m in (a, b))
    differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(differences))


def check_data_parallel(network, per_step):
    data, key = problem(network), jax.random.key(3)
    one = fit(network, key, data, parallel.Execution(per_step=per_step))
    for devices in (4, 8):
        execution = parallel.Execution(per_step=per_step, devices=devices)
        several = fit(network, key, data, execution)
        # Sums over the batch in another order; Adam's steps are 1e-3.
        print(network, per_step, devices, largest_difference(one, several))
        assert largest_difference(one, several) < 2e-5
        scores = deep_sad.score(several, data.x, execution=execution)
        expected = deep_sad.score(one, data.x)
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)


def check_run_parallel(network, together, tolerance):
    runs = [problem(network, seed, size=60 + 3 * seed) for seed in range(6)]
    keys = [jax.random.key(seed) for seed in range(6)]
    singles = [
        fit(network, key, data, parallel.Execution())
        for key, data in zip(keys, runs, strict=True)
    ]
    # Six runs on four devices: two are padding.
    execution = parallel.Execution(
        many=True, together=together, shared_inputs=False, devices=4
    )
    many = fit(
        network,
        parallel.stack(keys, execution),
        parallel.stack(runs, execution),
        execution,
    )
    x = parallel.stack([data.x for data in runs], execution)
    scores = parallel.unstack(deep_sad.score(many, x, execution=execution), 6)
    many = parallel.unstack(many.replace(history={}, seconds={}), 6)
    for single, run, data, score in zip(singles, many, runs, scores, strict=True):
        assert largest_difference(single, run) <= tolerance
        expected = deep_sad.score(single, data.x)
        np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-6)


def check_shared_inputs():
    network = "thyroid_mlp"
    runs = [problem(network) for _ in range(3)]
    runs = [run._replace(indices=run.indices[::-1] + i) for i, run in enumerate(runs)]
    keys = [jax.random.key(seed) for seed in range(3)]
    execution = parallel.Execution(many=True, together=False, devices=2)
    data = parallel.stack([run._replace(x=0) for run in runs], execution)
    many = fit(
        network,
        parallel.stack(keys, execution),
        data._replace(x=runs[0].x),
        execution,
    )
    many = parallel.unstack(many.replace(history={}, seconds={}), 3)
    for key, data, run in zip(keys, runs, many, strict=True):
        single = fit(network, key, data, parallel.Execution())
        assert largest_difference(single, run) == 0.0


def fit_other(method, network, key, data, execution):
    options = {"network": network, "train": STAGE, "execution": execution}
    if method == "supervised":
        return supervised.fit(key, data, **options), supervised.score
    if method in dgm.METHODS:
        model = dgm.fit(key, data, method=method, pretrain=STAGE, **options)
        return model, dgm.score
    options |= {"loss": method, "record_groups": True, "pretrain": STAGE}
    return deep_sad.fit(key, data, **options), deep_sad.score


def arrays_of(model):
    return model.replace(seconds={})


def check_methods(network, per_step, methods):
    """Other methods than Deep SAD: one device, four that share batches, many runs."""
    keys = [jax.random.key(seed) for seed in range(3)]
    runs = [problem(network, seed, size=60 + 3 * seed) for seed in range(3)]
    for method in methods:
        one = parallel.Execution(per_step=per_step)
        singles = []
        for key, data in zip(keys, runs, strict=True):
            model, score = fit_other(method, network, key, data, one)
            singles.append((arrays_of(model), score(model, data.x, execution=one)))
        four = parallel.Execution(per_step=per_step, devices=4)
        model, _ = fit_other(method, network, keys[0], runs[0], four)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            arrays_of(model),
            singles[0][0],
        )
        if per_step:
            continue
        for together in (False, True):
            many = parallel.Execution(
                many=True, together=together, shared_inputs=False, devices=2
            )
            stacked = parallel.stack(runs, many)
            keys_of_runs = parallel.stack(keys, many)
            model, _ = fit_other(method, network, keys_of_runs, stacked, many)
            scores = parallel.unstack(score(model, stacked.x, execution=many), 3)
            # Side by side, batched matrix products sum in another order.
            tolerance = {"rtol": 1e-3, "atol": 1e-4} if together else {"rtol": 0}
            for single, run, found in zip(
                singles, parallel.unstack(arrays_of(model), 3), scores, strict=True
            ):
                jax.tree.map(
                    functools.partial(np.testing.assert_allclose, **tolerance),
                    (run, found),
                    single,
                )


def check_processes(address, process, path):
    jax.distributed.initialize(address, 2, process)
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    data, key = problem("cardio_mlp"), jax.random.key(3)
    execution = parallel.for_one_run(False, devices=jax.device_count())
    several = fit("cardio_mlp", key, data, execution)
    scores = deep_sad.score(several, data.x, execution=execution)
    np.savez(path, scores=scores, center=several.center)


def program(devices, *arguments):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


@pytest.mark.parametrize(
    "check",
    [
        "check_data_parallel('cardio_mlp', False)",
        "check_data_parallel('digits_LeNet', True)",
        "check_run_parallel('thyroid_mlp', False, 0.0)",  # the same bits
        # Batched matrix products sum in another order.
        "check_run_parallel('thyroid_mlp', True, 2e-5)",
        "check_shared_inputs()",
        "check_methods('thyroid_mlp', False, ['m1_m2', 'supervised'])",
        "check_methods('thyroid_mlp', False, ['soft_boundary'])",
        "check_methods('digits_LeNet', True, ['m2'])",
    ],
)
def test_devices_agree(check):
    finish(program(8, check))


def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    finish(
        *(
            program(2, f"check_processes('{address}', {i}, '{tmp_path}/{i}.npz')")
            for i in range(2)
        )
    )
    with np.load(tmp_path / "0.npz") as first, np.load(tmp_path / "1.npz") as second:
        np.testing.assert_array_equal(first["scores"], second["scores"])
        data, key = problem("cardio_mlp"), jax.random.key(3)
        one = fit("cardio_mlp", key, data, parallel.Execution())
        np.testing.assert_allclose(first["center"], one.center, atol=2e-5)
        expected = deep_sad.score(one, data.x)
        np.testing.assert_allclose(first["scores"], expected, rtol=1e-3, atol=1e-5)


def test_stacked_runs_come_back_in_their_order():
    execution = parallel.Execution(many=True)
    runs = [{"a": jnp.full((2, 3), i), "b": jnp.array(i)} for i in range(5)]
    stacked = parallel.stack(runs, execution)
    assert stacked["a"].shape == (1, 5, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, parallel.unstack(stacked, 5), runs)


def test_impossible_executions_are_refused():
    with pytest.raises(ValueError, match="many runs train in one loop"):
        parallel.Execution(per_step=True, many=True)
    with pytest.raises(ValueError, match="devices is 1000; it must be from 1 to"):
        parallel.Execution(devices=1000)


if __name__ == "__main__":
    eval(sys.argv[1])
