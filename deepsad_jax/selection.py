"""Shallow detectors: one fit for all, and one number of each chosen from a grid.

What chooses the number, a kernel's gamma or a bandwidth:

    none            it is given, or a rule of thumb says it
    likelihood      of held-out training examples (kernel densities)
    train_labels    AUROC of known anomalies in held-out folds of the training set
    test_auc        AUROC on a tenth of the test set, as in Deep SAD's paper; only for
                    those who hand over that tenth, since it looks at test labels

What all values share (distances, kernel matrices) is computed once.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from deepsad_jax import forward, kernels, methods, metrics

SHARE, FOLDS = 0.1, 5
# The stage and its steps: percent of the work.
STAGE, STEPS = "train", 100
# Rows of which the time for all is told, as kernel matrices of float32.
_TIMED = 4608

# An objective and its variables.
Fitted = tuple[Any, dict[str, Any]]


class Shallow(methods.Method):
    """The base of the options of a detector that is fitted to rows of numbers.

    A subclass is a frozen dataclass that defines `check_options`, `default` and
    `prepare`.

    Attributes:
        parameter: name of the number that is chosen.
        selections: ways to choose it.
        preferred: the way where `selection` is "".
        candidates: values to choose from.
        advice: for those who have many rows.
        selection: the way that is asked for.
    """

    parameter: ClassVar[str] = ""
    selections: ClassVar[tuple[str, ...]] = ("none",)
    preferred: ClassVar[str] = "none"
    candidates: ClassVar[np.ndarray] = np.array([])
    advice: ClassVar[str] = "fewer rows are faster"
    selection: str

    def check_options(self, semi_targets: np.ndarray) -> None:
        """Raises ValueError for options that are wrong, or wrong for these labels."""
        raise NotImplementedError

    def default(self, x: np.ndarray, seed: int) -> float:
        """The number where nothing chooses it."""
        raise NotImplementedError

    def prepare(
        self,
        x: np.ndarray,
        semi_targets: np.ndarray,
        seed: int,
        tell: Callable[[float], None] | None = None,
    ) -> Callable[[float], Fitted]:
        """A function of the number that fits to rows `[n, D]`.

        A fit that takes long calls `tell` with the share of it that is done.
        """
        raise NotImplementedError

    def seconds(
        self, x: np.ndarray, semi_targets: np.ndarray, seed: int, by: str
    ) -> float:
        """About how long many rows will take, 0 if not long; `by` chooses."""
        del x, semi_targets, seed, by
        return 0.0

    def grid(
        self, fit: Callable[[float], Fitted], rows: np.ndarray
    ) -> Iterator[tuple[Fitted, np.ndarray]]:
        """For each candidate what is fitted, and its scores of other rows."""
        for value in self.candidates:
            objective, variables = fitted = fit(value)
            with jax.enable_x64(True):
                scores = forward.evaluate(objective, "score", variables, rows)
            yield fitted, scores

    def likelihood(
        self, x: np.ndarray, tell: Callable[[float], None] | None = None
    ) -> np.ndarray:
        """For each candidate the likelihood of held-out rows; of densities."""
        raise NotImplementedError

    def chosen_by(self, semi_targets: np.ndarray | None) -> str:
        """The way that chooses the number; None for labels that are not yet known."""
        if self.selection:
            return self.selection
        if getattr(self, self.parameter, 0):
            return "none"  # it is given
        few = semi_targets is not None and np.sum(semi_targets == -1) < 2
        few_labels = self.preferred == "train_labels" and few
        return "none" if few_labels else self.preferred

    def stages(self) -> dict[str, int]:
        """The stage and its steps, percent of the work."""
        return {STAGE: STEPS}

    def check(self, run: methods.Run, devices: int = 1) -> None:
        del devices
        self.check_labels(examples(run.data)[1], run.seed)

    def check_labels(self, semi_targets: np.ndarray, seed: int = 0) -> None:
        """As `check`, of the semi_targets of the training examples alone."""
        by = self.chosen_by(semi_targets)
        if self.selection not in ("", *self.selections):
            raise ValueError(
                f"selection is {self.selection!r}; for {self.method} it must be one of "
                f'{", ".join(self.selections)}, or "" for what suits the data'
            )
        given = getattr(self, self.parameter, 0)
        if given and by != "none":
            raise ValueError(
                f"{self.parameter} is {given}, but selection {by} would choose it; "
                "leave out one of the two"
            )
        known = int(np.sum(semi_targets == -1))
        others = len(semi_targets) - known
        if by == "train_labels" and known < 2:
            raise ValueError(
                f"selection train_labels needs at least 2 known anomalies, but there "
                f"are {known}; label more or choose none"
            )
        if by == "train_labels" and others < min(FOLDS, known):
            raise ValueError(
                f"selection train_labels needs at least {min(FOLDS, known)} examples "
                f"that are not known anomalies, but there are {others}; choose none"
            )
        if by == "likelihood" and len(semi_targets) < 2:
            raise ValueError(
                f"selection likelihood needs at least 2 training examples, but there "
                f"are {len(semi_targets)}; choose none"
            )
        self.check_options(semi_targets)
        if by == "train_labels":
            for train, _ in folds(semi_targets, seed):
                self.check_options(semi_targets[train])

    def fit_many(self, runs, *, plan=None, observe=None, keeper=None):
        """Fits one run after the other; all but SSAD see no labels.

        The records say under "selection" how the number was chosen.
        """
        del plan, keeper
        return [self._fit(run, observe) for run in runs]

    def _fit(self, run, observe):
        from deepsad_jax import model
        from deepsad_jax import preprocessing as preprocessings

        x, semi_targets = examples(run.data)
        scaling = run.preprocessing or preprocessings.auto(x)
        x = scaling.check(x, "x")
        selection_set = run.selection_set
        if selection_set is not None:
            few, labels = selection_set
            few = scaling.check(few, "selection_set", x.shape[1:])
            selection_set = as_table(scaling(few)), labels
        began = time.perf_counter()
        options = {"seed": run.seed, "observe": observe, "selection_set": selection_set}
        fitted, found = self.fit_rows(as_table(scaling(x)), semi_targets, **options)
        made = model.make(self.method, *fitted, scaling, x.shape[1:])
        seconds, details = {STAGE: time.perf_counter() - began}, {"selection": found}
        return made, methods.Record({}, seconds, self.notes(found), details)

    def notes(self, found: dict[str, Any]) -> tuple[str, ...]:
        """What a user should know of a choice."""
        if self.selection in ("", found["by"]):
            return ()
        return (f"selection {self.selection} had no {self.parameter} to choose",)

    def fit_rows(
        self,
        x: np.ndarray,
        semi_targets: np.ndarray,
        *,
        seed: int = 0,
        observe: Callable | None = None,
        selection_set: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[Fitted, dict[str, Any]]:
        """Fits to rows `[n, D]` as they are; see `fit`.

        Returns:
            What is fitted, and how its number was chosen, for JSON: `by`, `parameter`
            and `value`, from a grid also `candidates` and `criterion`, and `examples`
            for test_auc.
        """
        self.check_labels(semi_targets, seed)
        by = self.chosen_by(semi_targets)
        _check_selection_set(self.selection, selection_set)
        tell = _Teller(observe)
        if not kernels.keeps(len(x)):
            self._announce(x, semi_targets, seed, by)
        found = {"by": by, "parameter": self.parameter}
        fitted, best, criterion, last = None, -np.inf, None, 1.0
        if by == "test_auc":
            rows, labels = selection_set
            found["examples"], criterion = len(rows), []
            fit = self.prepare(x, semi_targets, seed)
            for candidate, scores in self.grid(fit, rows):
                criterion.append(metrics.auroc(labels, scores))
                if criterion[-1] > best:
                    fitted, best = candidate, criterion[-1]
                tell(len(criterion) / len(self.candidates))
        elif by == "train_labels":
            last = 1 / (FOLDS * len(self.candidates))
            criterion = self._held_out(x, semi_targets, seed, tell.until(1 - last))
        elif by == "likelihood":
            last = 1 / STEPS
            criterion = self.likelihood(x, tell.until(1 - last))
        if criterion is None:
            found["value"] = self.default(x, seed)
        else:
            found["value"] = float(self.candidates[int(np.argmax(criterion))])
            found["candidates"] = [float(value) for value in self.candidates]
            found["criterion"] = [float(value) for value in criterion]
        if fitted is None:
            rest = lambda share: tell(1 - last * (1 - share))  # noqa: E731
            fitted = self.prepare(x, semi_targets, seed, rest)(found["value"])
        tell(1.0)
        return fitted, found

    def _announce(self, x, semi_targets, seed, by) -> None:
        """Says beforehand how long very many rows will take, if they do."""
        if not (seconds := self.seconds(x, semi_targets, seed, by)):
            return
        gigabytes = kernels.matrix_size(len(x)) / 1e9
        takes = "a time that a few of them do not tell"
        takes = takes if np.isnan(seconds) else f"about {duration(seconds)}"
        warnings.warn(
            f"{self.method} compares each of {len(x)} rows with all others, which "
            f"will take {takes}: their kernel matrix of {gigabytes:.3g} GB is not "
            f"kept but computed whenever it is needed; {self.advice}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _held_out(self, x, semi_targets, seed, tell) -> np.ndarray:
        """Mean AUROC of known anomalies against all others in held-out folds."""
        labels = (semi_targets == -1).astype(int)
        splits, k = list(folds(semi_targets, seed)), len(self.candidates)
        aurocs = np.zeros((len(splits), k))
        for i, (train, held_out) in enumerate(splits):
            fit = self.prepare(x[train], semi_targets[train], seed)
            for j, (_, scores) in enumerate(self.grid(fit, x[held_out])):
                aurocs[i, j] = metrics.auroc(labels[held_out], scores)
                tell((i * k + j + 1) / aurocs.size)
        return np.mean(aurocs, axis=0)


class _Teller:
    """Tells an observer the percent of the work that is done, each number once."""

    def __init__(self, observe: Callable | None):
        self._observe, self._told = observe, 0

    def __call__(self, share: float) -> None:
        step = int(STEPS * share)
        if step > self._told and self._observe is not None:
            self._observe(STAGE, step, {})
            self._told = step

    def until(self, most: float) -> Callable[[float], None]:
        """The same for a part of the work, the first, of that share."""
        return lambda share: self(most * share)


def timed(fit: Callable, x: np.ndarray, seed: int, *arrays: np.ndarray) -> float:
    """Seconds that a fit takes which looks at all pairs of rows, from a few of them.

    NaN if these cannot be fitted, as where they have too few labels.
    """
    rows = np.random.default_rng(seed).permutation(len(x))[:_TIMED]
    few = [array[rows] for array in (x, *arrays)]
    try:
        jax.block_until_ready(fit(*few))  # compiles
        began = time.perf_counter()
        jax.block_until_ready(fit(*few))
    except ValueError:
        return np.nan
    return (time.perf_counter() - began) * (len(x) / len(rows)) ** 2


def duration(seconds: float) -> str:
    """A time in words, of two digits."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


def selection_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of a tenth of the test set, of both kinds, drawn by the seed.

    Args:
        labels: 0 normal, 1 anomaly, `[n]`.
        seed: of the draw.

    Returns:
        Sorted row numbers, at least one of each kind that there is.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        parts.append(rows[: max(1, int(SHARE * len(rows)))])
    return np.sort(np.concatenate(parts))


def folds(
    semi_targets: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows held out, with known anomalies in each of them."""
    import sklearn.model_selection

    labels = (semi_targets == -1).astype(int)
    splitter = sklearn.model_selection.StratifiedKFold(
        min(FOLDS, int(labels.sum())), shuffle=True, random_state=seed
    )
    return splitter.split(labels, labels)


def as_table(x: np.ndarray) -> np.ndarray:
    """Preprocessed examples `[n, ...]` as rows `[n, D]` float32."""
    return np.asarray(x, np.float32).reshape(len(x), -1)


def _check_selection_set(selection, selection_set) -> None:
    if (selection == "test_auc") != (selection_set is not None):
        raise ValueError(
            f"selection_set is {'not ' if selection_set is None else ''}given, but "
            f"selection is {selection!r}; test_auc alone, which looks at test labels, "
            "needs it"
        )
    if selection_set is None:
        return
    rows, labels = selection_set
    if np.shape(labels) != (len(rows),) or set(np.unique(labels)) != {0, 1}:
        raise ValueError(
            f"selection_set has {len(rows)} rows and labels of shape "
            f"{np.shape(labels)} with {np.unique(labels)[:5].tolist()}; there must be "
            "one for each row, 0 normal or 1 anomaly, and some of both"
        )


def examples(data) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a `training.TrainingSet` that count, and their semi_targets."""
    size = int(data.size)
    x = np.asarray(data.x)[np.asarray(data.indices)[:size]]
    return x, np.asarray(data.semi_targets)[:size]
