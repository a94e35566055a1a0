"""Progress bars on the terminal and metrics of each epoch in a file."""

import json
import os
from typing import Any

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
