"""The benchmark's command, and whether its opponent is a fair one."""

import functools
import json

import jax
import numpy as np
import oracles
import pytest

from deepsad_jax import losses, networks, torch_weights, training
from experiments.benchmark import subjects


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
