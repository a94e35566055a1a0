"""Epochs from files against epochs from memory."""

import pathlib
import tempfile

import numpy as np

from deepsad_jax import parallel, preprocessing, streams, training
from experiments.benchmark import subjects


def stream(network: str, size: int, batch_size: int, repeats: int) -> list[dict]:
    """Rows a second of an epoch from memory and from `.npy` files, in turn.

    Args:
        network: of the paper, by name.
        size: rows.
        batch_size: of both.
        repeats: how often each is timed.
    """
    found, data = [], subjects.synthetic(network, size)
    stage = training.Stage(batch_size=batch_size, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("x.npy", "semi_targets.npy")]
        for path, array in zip(files, (data.x, data.semi_targets), strict=True):
            np.save(path, array)
        scaling = streams.scaling_of(data.x)
        kinds = {
            "memory": data._replace(x=preprocessing.prepared(scaling, data.x)),
            "stream": streams.Stored(streams.OnDisk(*files), scaling),
        }
        for name in subjects.STAGES:
            objective = subjects.objective(name, network, "float32")
            contest = {
                kind: subjects.Epochs(objective, [one], stage, parallel.one())
                for kind, one in kinds.items()
            }
            for epoch in contest.values():
                epoch()  # compiles
            seconds = subjects.in_turn(contest, repeats)
            rates = {kind: round(size / s) for kind, s in seconds.items()}
            found.append(
                {
                    "network": network,
                    "stage": name,
                    "rows": size,
                    "columns": int(np.prod(data.x.shape[1:])),
                    "batch_size": batch_size,
                    "memory_rows_per_second": rates["memory"],
                    "stream_rows_per_second": rates["stream"],
                    "ratio": seconds["memory"] / seconds["stream"],
                }
            )
    return found
