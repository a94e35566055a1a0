"""Training: one step, one way through the epochs, one way to evaluate.

A method plugs in as an `Objective`: three pure functions. Everything else is shared:
Adam with coupled L2 and a step-wise learning rate, shuffling, batches gathered on the
device, histories and the check for divergence. All of it is written for one run;
`parallel.Execution` makes it many runs or many devices.
"""

import dataclasses
import functools
import logging
import math
import numbers
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from deepsad_jax import parallel

PyTree = Any


# More would be a mistake, and what is recorded of them would fill the memory.
_MOST_EPOCHS = 1_000_000


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, at which epoch, and what to try."""


class DivergenceError(TrainingError):
    """The loss is no finite number any more."""


@dataclasses.dataclass(frozen=True)
class Optimization:
    """Hyper-parameters of one training stage; the defaults are the original's.

    Attributes:
        learning_rate: Adam's, > 0; divided by 10 at each milestone.
        epochs: passes over the training set, >= 0.
        milestones: epochs (counted from 0) at which the learning rate drops.
        batch_size: examples in a batch, over all devices, >= 2. Batches are always
            full: an epoch drops the surplus.
        weight_decay: factor of the parameters that is added to their gradient, >= 0.
        on_divergence: what to do when the loss of an epoch is not finite: "stop", or
            "rollback" to the state before that epoch and go on with a tenth of the
            learning rate, at most five times.
    """

    learning_rate: float = 1e-4
    epochs: int = 150
    milestones: tuple[int, ...] = (50,)
    batch_size: int = 128
    weight_decay: float = 0.5e-6
    on_divergence: str = "stop"

    def __post_init__(self):
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, valid, allowed in (
            (
                "learning_rate",
                _is_finite(self.learning_rate) and self.learning_rate > 0,
                "> 0 and finite",
            ),
            (
                "epochs",
                _is_count(self.epochs),
                f">= 0, an integer up to {_MOST_EPOCHS}",
            ),
            (
                "batch_size",
                _is_count(self.batch_size, 2, np.iinfo(np.int32).max),
                ">= 2 for batch normalisation, an integer",
            ),
            (
                "weight_decay",
                _is_finite(self.weight_decay) and self.weight_decay >= 0,
                ">= 0 and finite",
            ),
            (
                "milestones",
                isinstance(self.milestones, tuple)
                and all(_is_count(m) for m in self.milestones),
                f"a tuple of epochs, integers from 0 to {_MOST_EPOCHS}",
            ),
            (
                "on_divergence",
                self.on_divergence in ("stop", "rollback"),
                "stop or rollback",
            ),
        ):
            if not valid:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be {allowed}"
                )

    def learning_rate_at(self, epoch: jax.Array) -> jax.Array:
        """The learning rate of an epoch, counted from 0."""
        drops = dict.fromkeys(self.milestones, 0.1)
        return optax.piecewise_constant_schedule(self.learning_rate, drops)(epoch)


def _is_finite(value: Any) -> bool:
    """Whether it is a number that float32 holds."""
    most = float(np.finfo(np.float32).max)
    return isinstance(value, numbers.Real) and abs(value) <= most


def _is_count(value: Any, least: int = 0, most: int = _MOST_EPOCHS) -> bool:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and least <= value <= most


# Of the stage that comes first, an autoencoder's.
PRETRAIN = Optimization(weight_decay=0.5e-3)


class Batch(NamedTuple):
    """What a loss sees: `x` `[batch, ...]` float32, `semi_targets` `[batch]`
    float32."""

    x: jax.Array
    semi_targets: jax.Array


class TrainingSet(NamedTuple):
    """The training examples of one run.

    Attributes:
        x: inputs, `[n, ...]`; uint8 (scaled by 1/255 when they are read) or floating.
        indices: the rows of `x` that belong to the run, `[size or more]` int32.
        semi_targets: +1, 0 or -1 for each index, float32.
        size: how many entries of `indices` count; those behind are padding, which lets
            runs of different sizes share a program.
    """

    x: jax.Array
    indices: jax.Array
    semi_targets: jax.Array
    size: jax.Array


class TrainState(NamedTuple):
    """All that changes during training, and what it has recorded.

    Attributes:
        params: trained by gradient.
        model_state: `batch_stats` and whatever else the loss needs, such as `center`.
        opt_state: Adam's.
        history: means over the steps of each epoch, a dictionary of `[epochs]` float32,
            NaN where an epoch has not yet been.
        slowdown: factor of the learning rate, 1 unless training was rolled back.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    history: dict[str, jax.Array]
    slowdown: jax.Array


class Objective(NamedTuple):
    """What a method plugs into the training.

    Attributes:
        init: key -> (params, model_state).
        loss: (params, model_state, batch, key) -> (losses `[batch]`, (model_state,
            metrics)): per-example losses, the new state, and metrics, a pytree of
            arrays.
        score: (params, model_state, x) -> anomaly scores `[batch]`, higher = anomalous.
        metrics: () -> the metrics of no step.
        merge: (metrics, metrics) -> those of both; their sum by default.
        summary: what the history keeps of the metrics of an epoch: (metrics, number of
            steps) -> dictionary of scalars.
    """

    init: Callable
    loss: Callable
    score: Callable
    metrics: Callable[[], PyTree] = dict
    merge: Callable[[PyTree, PyTree], PyTree] = functools.partial(jax.tree.map, jnp.add)
    summary: Callable[[PyTree, jax.Array], dict[str, jax.Array]] = (
        lambda metrics, steps: {}
    )


def training_set(
    x: np.ndarray,
    semi_targets: np.ndarray | None = None,
    indices: np.ndarray | None = None,
) -> TrainingSet:
    """Checks the data of one run and puts them on the device.

    Args:
        x: inputs, `[n, D]` or `[n, H, W, C]`; uint8, or floating and finite.
        semi_targets: +1 known normal, 0 unlabelled, -1 known anomaly, one for each
            entry of `indices`; all unlabelled by default.
        indices: the rows of `x` to train on; all by default.

    Raises:
        ValueError: if something is not as said.
    """
    x = _array("x", x)
    check_inputs("x", x)
    indices = np.arange(len(x)) if indices is None else _array("indices", indices)
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(
            f"indices have shape {indices.shape} and dtype {indices.dtype}; they must "
            f"be a non-empty list of row numbers from 0 to {len(x) - 1}"
        )
    if indices.min() < 0 or indices.max() >= len(x):
        raise ValueError(
            f"indices are from {indices.min()} to {indices.max()}; they must be row "
            f"numbers from 0 to {len(x) - 1}"
        )
    if semi_targets is None:
        semi_targets = np.zeros(len(indices))
    semi_targets = _array("semi_targets", semi_targets)
    if semi_targets.shape != indices.shape:
        raise ValueError(
            f"semi_targets has shape {semi_targets.shape}; there are {len(indices)} "
            "training examples, and each needs one"
        )
    if semi_targets.dtype.kind not in "iufb":
        raise ValueError(
            f"semi_targets has dtype {semi_targets.dtype}; it must hold numbers"
        )
    strange = semi_targets[~np.isin(semi_targets, (-1, 0, 1))]
    if len(strange):
        raise ValueError(
            f"semi_targets contains {strange[0]}; allowed are +1 (known normal), "
            "0 (unlabelled) and -1 (known anomaly)"
        )
    return TrainingSet(
        jnp.asarray(x if x.dtype == np.uint8 else x.astype(np.float32)),
        jnp.asarray(indices, jnp.int32),
        jnp.asarray(semi_targets, jnp.float32),
        jnp.asarray(len(indices), jnp.int32),
    )


def check_inputs(name: str, x: np.ndarray) -> None:
    """Raises ValueError unless `x` is a non-empty array of finite numbers or uint8."""
    x = _array(name, x)
    if x.ndim not in (2, 4) or not x.size:
        raise ValueError(
            f"{name} has shape {x.shape}; it must be [n, columns] or [n, height, "
            "width, channels], and not empty"
        )
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{name} has dtype {x.dtype}; it must be floating, or uint8 for images"
        )
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(x.astype(np.float32))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} contains {x[where]} at {list(where)} ({bad.sum()} such values in "
            "all); remove or replace what is not a finite float32 number"
        )


def check_batches(optimization: Optimization, size: int, devices: int = 1) -> None:
    """Raises ValueError if the examples fill no batch, or devices do not divide it.

    Args:
        optimization: its `batch_size` counts, unless it has no epochs.
        size: number of training examples; of the smallest of many runs.
        devices: number of devices that share each batch.
    """
    batch_size = optimization.batch_size
    if optimization.epochs and size < batch_size:
        raise ValueError(
            f"the training set has {size} examples, less than one batch of "
            f"{batch_size}; use a smaller batch_size or more data"
        )
    if optimization.epochs and batch_size % devices:
        raise ValueError(
            f"batch_size is {batch_size}; the {devices} devices must divide it"
        )


def padded(data: TrainingSet, size: int) -> TrainingSet:
    """The same training set with `indices` and `semi_targets` padded to a size."""
    missing = size - data.indices.shape[0]
    return data._replace(
        indices=jnp.pad(data.indices, (0, missing)),
        semi_targets=jnp.pad(data.semi_targets, (0, missing)),
    )


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # ragged lists, and whatever else is no array
        raise ValueError(f"{name} is no array of numbers") from error


def as_float(x: jax.Array) -> jax.Array:
    """uint8 images scaled to [0, 1] float32; anything else as float32."""
    if x.dtype == jnp.uint8:
        return x.astype(jnp.float32) / 255.0
    return x.astype(jnp.float32)


def _optimizer(optimization: Optimization) -> optax.GradientTransformation:
    # L2 is added to the gradient before Adam sees it, as in torch.optim.Adam; the
    # learning rate is applied by the step, which knows the epoch.
    return optax.chain(
        optax.add_decayed_weights(optimization.weight_decay), optax.scale_by_adam()
    )


def make_step(
    objective: Objective, optimization: Optimization, axis_name: str | None = None
) -> Callable:
    """The one training step.

    Returns:
        (state, batch, key, learning rate) -> (state, (loss, metrics)): a pure function;
        with `axis_name`, of one device's share of the batch. The loss is the mean over
        the whole batch; so are metrics.
    """
    optimizer = _optimizer(optimization)

    def step(state, batch, key, learning_rate):
        def mean_loss(params):
            losses, (model_state, metrics) = objective.loss(
                params, state.model_state, batch, key
            )
            return jnp.mean(losses), (model_state, metrics)

        (loss, (model_state, metrics)), gradients = jax.value_and_grad(
            mean_loss, has_aux=True
        )(state.params)
        recorded = (loss, metrics)
        if axis_name is not None:
            # Devices hold equal shares, so the mean of means is the mean.
            gradients, recorded = lax.pmean((gradients, recorded), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        state = state._replace(
            params=params, model_state=model_state, opt_state=opt_state
        )
        return state, recorded

    return step


@functools.lru_cache(maxsize=256)
def make_start(
    objective: Objective, optimization: Optimization, execution: parallel.Execution
) -> Callable:
    """(params, model_state) -> the `TrainState` before the first epoch."""
    optimizer = _optimizer(optimization)

    def start(params, model_state):
        names = jax.eval_shape(lambda: objective.summary(objective.metrics(), 1))
        history = {
            name: jnp.full(optimization.epochs, jnp.nan) for name in ("loss", *names)
        }
        return TrainState(
            params, model_state, optimizer.init(params), history, jnp.ones(())
        )

    return execution.compile(start, (0, 0))


@functools.lru_cache(maxsize=256)
def make_advance(
    objective: Objective, optimization: Optimization, execution: parallel.Execution
) -> Callable:
    """The one way through the epochs.

    Returns:
        (state, data, key, first, last) -> state after the epochs `first` to `last - 1`.
        An epoch depends on the key and its number alone, so training may be cut into
        any pieces. Bounds are dynamic: one compilation serves all.
    """
    axis_name = execution.axis_name
    step = make_step(objective, optimization, axis_name)

    def train_on(state, totals, data, order, key, epoch, i):
        batch = _take_batch(data, order, i, optimization.batch_size, axis_name)
        learning_rate = optimization.learning_rate_at(epoch) * state.slowdown
        key = jax.random.fold_in(key, i)
        state, (loss, metrics) = step(state, batch, key, learning_rate)
        return state, (totals[0] + loss, objective.merge(totals[1], metrics))

    def record(state, totals, data, epoch):
        steps = data.size // optimization.batch_size
        loss, metrics = totals
        recorded = {"loss": loss / steps, **objective.summary(metrics, steps)}
        history = {
            name: values.at[epoch].set(recorded[name])
            for name, values in state.history.items()
        }
        return state._replace(history=history)

    def no_totals():
        return jnp.zeros(()), objective.metrics()

    def advance(state, data, key, first, last):
        def epoch_body(epoch, state):
            order, step_key = _prepare(data, key, epoch)

            def step_body(i, carry):
                return train_on(*carry, data, order, step_key, epoch, i)

            steps = data.size // optimization.batch_size
            carry = (state, no_totals())
            state, totals = lax.fori_loop(0, steps, step_body, carry)
            return record(state, totals, data, epoch)

        return lax.fori_loop(first, last, epoch_body, state)

    data_axes = TrainingSet(None if execution.shared_inputs else 0, 0, 0, 0)
    if not execution.per_step:
        return execution.compile(advance, (0, data_axes, 0, None, None), donate=(0,))

    prepare = execution.compile(_prepare, (data_axes, 0, None))
    train_on = execution.compile(
        train_on, (0, 0, data_axes, 0, 0, None, None), donate=(0, 1)
    )
    record = execution.compile(record, (0, 0, data_axes, None), donate=(0,))

    def advance_per_step(state, data, key, first, last):
        steps = int(data.size) // optimization.batch_size
        for epoch in range(first, last):
            order, step_key = prepare(data, key, epoch)
            totals = no_totals()
            for i in range(steps):
                state, totals = train_on(state, totals, data, order, step_key, epoch, i)
            state = record(state, totals, data, epoch)
        return state

    return advance_per_step


def _prepare(
    data: TrainingSet, key: jax.Array, epoch: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The order of an epoch and the key of its steps."""
    key = jax.random.fold_in(key, epoch)
    return _shuffle(jax.random.fold_in(key, 0), data), jax.random.fold_in(key, 1)


def _shuffle(key: jax.Array, data: TrainingSet) -> jax.Array:
    """A random order of the entries that count, followed by the padding."""
    positions = jnp.arange(data.indices.shape[0], dtype=jnp.int32)
    bits = jax.random.bits(key, positions.shape)
    bits = jnp.where(positions < data.size, bits, np.uint32(0xFFFFFFFF))
    # Random bits depend on their position alone and the sort is stable, so padding
    # changes neither the order nor, thereby, the run.
    return lax.sort_key_val(bits, positions, is_stable=True)[1]


def _take_batch(
    data: TrainingSet,
    order: jax.Array,
    i: jax.Array,
    batch_size: int,
    axis_name: str | None,
) -> Batch:
    start, share = i * batch_size, batch_size
    if axis_name is not None:
        share = batch_size // lax.axis_size(axis_name)
        start = start + lax.axis_index(axis_name) * share
    entries = lax.dynamic_slice_in_dim(order, start, share)
    return Batch(as_float(data.x[data.indices[entries]]), data.semi_targets[entries])


@functools.lru_cache(maxsize=256)
def make_evaluate(
    function: Callable, execution: parallel.Execution, *, chunk: int = 512
) -> Callable:
    """Applies a function to many examples, a chunk at a time.

    Args:
        function: (params, model_state, x `[batch, ...]`) -> array `[batch, ...]`.
        execution: how to compile it. Every device of a data-parallel run computes all.
        chunk: examples evaluated at once.

    Returns:
        (params, model_state, x, indices) -> array `[len(indices), ...]`, the last,
        partial chunk included.
    """

    def on_chunk(params, model_state, x, indices, start):
        entries = lax.dynamic_slice_in_dim(indices, start, chunk)
        return function(params, model_state, as_float(x[entries]))

    def evaluate(params, model_state, x, indices):
        size = indices.shape[0]
        chunks = -(-size // chunk)
        indices = jnp.pad(indices, (0, chunks * chunk - size))
        results = lax.map(
            lambda start: on_chunk(params, model_state, x, indices, start),
            jnp.arange(chunks) * chunk,
        )
        return results.reshape(-1, *results.shape[2:])[:size]

    x_axis = None if execution.shared_inputs else 0
    if not execution.per_step:
        return execution.compile(evaluate, (0, 0, x_axis, 0))

    on_chunk = execution.compile(on_chunk, (0, 0, x_axis, 0, None))

    def evaluate_per_step(params, model_state, x, indices):
        size = len(indices)
        padded = jnp.pad(jnp.asarray(indices), (0, -size % chunk))
        results = [
            on_chunk(params, model_state, x, padded, start)
            for start in range(0, size, chunk)
        ]
        return jnp.concatenate(results)[:size]

    return evaluate_per_step


def fit(
    advance: Callable,
    state: TrainState,
    data: TrainingSet,
    key: jax.Array,
    *,
    first: int = 0,
    epochs: int,
    on_epochs: Callable[[int, TrainState, dict[str, np.ndarray]], None] | None = None,
    check: Callable[[dict[str, np.ndarray], int], None] | None = None,
    on_divergence: str = "stop",
) -> TrainState:
    """Advances a state to the last epoch, in pieces of about a quarter of a second.

    Args:
        advance: from `make_advance`.
        state, data, key: its first arguments.
        first: epochs done already.
        epochs: epochs to reach.
        on_epochs: called after each piece with the number of epochs done, the state and
            the history on the host: for progress bars and checkpoints.
        check: called with the history and the number of an epoch, for every epoch; may
            raise `TrainingError`. `check_finite` by default.
        on_divergence: as in `Optimization`.

    Raises:
        TrainingError: as `check` does, unless training is rolled back.
    """
    check = check or check_finite
    # Training overwrites the memory of its state; the caller's arrays stay.
    state = jax.tree.map(jnp.copy, state)
    done, piece = first, 1
    while done < epochs:
        last = min(done + piece, epochs)
        start = time.perf_counter()
        if on_divergence == "rollback":
            before = jax.tree.map(jnp.copy, state)
        state = advance(state, data, key, done, last)
        history = jax.device_get(state.history)
        seconds = time.perf_counter() - start
        try:
            for epoch in range(done, last):
                check(history, epoch)
        except DivergenceError as error:
            if on_divergence == "stop":
                raise
            # What comes before that epoch is computed again, so that the state does not
            # depend on where pieces end.
            state = before if epoch == done else advance(before, data, key, done, epoch)
            diverged = ~np.isfinite(history["loss"][..., epoch])
            state = state._replace(slowdown=_slower(state.slowdown, diverged, error))
            done, piece = epoch, 1
            continue
        # The first piece includes the compilation and says nothing of the speed.
        if done > first:
            piece = max(1, math.floor((last - done) * min(4.0, 0.25 / seconds)))
        done = last
        if on_epochs is not None:
            on_epochs(done, state, history)
    return state


def _slower(slowdown: jax.Array, diverged: np.ndarray, error: Exception) -> jax.Array:
    """A tenth for the runs that have diverged; raises once that is of no avail."""
    slower = jnp.where(diverged, 0.1 * slowdown, slowdown)
    least = float(jnp.min(slower))
    if least < 0.9e-5:
        raise DivergenceError(f"{error} (rolled back five times already)") from error
    logging.getLogger(__name__).warning(
        "%s; rolled back, the learning rate is now times %.0e", error, least
    )
    return slower


def check_finite(history: dict[str, np.ndarray], epoch: int) -> None:
    """Raises `DivergenceError` if the loss of an epoch is not a finite number."""
    loss = np.asarray(history["loss"])[..., epoch]
    if not np.isfinite(loss).all():
        raise DivergenceError(
            f"training diverged: the loss of epoch {epoch + 1} is "
            f"{loss[~np.isfinite(loss)].flat[0]}; try a smaller learning rate or a "
            "larger batch, and look for extreme values in the data"
        )
