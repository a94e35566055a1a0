"""Stages of a fit, and the evaluation after it: what all trained methods share."""

import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from deepsad_jax import networks, parallel, training

History = dict[str, np.ndarray]
OnEpochs = Callable[[str, int, training.TrainState, History], None]


@flax.struct.dataclass
class Fitted:
    """A trained model of one objective; with many runs, arrays have leading axes.

    Attributes:
        params: trained parameters.
        model_state: batch statistics and whatever else the objective keeps.
        history: for each stage, the mean loss and other metrics of each epoch,
            `[epochs]` float32.
        seconds: for the same stages, the time they took, compilation included.
        method: what was trained: "vae", "m2", "m1_m2" or "supervised".
        network: name or architecture of the network.
    """

    params: Any
    model_state: Any
    history: dict[str, History]
    seconds: dict[str, float]
    method: str = flax.struct.field(pytree_node=False)
    network: str | networks.Architecture = flax.struct.field(pytree_node=False)


class Stages:
    """Runs the stages of a fit on the same data, and keeps their records.

    Args:
        key: random key of the fit; with many runs, of each.
        data: training set; with many runs, with their leading axes.
        execution: how to run them.
        uses: one name for each use of a key, in an order that never changes: the place
            of a name is part of what a seed means. A stage uses the key of its name.
        on_epochs: called with the stage and what `training.fit` passes.
        keeper: saves the state of the stages and starts them from what was saved; of
            one run. See `checkpoints.Keeper`.

    Attributes:
        keys: for each use, its key.
        history, seconds: as in `Fitted`, of the stages that have been run.
    """

    def __init__(
        self,
        key: jax.Array,
        data: training.TrainingSet,
        execution: parallel.Execution,
        uses: tuple[str, ...],
        on_epochs: OnEpochs | None = None,
        keeper: Any = None,
    ):
        fold_in = execution.compile(jax.random.fold_in, (0, None))
        self.keys = {use: fold_in(key, i) for i, use in enumerate(uses)}
        self.history: dict[str, History] = {}
        self.seconds: dict[str, float] = {}
        self._data, self._execution = data, execution
        self._on_epochs, self._keeper = on_epochs, keeper

    def initialize(self, use: str, objective: training.Objective) -> tuple[Any, Any]:
        """Initial (params, model_state) of an objective, from the key of that use."""
        return self._execution.compile(objective.init, (0,))(self.keys[use])

    def run(
        self,
        stage: str,
        objective: training.Objective,
        optimization: training.Optimization,
        params: Any,
        model_state: Any,
        check: Callable[[History, int], None] | None = None,
    ) -> training.TrainState:
        """Trains from (params, model_state), which stay as they are.

        Raises:
            training.TrainingError: if the loss diverges, or as `check` does.
        """
        began = time.perf_counter()
        keeper, key, first = self._keeper, self.keys[stage], 0
        start = training.make_start(objective, optimization, self._execution)
        state = start(params, model_state)

        def report(done, state, history):
            if self._on_epochs is not None:
                self._on_epochs(stage, done, state, history)
            if keeper is not None and done > first:
                seconds = time.perf_counter() - began
                last = done == optimization.epochs
                keeper.offer(stage, done, seconds, state, key, last=last)

        if keeper is not None and (found := keeper.restore(stage, state, key)):
            first, seconds, state = found
            began -= seconds
            report(first, state, state.history)
        state = training.fit(
            training.make_advance(objective, optimization, self._execution),
            state,
            self._data,
            key,
            first=first,
            epochs=optimization.epochs,
            check=check,
            on_epochs=report,
            on_divergence=optimization.on_divergence,
        )
        self.history[stage] = jax.device_get(state.history)
        self.seconds[stage] = time.perf_counter() - began
        return state


def check(
    data: training.TrainingSet,
    network: str | networks.Architecture,
    execution: parallel.Execution,
    *optimizations: training.Optimization | None,
) -> None:
    """Raises ValueError if data do not fit: the network, or a batch of a stage."""
    _check_shape(data.x, network, execution)
    devices = execution.devices if execution.axis_name else 1
    for optimization in optimizations:
        if optimization is not None:
            training.check_batches(optimization, int(np.min(data.size)), devices)


def check_known_anomalies(data: training.TrainingSet, method: str) -> None:
    """Raises ValueError if there is none to learn from, in any of the runs."""
    known = np.any(np.asarray(data.semi_targets) == -1, axis=-1)
    if not np.all(known):
        raise ValueError(
            f"{method} learns from known anomalies, but there are none; some of the "
            "semi_targets must be -1"
        )


def check_network(initial: Any, network: str | networks.Architecture) -> None:
    """Raises ValueError if a model to start from is of another network."""
    if networks.resolve(initial.network) != networks.resolve(network):
        raise ValueError(
            f"initial is a model of {initial.network}, but network is {network}"
        )


def check_initial(
    initial: Any, method: str, network: str | networks.Architecture
) -> None:
    """Raises ValueError unless `initial` is a model of that method and network."""
    if not isinstance(initial, Fitted) or initial.method != method:
        kind = getattr(initial, "method", type(initial).__name__)
        raise ValueError(f"initial is a model of {kind}; {method} needs one of its own")
    check_network(initial, network)


def _check_shape(x, network, execution):
    input_shape = networks.resolve(network).input_shape
    runs = 2 if execution.many and not execution.shared_inputs else 0
    if x.shape[runs + 1 :] != input_shape or not x.size:
        raise ValueError(
            f"x has shape {x.shape}; this model takes [n, "
            f"{', '.join(map(str, input_shape))}] with n > 0"
        )


def evaluate(
    function: Callable,
    params: Any,
    model_state: Any,
    x: jax.Array,
    network: str | networks.Architecture,
    execution: parallel.Execution,
) -> jax.Array:
    """Applies a function (params, model_state, x) -> array to all of x.

    With many runs, params, model_state and (unless they share it) x have their leading
    axes, and so has the result.

    Raises:
        ValueError: if x does not hold examples of the shape that the network takes.
    """
    x = jnp.asarray(x)
    _check_shape(x, network, execution)
    runs = jax.tree.leaves(params)[0].shape[:2] if execution.many else ()
    size = x.shape[0] if execution.shared_inputs else x.shape[len(runs)]
    indices = jnp.broadcast_to(jnp.arange(size), (*runs, size))
    compiled = training.make_evaluate(function, execution)
    return compiled(params, model_state, x, indices)
