"""Progress bars on the terminal and metrics of each epoch in a file."""

import itertools
import json
import os
import sys
from typing import Any

import tqdm

from experiments import workdir

_newest: tqdm.tqdm | None = None


_OF_RUNS = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"


def bar(total: float, label: str, unit: str, **options: Any) -> tqdm.tqdm:
    """A progress bar with an estimate of the time left."""
    global _newest
    _newest = tqdm.tqdm(
        total=total,
        desc=f"{label:9s}",
        unit=unit,
        dynamic_ncols=True,
        # In a log file, a line now and then is enough.
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        **options,
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
    """One bar over all runs of a grid.

    Args:
        total: the sum of what the runs weigh, such as their steps or seconds.
        runs: how many there are.
    """

    def __init__(self, total: float, runs: int):
        self._bar = bar(total, "runs", "", bar_format=_OF_RUNS)
        self._done, self._runs, self._weight, self._place = 0, runs, 0.0, 0.0
        self.starts(0, {}, 0.0)

    def __call__(self, stage: str, done: int, history: dict) -> None:
        """Takes what a fit, of one or many runs, tells its observer."""
        del history
        place = (self._before[stage] + done) / self._steps
        self._move(self._weight * (place - self._place))
        self._place = place

    def starts(self, runs: int, stages: dict[str, int], weight: float) -> None:
        """Says of how many runs, with which stages, the next calls speak.

        Those of the call before are finished.
        """
        self._move(self._weight * (1 - self._place))
        self._place = 0.0
        before = [0, *itertools.accumulate(stages.values())]
        self._before, self._steps = dict(zip(stages, before, strict=False)), before[-1]
        self._weight = weight
        self._bar.set_postfix_str(f"{self._done} of {self._runs} runs")
        self._done += runs

    def _move(self, weight: float) -> None:
        self._bar.update(min(weight, self._bar.total - self._bar.n))  # rounding

    def skip(self, runs: int, weight: float) -> None:
        """Runs that others have finished."""
        self._done += runs
        self._move(weight)

    def close(self) -> None:
        self._bar.close()
