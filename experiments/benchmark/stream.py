"""Epochs from files against epochs from memory."""

import pathlib
import tempfile
from collections.abc import Callable

import jax
import numpy as np

from deepsad_jax import epochs, parallel, preprocessing, streams, training


class Epochs:
    """Epochs of an objective on a training set or a stream, after compilation."""

    def __init__(self, objective, data, stage):
        plan, key = parallel.one(), jax.random.key(0)
        trainer = epochs.Trainer([key], [data], plan, ("train",))
        (start,) = trainer.take(trainer.init(objective, "train"))
        if "center" in start:
            start = {**start, "center": np.full_like(start["center"], 0.1)}
        conv = epochs.is_convolutional(objective, trainer.shape)
        programs = epochs.Programs(objective, stage, plan, conv)
        self._state = programs.start(start)
        self._arguments = (trainer.data, trainer.keys["train"], 0, 1)
        is_stream = isinstance(data, streams.Stream)
        self._advance = programs.advance_stream if is_stream else programs.advance

    def __call__(self):
        self._state, _ = self._advance(self._state, *self._arguments)
        jax.block_until_ready(self._state)


def stream(
    data: training.TrainingSet,
    objectives: dict[str, object],
    batch_size: int,
    in_turn: Callable,
    repeats: int,
) -> list[dict]:
    """Rows a second of an epoch from memory and from `.npy` files, in turn.

    Args:
        data: what is written to the files, prepared.
        objectives: what is trained, by the name of the stage.
        batch_size: of both.
        in_turn: median seconds of functions, by `(functions, repeats)`.
        repeats: how often each is timed.
    """
    found = []
    stage = training.Stage(batch_size=batch_size, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("x.npy", "semi_targets.npy")]
        for path, array in zip(files, (data.x, data.semi_targets), strict=True):
            np.save(path, array)
        scaling = streams.scaling_of(data.x)
        ready = data._replace(x=preprocessing.prepared(scaling, data.x))
        stored = streams.Stored(streams.OnDisk(*files), scaling)
        for name, objective in objectives.items():
            contest = {
                "memory": Epochs(objective, ready, stage),
                "stream": Epochs(objective, stored, stage),
            }
            for epoch in contest.values():
                epoch()  # compiles
            seconds = in_turn(contest, repeats)
            rates = {kind: round(data.size / s) for kind, s in seconds.items()}
            found.append(
                {
                    "stage": name,
                    "rows": int(data.size),
                    "columns": int(np.prod(data.x.shape[1:])),
                    "batch_size": batch_size,
                    "memory_rows_per_second": rates["memory"],
                    "stream_rows_per_second": rates["stream"],
                    "ratio": seconds["memory"] / seconds["stream"],
                }
            )
    return found
