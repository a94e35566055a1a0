import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from deepsad_jax import networks, torch_weights, training
from experiments import benchmark

ROOT = pathlib.Path(__file__).parents[1]


def test_the_command_measures_and_writes_json(tmp_path):
    path = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.benchmark", "--networks=thyroid_mlp"),
            *("--repeats=1", "--batches=2", "--runs=1,2", "--devices=1,2"),
            f"--json={path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["steps"]
    assert {(row["runs"], row["devices"]) for row in rows} == {
        *((1, 1), (1, 2), (2, 1), (2, 2))
    }
    for row in rows:
        time = 2 * row["step_ms"] / 1e3
        samples = 2 * 128 * row["runs"]
        assert row["samples_per_second"] == pytest.approx(samples / time, rel=1e-3)


@pytest.mark.parametrize(
    "network", ["mnist_LeNet", "fmnist_LeNet", "cifar10_LeNet", "cardio_mlp"]
)
def test_the_pytorch_opponent_computes_the_same_losses(network):
    torch = pytest.importorskip("torch")
    from experiments import torch_loop

    data = benchmark.synthetic(network, 16)
    opponent = torch_loop.TorchRun(network, np.asarray(data.x), data.semi_targets)
    state = {}
    # The opponent's layers, under the names of the original's state dict.
    ours = networks.build_autoencoder(network)
    spec = ours.architecture
    for part, module, entries in (
        ("encoder", opponent.encoder, torch_weights._encoder_entries(spec)),
        ("decoder", opponent.decoder, torch_weights._decoder_entries(spec)),
    ):
        weights = [p.detach().numpy() for p in module.parameters()]
        for entry in entries:
            if entry.collection == "params":
                match = next(i for i, w in enumerate(weights) if w.shape == entry.shape)
                state[f"{part}.{entry.key}"] = weights.pop(match)
            else:
                value = 0.0 if entry.path[1] == "mean" else 1.0
                state[f"{part}.{entry.key}"] = np.full(entry.shape, value)
    variables = torch_weights.from_state_dict(network, state)
    x = training.as_float(data.x)
    output, _ = ours.apply(variables, x, train=True, mutable=["batch_stats"])
    with torch.no_grad():
        loss = opponent.autoencoder_loss(torch.arange(16)).item()
    assert float(np.mean((output - x) ** 2)) == pytest.approx(loss, rel=1e-4)
