"""What a method is: a frozen dataclass of options that checks, and fits runs of it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

Observe = Callable[[str, int, dict[str, np.ndarray]], None]


class Run(NamedTuple):
    """One run of a method.

    Attributes:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: a `training.TrainingSet` of raw rows; for networks also any iterable of
            batches `(x, semi_targets)`, of which one pass is one epoch.
        preprocessing: what becomes of raw rows; `preprocessing.auto` of the training
            rows by default. It travels with the model.
        seed: decides folds and draws of shallow methods.
        selection_set: for the selection test_auc, raw rows that are not trained on and
            their labels, 0 normal and 1 anomaly; see `selection.selection_rows`.
    """

    key: Any
    data: Any
    preprocessing: Any = None
    seed: int = 0
    selection_set: tuple[np.ndarray, np.ndarray] | None = None


class Record(NamedTuple):
    """What a fit tells beside its model.

    Attributes:
        history: for each stage, means over each epoch, `[epochs]` float32.
        seconds: for the same stages, the time they took, compilation included.
        notes: sentences on what was done in another way than usual.
        details: what else there is to tell, as JSON.
    """

    history: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)


class Method:
    """The base of all options. Subclasses are frozen dataclasses.

    Attributes:
        method: short name.
        uses_labels: whether what is learned depends on which anomalies are known.
    """

    method: ClassVar[str] = ""
    uses_labels: ClassVar[bool] = False

    def stages(self) -> dict[str, int]:
        """The stages with their epochs (or steps), in their order."""
        raise NotImplementedError

    def check(self, run: Run, devices: int = 1) -> None:
        """Raises ValueError for options that do not fit the data of a run."""
        raise NotImplementedError

    def plan_for(self, runs: Sequence[Run]) -> Any:
        """The fastest `parallel.Plan` for many runs at once, or None for one by one."""
        del runs

    def fit_many(
        self,
        runs: Sequence[Run],
        *,
        plan: Any = None,
        observe: Observe | None = None,
        keeper: Any = None,
    ) -> list[tuple[Any, Record]]:
        """Fits runs that share these options.

        Args:
            runs: their data are of one shape.
            plan: devices; `parallel.split_batch(8)` shares each batch of a single run,
                `plan_for` tells how many are trained together.
            observe: called as `observe(stage, epochs done, history)`.
            keeper: a `checkpoints.Keeper` that saves the state of a single run, from
                which the same fit goes on after an interruption.

        Returns:
            For each run its model and its record.

        Raises:
            ValueError: if the data or an option does not fit; before anything runs.
            training.TrainingError: if training cannot go on.
        """
        raise NotImplementedError

    def fit(self, key: Any, data: Any, **options: Any) -> tuple[Any, Record]:
        """Fits one run; the options are those of `Run` and of `fit_many`."""
        own = {name: options.pop(name) for name in Run._fields if name in options}
        return self.fit_many([Run(key, data, **own)], **options)[0]
