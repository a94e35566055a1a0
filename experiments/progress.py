"""Progress bars on the terminal and metrics of each epoch in a file."""

import json
import math
import os
from typing import Any

import numpy as np

from deepsad_jax import console, writing
from experiments import workdir


def metric_lines(stage: str, history: dict[str, Any], first: int, last: int) -> str:
    """JSON lines with the metrics of the epochs `first` to `last - 1`."""
    lines = []
    for epoch in range(first, last):
        values = {
            name: float(series[epoch]) for name, series in sorted(history.items())
        }
        content = {"stage": stage, "epoch": epoch + 1, **values}
        lines.append(json.dumps(workdir.jsonable(content)) + "\n")
    return "".join(lines)


class OneRun(console.Stages):
    """Shows a bar for each stage of a run and writes its metrics as they come.

    Args:
        path: the `metrics.jsonl` to write.
        stages: the stages in their order, with their epochs or steps.
    """

    def __init__(self, path: str | os.PathLike, stages: dict[str, int]):
        self._path = path
        self._lines: list[str] = []
        super().__init__(stages)

    def __call__(self, stage: str, done: int, history: dict) -> None:
        if history:
            self._lines.append(metric_lines(stage, history, self.shown, done))
            with writing.atomic(self._path) as file:
                file.write("".join(self._lines).encode())
        super().__call__(stage, done, history)


class ManyRuns:
    """One bar over all epochs and steps of all runs of a sweep.

    Args:
        steps: how many there are.
    """

    def __init__(self, steps: int):
        self._bar = console.bar(steps, "sweep", "step")
        self._last: tuple[str, int] = ("", 0)

    def __call__(self, stage: str, done: int, history: dict) -> None:
        """Takes what a fit, of one or many runs, tells its observer."""
        # Many runs in one program have leading axes, which may be filled up.
        series = next(iter(history.values()), np.zeros(1))
        runs = math.prod(np.shape(series)[:-1])
        last_stage, last_done = self._last
        fresh = done - (last_done if stage == last_stage and done > last_done else 0)
        self._last = (stage, done)
        self._bar.update(fresh * min(runs, self._runs))

    def starts(self, runs: int) -> None:
        """Says how many runs the next calls speak of, all at once or in turn."""
        self._runs = runs
        self._last = ("", 0)

    def close(self) -> None:
        self._bar.close()
