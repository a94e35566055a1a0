"""What convolutions of many runs side by side are computed as: measured, once.

Which of `parallel.CONVOLUTIONS` is the fastest depends on the accelerator, on the
network and on how many runs there are. Where JAX keeps compiled programs, the answer is
kept beside them.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from deepsad_jax import epochs, forward, parallel, training, writing

FILE = "convolutions.json"
_STEPS, _REPEATS = 8, 5


def fastest(
    plan: parallel.Plan,
    objectives: Sequence[Any],
    shape: tuple[int, ...],
    batch_size: int,
    runs: int,
) -> parallel.Plan:
    """The plan with the convolutions whose steps take the least time here.

    It is as it was where JAX keeps no compiled programs on disk
    (`jax_compilation_cache_dir`): measuring takes longer than a small fit, and each
    process would do so again.

    Args:
        plan: of many runs, side by side on each device.
        objectives: what is trained, in stages of as many steps; those without
            convolutions, or with others than those of `layers`, do not count.
        shape: of an example.
        batch_size: of a run.
        runs: how many there are, on all devices together.
    """
    folder = jax.config.jax_compilation_cache_dir
    objectives = [each for each in objectives if _has_a_choice(each, shape)]
    if not objectives or not folder or "://" in folder:
        return plan
    path, share = pathlib.Path(folder, FILE), -(-runs // plan.devices)
    name = _name(objectives, shape, batch_size, share)
    kept = _read(path).get(name)
    if kept not in parallel.CONVOLUTIONS:
        taken = {}
        for form in parallel.CONVOLUTIONS:
            tried = dataclasses.replace(plan, convolutions=form)
            arguments = (tried, shape, batch_size, share)
            taken[form] = sum(step_seconds(each, *arguments) for each in objectives)
        kept = min(taken, key=taken.__getitem__)
        if taken[kept] == math.inf:
            return plan  # training will say why
        logging.getLogger(__name__).info("seconds of a step of %s: %s", name, taken)
        with contextlib.suppress(OSError), writing.atomic(path) as file:
            content = _read(path) | {name: kept}  # others may have written meanwhile
            file.write(json.dumps(content, indent=2, sort_keys=True).encode())
    return dataclasses.replace(plan, convolutions=kept)


def _has_a_choice(objective: Any, shape: tuple[int, ...]) -> bool:
    """Whether it has convolutions, and all of them are what a plan says."""
    is_convolutional = forward.is_convolutional
    otherwise = parallel.computed_as(is_convolutional.__wrapped__, "patches")
    return is_convolutional(objective, shape) and not otherwise(objective, shape)


def step_seconds(
    objective: Any,
    plan: parallel.Plan,
    shape: tuple[int, ...],
    batch_size: int,
    runs: int,
) -> float:
    """Median seconds of a step of runs side by side on one device, once it is compiled.

    Infinite, if they do not fit into the memory.
    """
    plan = dataclasses.replace(plan, devices=1, shared_inputs=True)
    rows = np.arange(_STEPS * batch_size) % 2
    data = training.training_set(np.zeros((2, *shape), np.float32), indices=rows)
    trainer = epochs.Trainer(
        *([jax.random.key(0)] * runs, [data] * runs, plan, ("train",))
    )
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), forward.initial(objective, shape)
    )
    stage, times = training.Stage(epochs=1, batch_size=batch_size), []
    try:
        variables = trainer.put([variables] * runs)
        for _ in range(1 + _REPEATS):
            trainer.run("train", objective, stage, variables, lambda *_: None)
            times.append(trainer.seconds["train"] * runs / _STEPS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    return statistics.median(times[1:])  # the first has compiled


def _name(objectives, shape, batch_size, share) -> str:
    """What an answer holds for; the networks' dtypes are part of what they say."""
    content = re.sub(r" at 0x[0-9a-f]+", "", repr((list(objectives), shape)))
    return (
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {share} runs, "
        f"batch_size {batch_size}, {hashlib.sha256(content.encode()).hexdigest()[:16]}"
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """What is remembered: nothing, where the file is absent or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
