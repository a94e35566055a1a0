"""Progress bars on the terminal and metrics of each epoch in a file."""

import json
import math
import os
import sys
from typing import Any

import numpy as np
import tqdm

from experiments import workdir

_newest: tqdm.tqdm | None = None


def bar(total: int, label: str, unit: str) -> tqdm.tqdm:
    """A progress bar with an estimate of the time left."""
    global _newest
    _newest = tqdm.tqdm(
        total=total,
        desc=f"{label:9s}",
        unit=unit,
        dynamic_ncols=True,
        # In a log file, a line now and then is enough.
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
    return _newest


def is_shown() -> bool:
    """Whether the cursor stands behind a bar."""
    return _newest is not None and not _newest.disable


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


class OneRun:
    """Shows a bar for each stage of a run and writes its metrics as they come.

    Args:
        path: the `metrics.jsonl` to write.
        stages: the stages in their order, with their epochs or steps.
    """

    def __init__(self, path: str | os.PathLike, stages: dict[str, int]):
        self._path = path
        self._waiting = dict(stages)
        self._bar = None
        self._lines: list[str] = []
        self._next_stage()

    def __call__(self, stage: str, done: int, history: dict) -> None:
        """Takes what a fit tells its observer; steps have no history."""
        if history:
            self._lines.append(metric_lines(stage, history, self._bar.n, done))
            with workdir.atomic(self._path) as file:
                file.write("".join(self._lines).encode())
            if "loss" in history:
                loss = history["loss"][done - 1]
                self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(done - self._bar.n)
        if done == self._bar.total:
            self._next_stage()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _next_stage(self) -> None:
        self.close()
        self._bar = None
        while self._waiting and self._bar is None:
            stage = next(iter(self._waiting))
            epochs = self._waiting.pop(stage)
            if epochs:  # shown before it has compiled
                self._bar = bar(epochs, stage, "step" if stage == "fit" else "epoch")


class ManyRuns:
    """One bar over all epochs and steps of all runs of a sweep.

    Args:
        steps: how many there are.
    """

    def __init__(self, steps: int):
        self._bar = bar(steps, "sweep", "step")
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
