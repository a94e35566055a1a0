"""Batches from any iterable, for data that do not fit in memory or come from elsewhere.

    class Batches:                      # one pass is one epoch
        def __iter__(self):
            for rows in shuffled_rows():
                yield x[rows], semi_targets[rows]

Where the column ranges or the number of steps are not known, one more pass surveys the
data before training. What can be passed through only once is refused beforehand if it
is needed twice.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from deepsad_jax import checks, labels, preprocessing
from deepsad_jax.data import frames


class Stream:
    """A checked view of an iterable of batches `(x, semi_targets)`.

    Args:
        source: the iterable, or a function without arguments that returns a new
            iterator at each call.
        passes: how often the training itself will pass through it.
        needs_steps: whether the number of batches in a pass must be known.
        scaling: applied to `x`; None to find it in a survey.

    Attributes:
        example: the first rows, as they come; encoded, if they are a table.
        steps: number of batches in a pass, 0 if it was not needed.
        preprocessing: what is applied to `x`.
        has_anomalies: whether there are known anomalies, as far as it is known.

    Raises:
        ValueError: if it is not such an iterable, is empty, or can be passed through
            only once but is needed more often.
    """

    def __init__(
        self,
        source: Iterable | Callable[[], Iterator],
        *,
        passes: int,
        needs_steps: bool,
        scaling: preprocessing.Preprocessing | None = None,
    ):
        if not callable(source) and not hasattr(source, "__iter__"):
            raise ValueError(
                f"data is a {type(source).__name__}; it must be a training set from "
                "training.training_set, or an iterable of batches (x, semi_targets)"
            )
        self._source, self._begun = source, None
        has_length = hasattr(source, "__len__")
        surveys = scaling is None or (needs_steps and not has_length)
        if passes + surveys > 1 and isinstance(source, Iterator):
            raise ValueError(
                f"data can be passed through only once, but {passes + surveys} passes "
                "are needed (epochs, the center, and a survey of its values); give an "
                "iterable that starts anew, such as a class with __iter__, or a "
                "function that returns an iterator"
            )
        self.preprocessing, self.steps = scaling, len(source) if has_length else 0
        self.example: Any = None
        self.has_anomalies = True
        if surveys:
            self._survey(scaling)
        else:
            begun = self._pass()
            self._begun = itertools.chain([next(begun)], begun)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a prepared example."""
        return self.preprocessing.features(self.example.shape[1:])

    def _pass(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        source = self._source() if callable(self._source) else self._source
        if not hasattr(source, "__iter__"):
            raise ValueError(
                f"data returns a {type(source).__name__}; it must return an iterator "
                "of batches (x, semi_targets)"
            )
        number = -1
        for number, batch in enumerate(source):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError(
                    f"batch {number} of data is a {type(batch).__name__}; it must be "
                    "(x, semi_targets); whole arrays go through training_set"
                )
            name, x = f"x of batch {number}", batch[0]
            if self.preprocessing is not None:
                x = self.preprocessing.encoded(x, name)
            x = checks.rows(x, name)
            if self.example is None:
                self.example = x[:1]
            if x.shape[1:] != self.example.shape[1:] or x.dtype != self.example.dtype:
                raise ValueError(
                    f"batch {number} of data has x of shape {x.shape} and dtype "
                    f"{x.dtype}; those before have [batch, "
                    f"{', '.join(map(str, self.example.shape[1:]))}] "
                    f"{self.example.dtype}"
                )
            name = f"semi_targets of batch {number}"
            yield x, labels.check_semi_targets(name, batch[1], len(x), warn=False)
        if number < 0:
            raise ValueError("data has no batch; it must have at least one")

    def _survey(self, scaling):
        low = high = None
        steps, seen = 0, set()
        for x, targets in self._pass():
            steps += 1
            seen |= set(np.unique(targets).tolist())
            if scaling is None and not _is_bytes(x):
                checks.check_finite(x, f"x of batch {steps - 1}")
                flat = x.reshape(-1, x.shape[-1])
                least, most = flat.min(axis=0), flat.max(axis=0)
                low = least if low is None else np.minimum(low, least)
                high = most if high is None else np.maximum(high, most)
        labels.warn_of_ones("semi_targets", 1 in seen, -1 in seen)
        self.steps, self.has_anomalies = steps, -1 in seen
        if scaling is None and low is None:
            self.preprocessing = preprocessing.Bytes()
        elif scaling is None:
            self.preprocessing = preprocessing.of_range(self.example.ndim, low, high)

    def batches(self, devices: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass: checked batches, `x` prepared and `semi_targets` float32.

        Where devices share the batches, the rows beyond a multiple of their number are
        left out, with a warning at the first time; batches of one row always are.
        """
        begun, self._begun = self._begun, None
        for number, (x, targets) in enumerate(begun or self._pass()):
            self.preprocessing.check(x, f"x of batch {number}")
            whole = len(x) // devices * devices
            if whole < len(x) or whole < 2 * devices:
                warnings.warn(
                    f"a batch of {len(x)} rows: the {len(x) % devices or len(x)} that "
                    f"{devices} devices cannot share, or that are alone, are left out",
                    stacklevel=2,
                )
            if whole >= 2 * devices:
                prepared = preprocessing.prepared(self.preprocessing, x[:whole])
                yield prepared, targets[:whole].astype(np.float32)


def _is_bytes(x: np.ndarray) -> bool:
    return x.ndim > 2 and x.dtype == np.uint8


def chunks(source: Any) -> Iterator[np.ndarray]:
    """The inputs of an iterable of batches, `x` or `(x, semi_targets)`."""
    for batch in source() if callable(source) else source:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield x if frames.is_table(x) else np.asarray(x)
