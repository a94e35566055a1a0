"""Progress of the stages of a run: a bar on the terminal, a line per epoch in a
file."""

import json
import os
import sys

import numpy as np
import tqdm

from experiments import workdir


class Progress:
    """Called after every few epochs; use as a context manager.

    Args:
        path: the `metrics.jsonl` to append to, one line for each epoch.
        epochs: for each stage, in their order, how many epochs it has.
    """

    def __init__(self, path: str | os.PathLike, epochs: dict[str, int]):
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._epochs = epochs
        self._bars: dict[str, tqdm.tqdm] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        for bar in self._bars.values():
            bar.close()
        self._file.close()

    def start(self, stage: str) -> None:
        """Shows the bar of a stage, before it has compiled."""
        self._bar(stage)

    def __call__(self, stage: str, done: int, state, history: dict) -> None:
        """Takes what `deep_sad.fit` passes to `on_epochs`."""
        del state
        bar = self._bar(stage)
        for epoch in range(bar.n, done):
            values = {name: np.mean(v[..., epoch]) for name, v in history.items()}
            line = {"stage": stage, "epoch": epoch + 1, **values}
            self._file.write(json.dumps(workdir.jsonable(line)) + "\n")
        self._file.flush()
        loss = np.mean(history["loss"][..., done - 1])
        bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        bar.update(done - bar.n)
        if done == bar.total:
            bar.close()

    def _bar(self, stage: str) -> tqdm.tqdm:
        if stage not in self._bars:
            self._bars[stage] = tqdm.tqdm(
                total=self._epochs[stage],
                desc=f"{stage:9s}",
                unit="epoch",
                dynamic_ncols=True,
                # In a log file, a line now and then is enough.
                mininterval=0.2 if sys.stderr.isatty() else 10.0,
            )
        return self._bars[stage]
