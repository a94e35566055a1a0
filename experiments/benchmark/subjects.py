"""What is measured, and how: functions in turn, on inputs of a network's shape."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepsad_jax import networks, parallel, training
from deepsad_jax.detectors import deep_sad


def in_turn(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each function, called one after the other, round by round."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(0.3)  # threads that wait for work may spin for a while
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def synthetic(network: str, size: int, seed: int = 0) -> training.TrainingSet:
    """Random inputs of a network's shape: bytes for images, one in ten labeled."""
    rng = np.random.default_rng(seed)
    shape = (size, *networks.pair(network).input_shape)
    if len(shape) == 4:
        x = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        x = rng.random(shape, np.float32)
    semi_targets = rng.choice([-1, 0, 1], size, p=[0.05, 0.9, 0.05])
    return training.training_set(x, semi_targets)


def method(network, stage, dtype="float32") -> deep_sad.DeepSAD:
    """Deep SAD with a stage for both."""
    return deep_sad.DeepSAD(network, train=stage, pretrain=stage, dtype=dtype)


def objective(stage, network, dtype) -> Any:
    """What a stage trains."""
    made = method(network, training.Stage(), str(jnp.dtype(dtype)))
    own, reconstruction = made.objectives(networks.pair(network).input_shape)
    return reconstruction if stage == "pretrain" else own


def torch_run(network, data) -> Any:
    """The PyTorch loop for a network, with as many threads as we have."""
    import torch

    from experiments.benchmark import torch_loop

    torch.set_num_threads(parallel.cores())
    return torch_loop.TorchRun(
        network, np.asarray(data.x), np.asarray(data.semi_targets)
    )
