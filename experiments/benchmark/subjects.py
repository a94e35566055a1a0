"""What is measured, and how: functions in turn, on inputs of a network's shape."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import epochs, forward, networks, parallel, streams, training
from deepsad_jax.detectors import deep_sad

STAGES = ("pretrain", "train")


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


class Epochs:
    """A stage of some runs, or of a stream: each call is an epoch.

    Args:
        objective: what is trained.
        sets: a training set for each run, or one stream.
        stage: optimizer and batch size.
        plan: devices.
    """

    def __init__(self, objective, sets, stage, plan):
        keys = [jax.random.key(i) for i in range(len(sets))]
        trainer = epochs.Trainer(keys, sets, plan, ("train",))
        starts = trainer.take(trainer.init(objective, "train"))
        if "center" in starts[0]:
            starts = [{**s, "center": np.full_like(s["center"], 0.1)} for s in starts]
        conv = forward.is_convolutional(objective, trainer.shape)
        self._programs = programs = epochs.Programs(objective, stage, plan, conv)
        self.state = programs.start(trainer.put(starts))
        self._arguments = (trainer.data, trainer.keys["train"], 0, 1)
        is_stream = isinstance(sets[0], streams.Stream)
        self._advance = programs.advance_stream if is_stream else programs.advance

    def program_mb(self) -> float | None:
        """Memory of the program of an epoch: what goes in and out, and between.

        Of one loop in one program; None for what is called step by step, and where
        devices share the batches. Compiles what the first call then finds compiled.
        """
        if self._programs.per_step or self._programs.plan.share > 1:
            return None
        lowered = self._programs.loop.lower(self.state, *self._arguments)
        found = lowered.compile().memory_analysis()
        sizes = (
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.temp_size_in_bytes,
            -found.alias_size_in_bytes,
        )
        return sum(sizes) / 1e6

    def __call__(self) -> None:
        self.state, _ = self._advance(self.state, *self._arguments)
        jax.block_until_ready(self.state)


def torch_run(network, data) -> Any:
    """The PyTorch loop for a network, with as many threads as we have."""
    import torch

    from experiments.benchmark import torch_loop

    torch.set_num_threads(parallel.cores())
    return torch_loop.TorchRun(
        network, np.asarray(data.x), np.asarray(data.semi_targets)
    )
