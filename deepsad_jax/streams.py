"""Batches from files or any iterable, for data that do not fit in memory.

    data = OnDisk("x.npy", "semi_targets.npy")

    class Batches:                      # one pass is one epoch
        def __iter__(self):
            for rows in shuffled_rows():
                yield x[rows], semi_targets[rows]

Where the column ranges or the number of steps are not known, one more pass surveys the
data before training. What can be passed through only once is refused beforehand if it
is needed twice.
"""

import inspect
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import checks, labels, parallel, preprocessing, shuffles, stored
from deepsad_jax.data import frames
from deepsad_jax.ranges import Ranges, scaling_of
from deepsad_jax.training import Batch

# Bytes of prepared rows that go to the device at once, at most, of which twice as many
# are in memory; and least pieces of an epoch, so that reading and computing overlap.
_PIECE, _PIECES = 8 * 2**20, 2


class OnDisk:
    """Examples in files, which are read batch by batch.

    The order of an epoch is that of `training.training_set` of the same rows and key,
    and so is the model, up to the order of sums. Batches are full: the rows of an epoch
    that fill none, fewer than one batch, sit out that epoch, others in each. Of several
    processes each reads its own part of each batch, so that all make as many steps.

    As an iterable it has blocks `(x, semi_targets)` in the order of the files.

    Args:
        x: path of a `.npy` file of raw examples, `[n, ...]` of rank 2 to 5; or an
            array, such as one of `np.load(path, mmap_mode="r")`.
        semi_targets: likewise, +1 known normal, 0 unlabeled, -1 known anomaly, `[n]`,
            of which a byte is kept in memory for each row; all unlabeled by default.

    Attributes:
        x: the array, or a `stored.Array`.
        semi_targets: `[n]` int8.
        size: n.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if something is not as said.
    """

    def __init__(self, x: Any, semi_targets: Any = None):
        self.x = x = _opened("x", x)
        is_real = x.dtype.kind in "iuf" or jnp.issubdtype(x.dtype, jnp.floating)
        if not (2 <= x.ndim <= 5 and is_real) or 0 in x.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; it must hold real "
                "numbers, be of rank 2 to 5, such as [n, columns] or [n, height, "
                "width, channels], and not be empty"
            )
        self.size = len(x)
        if semi_targets is None:
            semi_targets = np.zeros(self.size, np.int8)
        semi_targets = _opened("semi_targets", semi_targets)[:]
        checked = labels.check_semi_targets("semi_targets", semi_targets, self.size)
        self.semi_targets = checked.astype(np.int8)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in stored.blocks(self.x):
            yield np.asarray(self.x[rows]), self.semi_targets[rows]


def _opened(name, x) -> Any:
    if isinstance(x, (str, os.PathLike)):
        return stored.Array(x)
    return x if isinstance(x, (stored.Array, np.memmap)) else checks.unmasked(name, x)


class Stream:
    """A checked view of an iterable of batches `(x, semi_targets)`.

    Args:
        source: the iterable, whose batches may also be mappings of these names; or a
            function that returns a new iterator at each call. If it has an argument
            `epoch`, that is the number of the epoch, from 0 in each stage: what depends
            on nothing else goes on exactly after an interruption.
        passes: how often the training itself will pass through it.
        needs_steps: whether the number of batches in a pass must be known.
        scaling: applied to `x`; None to find it in a survey.
        devices: that share the batches.

    Attributes:
        example: the first rows, as they come; encoded, if they are a table.
        preprocessing: what is applied to `x`.
        has_anomalies: whether there are known anomalies, as far as it is known.
        check: called with prepared rows before they are used; may raise ValueError.

    Raises:
        ValueError: if it is not such an iterable, is empty, or can be passed through
            only once but is needed more often.
    """

    check: Callable[[np.ndarray], None] | None = None

    def __init__(
        self,
        source: Iterable | Callable[..., Iterator],
        *,
        passes: int,
        needs_steps: bool,
        scaling: preprocessing.Preprocessing | None = None,
        devices: int = 1,
    ):
        if not callable(source) and not hasattr(source, "__iter__"):
            raise ValueError(
                f"data is a {type(source).__name__}; it must be a training set from "
                "training.training_set, streams.OnDisk, or an iterable of batches (x, "
                "semi_targets)"
            )
        self._source, self._begun, self._devices = source, None, devices
        self._takes_epoch = _takes_epoch(source)
        has_length = hasattr(source, "__len__")
        surveys = scaling is None or (needs_steps and not has_length)
        if passes + surveys > 1 and isinstance(source, Iterator):
            raise ValueError(
                f"data can be passed through only once, but {passes + surveys} passes "
                "are needed (epochs, the center, and a survey of its values); give an "
                "iterable that starts anew, such as a class with __iter__, or a "
                "function that returns an iterator"
            )
        self.preprocessing, self._steps = scaling, len(source) if has_length else 0
        self._trusts_length = needs_steps and not surveys
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
        return self.preprocessing.features(tuple(self.example.shape[1:]))

    def steps(self, batch_size: int) -> int:
        """Number of batches in a pass, 0 if it was not needed."""
        del batch_size
        return self._steps

    def _pass(self, epoch: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        source = self._source
        if callable(source):
            source = source(epoch=epoch) if self._takes_epoch else source()
        if not hasattr(source, "__iter__"):
            raise ValueError(
                f"data returns a {type(source).__name__}; it must return an iterator "
                "of batches (x, semi_targets)"
            )
        number = -1
        for number, batch in enumerate(source):
            if isinstance(batch, Mapping) and {*batch} == {"x", "semi_targets"}:
                batch = batch["x"], batch["semi_targets"]
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
        ranges, steps, seen = Ranges(), 0, set()
        for number, (x, targets) in enumerate(self._pass()):
            steps += len(x) // self._devices >= 2  # others are left out
            seen |= set(np.unique(targets).tolist())
            if scaling is None:
                ranges.add(x, f"x of batch {number}")
        labels.warn_of_ones("semi_targets", 1 in seen, -1 in seen)
        self._steps, self.has_anomalies = steps, -1 in seen
        if scaling is None:
            self.preprocessing = ranges.auto()

    def batches(
        self, devices: int = 1, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass: checked batches, `x` prepared and `semi_targets` float32.

        Where devices share the batches, the rows beyond a multiple of their number are
        left out, with a warning at the first time; batches of one row always are.
        """
        (begun, self._begun), made = (self._begun, None), 0
        if epoch and self._takes_epoch:
            begun = None  # which is of another epoch
        for number, (x, targets) in enumerate(begun or self._pass(epoch)):
            self.preprocessing.check(x, f"x of batch {number}")
            whole = len(x) // devices * devices
            whole = whole if whole >= 2 * devices else 0
            if whole < len(x):
                warnings.warn(
                    f"a batch of {len(x)} rows: {len(x) - whole} of them are left out, "
                    "since each device needs as many rows, and at least two",
                    stacklevel=2,
                )
            if whole:
                made += 1
                yield self._prepared(x[:whole]), targets[:whole].astype(np.float32)
        if self._trusts_length and made != self._steps:
            warnings.warn(
                f"data has {self._steps} batches by its length, of which {made} are "
                "used; milestones and schedules count them all: leave the others out",
                stacklevel=2,
            )

    def _prepared(self, x):
        found = preprocessing.prepared(self.preprocessing, x)
        if self.check is not None:
            self.check(found)
        return found

    def pieces(
        self, plan: parallel.Plan, batch_size: int, epoch: int, key: jax.Array
    ) -> Iterator[tuple[Batch, int]]:
        """One pass for training.

        Args:
            plan: devices that share each batch.
            batch_size: where the data have no batches of their own.
            epoch: its number.
            key: random key of its order, where the data have none.

        Yields:
            Some batches, `[most, share, ...]`, with the axis of `plan.by_device`, and
            how many of them count.
        """
        del batch_size, key
        for batch in self.batches(plan.share, epoch):
            yield Batch(*(plan.by_device(part[None], 1) for part in batch)), 1


class Stored(Stream):
    """A checked view of `OnDisk`; one pass surveys it.

    Args:
        data: the examples.
        scaling: applied to them; None for what `preprocessing.auto` finds.
    """

    def __init__(
        self, data: OnDisk, scaling: preprocessing.Preprocessing | None = None
    ):
        self._data, self.example = data, np.asarray(data.x[:1])
        self.has_anomalies = bool((data.semi_targets == -1).any())
        if scaling is None:
            scaling = scaling_of(data.x)
        else:
            for rows in stored.blocks(data.x):
                scaling.check(np.asarray(data.x[rows]), f"x from row {rows.start} on")
        self.preprocessing = scaling

    def steps(self, batch_size: int) -> int:
        """Number of full batches."""
        return self._data.size // batch_size

    def batches(
        self, devices: int = 1, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows in the order of the files, in blocks: as of `Stream`."""
        for x, targets in self._data:
            yield self._prepared(x), targets.astype(np.float32)

    def pieces(
        self, plan: parallel.Plan, batch_size: int, epoch: int, key: jax.Array
    ) -> Iterator[tuple[Batch, int]]:
        """One pass in the order of the key; of a process, its part of each batch."""
        data, steps = self._data, self.steps(batch_size)
        order = np.asarray(_shuffled(key, data.size, data.size))
        item = 1 if data.x.dtype == np.uint8 and data.x.ndim > 2 else 4
        row = item * math.prod(self.shape)
        most = max(1, min(-(-steps // _PIECES), _PIECE // (batch_size * row)))
        most = -(-steps // -(-steps // most))  # pieces of about one size
        for first in range(0, steps, most):
            count = min(most, steps - first)
            places = order[first * batch_size : (first + count) * batch_size]
            # Those beyond the last batch are read, and do not count.
            places = np.pad(places, (0, (most - count) * batch_size), "edge")
            places = plan.by_device(places.reshape(most, batch_size), 1)
            x = self._prepared(stored.take(data.x, places.ravel()))
            targets = data.semi_targets[places].astype(np.float32)
            yield Batch(x.reshape(*places.shape, *x.shape[1:]), targets), count


_shuffled = parallel.compiled(shuffles.shuffled, static=(1,))


def _takes_epoch(source: Any) -> bool:
    if not callable(source):
        return False
    try:
        return "epoch" in inspect.signature(source).parameters
    except (TypeError, ValueError):  # of some built-in functions
        return False


def chunks(source: Any) -> Iterator[np.ndarray]:
    """The inputs of an iterable of batches: `x`, `(x, semi_targets)` or a mapping."""
    for batch in source() if callable(source) else source:
        if isinstance(batch, Mapping) and {*batch} == {"x", "semi_targets"}:
            batch = batch["x"], batch["semi_targets"]
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield x if frames.is_table(x) else np.asarray(x)
