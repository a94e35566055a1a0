"""The benchmark's command, and whether its opponent is a fair one."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import oracles
import pytest

from deepsad_jax import losses, networks, parallel, torch_weights, training
from experiments.benchmark import accelerator, subjects, whole

ROOT = pathlib.Path(__file__).parents[1]


def test_a_start_is_timed_from_the_command_to_its_exit():
    (row,) = whole.startup(1, "")
    assert row["rows"] == 700 and row["seconds"] > 0 and "ratio" not in row


def test_the_command_measures_and_writes_json(command, tmp_path):
    path = tmp_path / "figures.json"
    command(
        *("benchmark", "--networks=thyroid_mlp", "--repeats=1", "--batches=2"),
        *("--runs=1,2", "--devices=1,2", f"--json={path}"),
        JAX_NUM_CPU_DEVICES="2",
    )
    rows = json.loads(path.read_text())["steps"]
    assert {(row["runs"], row["devices"]) for row in rows} == {
        *((1, 1), (1, 2), (2, 1), (2, 2))
    }
    for row in rows:
        time = 2 * row["step_ms"] / 1e3
        samples = 2 * 128 * row["runs"]
        assert row["samples_per_second"] == pytest.approx(samples / time, rel=1e-3)


def test_the_suite_of_an_accelerator_needs_little_and_leaves_nothing_out(tmp_path):
    path = tmp_path / "figures.json"
    # What is beside JAX, Flax, Optax, Orbax and scikit-learn may be absent.
    absent = ("tqdm", "ml_collections", "matplotlib", "pandas", "torch", "tensorflow")
    absent = (*absent, "tensorflow_datasets", "jinja2", "cvxopt", "pyarrow", "grain")
    arguments = (
        *("--suite=accelerator", "--networks=thyroid_mlp", "--runs=2", "--sizes=60"),
        *("--batch_sizes=16,32", "--dtypes=float32", "--batches=2", "--repeats=1"),
        f"--json={path}",
    )
    program = f"""
import runpy, sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
sys.argv[1:] = {arguments!r}
runpy.run_module("experiments.benchmark", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert "left_out" not in found and "left_out" not in done.stdout
    stages = ["pretrain", "train"]
    single = [(row["batch_size"], row["stage"]) for row in found["single"]]
    assert single == [(size, stage) for size in (16, 32) for stage in stages]
    many = [(row["convolutions"], row["runs"], row["stage"]) for row in found["many"]]
    forms = parallel.CONVOLUTIONS
    assert many == [(form, 2, stage) for form in forms for stage in stages]
    assert all(row["program_mb"] > 0 for row in found["single"] + found["many"])
    assert [row["method"] for row in found["kernels"]] == ["ssad", "ocsvm", "kde"]
    assert all(row["seconds"] > 0 for row in found["kernels"])


def test_a_suite_begins_nothing_that_may_not_fit():
    now, told = [0.0], []

    def measurement(table, label, seconds):
        def rows():
            now[0] += seconds
            if seconds == 1:
                raise ValueError("no such device\nand more")
            return [{"label": label}]

        return accelerator.Measurement(table, label, rows)

    accelerator.within(
        iter(
            [
                measurement("single", "first", 20),  # the first may take a minute
                measurement("many", "fails", 1),
                measurement("single", "fits", 30),  # may take 40 s, 69 are left
                measurement("single", "does not", 5),  # may take 60 s, 39 are left
                measurement("kernels", "unknown", 5),
                measurement("many", "short", 2),  # may take 2 s
            ]
        ),
        90.0,
        lambda table, rows: told.append((table, rows)),
        lambda: now[0],
    )
    late = "no time is left for it"
    assert told == [
        ("single", [{"label": "first"}]),
        ("left_out", [{"what": "fails", "why": "ValueError: no such device"}]),
        ("single", [{"label": "fits"}]),
        ("left_out", [{"what": "does not", "why": late}]),
        ("left_out", [{"what": "unknown", "why": late}]),
        ("many", [{"label": "short"}]),
    ]


def test_its_help_is_no_failure(command):
    assert "steps: one epoch of each stage" in command("benchmark", "--help")


@pytest.mark.parametrize(
    "network", ["mnist_LeNet", "fmnist_LeNet", "cifar10_LeNet", "cardio_mlp"]
)
def test_the_pytorch_opponent_computes_the_same_losses(network):
    torch = pytest.importorskip("torch")
    from experiments.benchmark import torch_loop

    data = subjects.synthetic(network, 48)
    opponent = torch_loop.TorchRun(network, data.x, data.semi_targets)
    # The original's weights, by their names for us, by their shapes for the opponent.
    state = {
        key.removeprefix("ae_init/"): value
        for key, value in oracles.load(network).items()
        if key.startswith("ae_init/")
    }
    for part in ("encoder", "decoder"):
        left = [k for k in state if k.startswith(part) and state[k].ndim > 1]
        for parameter in getattr(opponent, part).parameters():
            key = next(k for k in left if state[k].shape == tuple(parameter.shape))
            left.remove(key)
            parameter.data = torch.tensor(state[key])
        assert not left
    variables = torch_weights.from_state_dict(network, state)
    x, rows = training.as_float(data.x), torch.arange(48)
    pair = networks.pair(network)

    def apply(module, variables):
        call = functools.partial(module.apply, train=True, mutable=["batch_stats"])
        return jax.jit(call)(variables, x)[0]

    output = apply(pair.autoencoder, variables)
    codes = apply(pair.encoder, networks.encoder_variables(variables))
    per_example = losses.deep_sad_loss(
        codes, data.semi_targets, np.full(codes.shape[1], 0.1, np.float32)
    )
    with torch.no_grad():
        loss = opponent.autoencoder_loss(rows).item()
        assert float(np.mean((output - x) ** 2)) == pytest.approx(loss, rel=1e-4)
        loss = opponent.deep_sad_loss(rows).item()
        assert float(np.mean(per_example)) == pytest.approx(loss, rel=1e-4)
