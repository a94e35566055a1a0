"""The values of training, its data, and its one step; `epochs` goes through them.

What is trained is an objective (see `objectives`), how is a `Stage`, on how many
devices a `parallel.Plan`. All of it is written for one run.

    step = make_step(objective, optax.adamw(1e-3))       # in a loop of your own
    state, metrics = jax.jit(step)(state, Batch(x, semi_targets), key)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepsad_jax import checks, deprecated, labels, metrics, optimizers, parallel
from deepsad_jax.optimizers import Adam, Optimizer

PyTree = Any
Variables = dict[str, Any]
History = dict[str, np.ndarray]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, at which epoch, and what to try."""


class DivergenceError(TrainingError):
    """The loss is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training; the defaults are the original's.

    Attributes:
        optimizer: any `optax.GradientTransformation`, or a function of the number of
            steps in an epoch that makes one, such as `Adam`.
        epochs: passes over the training set, >= 0.
        batch_size: examples in a batch, over all devices, >= 2. Batches are always
            full: an epoch drops the surplus. Streams have batches of their own.
        on_divergence: what to do when the loss of an epoch is not finite: "stop", or
            "rollback" to the state before that epoch and go on with updates of a tenth;
            where that was tried, to the beginning; at most five times in all.
    """

    optimizer: optax.GradientTransformation | Callable = Adam()
    epochs: int = 150
    batch_size: int = 128
    on_divergence: str = "stop"

    def __post_init__(self):
        epochs, batch_size = self.epochs, self.batch_size
        checks.require(
            "optimizer",
            self.optimizer,
            isinstance(self.optimizer, optax.GradientTransformation)
            or (callable(self.optimizer) and not checks.takes_rate(self.optimizer)),
            "an optax.GradientTransformation, such as optax.adam(1e-3), or a function "
            "of the steps in an epoch that makes one",
        )
        optimizers.check_hashable(self.optimizer)
        checks.require(
            "epochs",
            epochs,
            checks.is_count(epochs),
            f">= 0, an integer up to {checks.MOST_EPOCHS}",
        )
        checks.require(
            "batch_size",
            batch_size,
            checks.is_count(batch_size, 2, np.iinfo(np.int32).max),
            ">= 2 for batch normalization, an integer",
        )
        checks.require(
            "on_divergence",
            self.on_divergence,
            self.on_divergence in ("stop", "rollback"),
            "stop or rollback",
        )

    @property
    def needs_steps(self) -> bool:
        """Whether the optimizer depends on the number of steps in an epoch."""
        return isinstance(self.optimizer, Adam) or self.fixes_steps

    @property
    def fixes_steps(self) -> bool:
        """Whether that number must be known to the program, and not traced.

        Optax's schedules compare it with others; those of `Adam` do not, so that runs
        of unlike size share their programs.
        """
        made = self.optimizer
        if isinstance(made, Optimizer):
            return made.takes_steps
        return not isinstance(made, (optax.GradientTransformation, Adam))

    def optimizer_for(self, steps: Any) -> optax.GradientTransformation:
        """The optimizer of an epoch of so many steps."""
        is_made = isinstance(self.optimizer, optax.GradientTransformation)
        return self.optimizer if is_made else optimizers.checked(self.optimizer(steps))


PRETRAIN = Stage(Adam(weight_decay=0.5e-3))


class Batch(NamedTuple):
    """What a loss sees: `x` `[batch, ...]` float32, `semi_targets` `[batch]`
    float32."""

    x: jax.Array
    semi_targets: jax.Array


class TrainingSet(NamedTuple):
    """The training examples of one run.

    Attributes:
        x: inputs, `[n, ...]`, raw: of any real type.
        indices: the rows of `x` that belong to the run, `[size or more]` int32.
        semi_targets: +1, 0 or -1 for each index, float32.
        size: how many entries of `indices` count; those behind are padding, which lets
            runs of different sizes share a program.
    """

    x: Any
    indices: Any
    semi_targets: Any
    size: Any


class TrainState(NamedTuple):
    """All that changes during training.

    Attributes:
        variables: of the objective; `params` are trained by gradient.
        opt_state: the optimizer's.
        slowdown: factor of the updates, 1 unless training was rolled back.
    """

    variables: Variables
    opt_state: PyTree
    slowdown: jax.Array


def training_set(x: Any, semi_targets: Any = None, indices: Any = None) -> TrainingSet:
    """Checks the data of one run.

    Args:
        x: inputs, `[n, ...]` of rank 2 to 5: tables `[n, columns]`, series `[n, time,
            channels]`, images `[n, height, width, channels]`, volumes. Raw: scaling
            belongs to the model.
        semi_targets: +1 known normal, 0 unlabeled, -1 known anomaly, one for each entry
            of `indices`; all unlabeled by default.
        indices: the rows of `x` to train on; all by default.

    Raises:
        ValueError: if something is not as said.
    """
    x = checks.unmasked("x", x)
    if not 2 <= x.ndim <= 5 or not x.size:
        raise ValueError(
            f"x has shape {x.shape}; it must be of rank 2 to 5, such as [n, columns] "
            "or [n, height, width, channels], and not empty"
        )
    if indices is None:
        indices = np.arange(len(x))
    indices = checks.unmasked("indices", indices)
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
    semi_targets = labels.check_semi_targets("semi_targets", semi_targets, len(indices))
    return TrainingSet(
        x,
        indices.astype(np.int32),
        semi_targets.astype(np.float32),
        np.int32(len(indices)),
    )


def check_key(key: Any) -> None:
    """Raises ValueError unless it is one random key of JAX."""
    if isinstance(key, jax.core.Tracer):
        raise ValueError("key is traced by jit, vmap or grad; a fit cannot be")
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_typed = shape == () and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    like = jax.eval_shape(jax.random.PRNGKey, 0)
    if not (is_typed or (shape == like.shape and dtype == like.dtype)):
        what = f"an array {dtype}{list(shape)}" if shape else repr(key)
        raise ValueError(f"key is {what}; it must be a random key: jax.random.key(0)")


def check_batches(stage: Stage, size: int, devices: int = 1) -> None:
    """Raises ValueError if the examples fill no batch, or devices do not divide it.

    Args:
        stage: its `batch_size` counts, unless it has no epochs.
        size: number of training examples; of the smallest of many runs.
        devices: number of devices that share each batch.
    """
    batch_size = stage.batch_size
    if stage.epochs and size < batch_size:
        raise ValueError(
            f"the training set has {size} examples, less than one batch of "
            f"{batch_size}; use a smaller batch_size or more data"
        )
    if stage.epochs and batch_size % devices:
        raise ValueError(
            f"batch_size is {batch_size}; the {devices} devices must divide it"
        )


def padded(data: TrainingSet, size: int) -> TrainingSet:
    """The same training set with `indices` and `semi_targets` padded to a size."""
    missing = size - data.indices.shape[0]
    return data._replace(
        indices=np.pad(data.indices, (0, missing)),
        semi_targets=np.pad(data.semi_targets, (0, missing)),
    )


def as_float(x: jax.Array) -> jax.Array:
    """uint8 images scaled to [0, 1] float32; anything else as float32."""
    if x.dtype == jnp.uint8:
        return x.astype(jnp.float32) / 255.0
    return x.astype(jnp.float32)


def make_step(objective: Any, optimizer: optax.GradientTransformation) -> Callable:
    """The one training step.

    Returns:
        (state, batch, key) -> (state, metrics): a pure function; of this device's share
        where devices share the batch. The loss is the mean over the whole batch, and
        `loss` one of the metrics, which have `merge` and `compute`.
    """

    def step(state, batch, key):
        # Gradients of what is not trained are never computed: XLA drops them.
        losses, pullback, (variables, recorded) = jax.vjp(
            functools.partial(objective.loss, batch=batch, key=key),
            state.variables,
            has_aux=True,
        )
        if losses.shape != batch.x.shape[:1] or losses.dtype.kind == "i":
            raise ValueError(
                f"the loss returns shape {losses.shape} and dtype {losses.dtype}; it "
                f"must return one number for each example, {batch.x.shape[:1]}"
            )
        (gradients,) = pullback(jnp.full_like(losses, 1.0 / losses.size))
        gradients = parallel.mean(gradients["params"])
        if parallel.shares() > 1:  # statistics of modules that know of one share
            variables = jax.tree.map(_same_on_all, variables)
        params = state.variables["params"]
        more = {}
        if isinstance(optimizer, optax.GradientTransformationExtraArgs):
            more["value"] = parallel.mean(jnp.mean(losses))
        update = functools.partial(optimizer.update, gradients, state.opt_state)
        updates, opt_state = optimizers.update_with(update, params, more)
        updates = jax.tree.map(lambda u: state.slowdown * u, updates)
        params = optax.apply_updates(params, updates)
        recorded = {"loss": metrics.Mean.of(losses), **recorded}
        state = TrainState({**variables, "params": params}, opt_state, state.slowdown)
        return state, recorded

    return step


def _same_on_all(leaf):
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return parallel.mean(leaf) if is_float else leaf


def init(
    objective: Any, optimizer: optax.GradientTransformation, key: jax.Array, x: Any
) -> TrainState:
    """The state before the first step, for inputs like `x`, `[batch, ...]`."""
    variables = jax.jit(objective.init)(key, jnp.zeros((1, *x.shape[1:])))
    return start(variables, optimizer)


def start(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a stage that goes on from variables."""
    return TrainState(variables, optimizer.init(variables["params"]), jnp.ones(()))


def computed(recorded: dict[str, Any]) -> dict[str, jax.Array]:
    """Metrics as scalars by name; one that has several brings their names."""
    found = {}
    for name, metric in recorded.items():
        value = metric.compute()
        found |= value if isinstance(value, dict) else {name: value}
    return found


__getattr__ = deprecated.getter("training", deprecated.TRAINING)
