"""The memory of a process that trains and scores on tables of ever new shapes.

python tests/growth.py --shapes=100
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # as a program

import jax  # noqa: E402

import deepsad_jax as sad  # noqa: E402


def resident() -> int:
    """Bytes of memory that this process holds, on Linux."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fit_and_score(i: int) -> None:
    """Deep SAD with pretraining, on a table of the i-th shape."""
    rng = np.random.default_rng(i)
    x = rng.normal(size=(60 + i, 4 + i))
    data = sad.training.training_set(x, np.where(np.arange(len(x)) < 3, -1, 0))
    stage = sad.training.Stage(epochs=2, batch_size=16)
    fitted, _ = sad.fit(jax.random.key(i), data, train=stage, pretrain=stage)
    assert np.isfinite(sad.score(fitted, x)).all()


def curve(shapes: int) -> list[int]:
    """Bytes after each of so many shapes."""
    found = []
    for i in range(shapes):
        fit_and_score(i)
        found.append(resident())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=100)
    arguments = parser.parse_args()
    began = time.time()
    for i in range(arguments.shapes):
        fit_and_score(i)
        if i % 5 == 4:
            seconds = time.time() - began
            print(
                f"{i + 1:4d} {resident() / 2**20:8.0f} MiB  {seconds:.0f} s", flush=True
            )
