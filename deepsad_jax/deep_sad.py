"""Deep SAD: pretrain an autoencoder, find the centre, train the encoder, score.

    data = training.training_set(x_train, semi_targets)
    fitted = deep_sad.fit(jax.random.key(0), data, network="cardio_mlp")
    scores = deep_sad.score(fitted, x_test)

Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020.
`autoencoder_objective` and `deep_sad_objective` are what the method adds to `training`;
`fit` puts the stages in their order, for one run or, with an `Execution` of many, for
all of them at once.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import losses, networks, parallel, training

Variables = dict[str, Any]
History = dict[str, np.ndarray]


@flax.struct.dataclass
class Fitted:
    """A trained Deep SAD model; with many runs, each array has leading axes of runs.

    Attributes:
        encoder: variables of the encoder.
        center: hypersphere centre, `[rep_dim]` float32.
        autoencoder: variables of the pretrained autoencoder, or None without one.
        history: for "pretrain" and "train", the mean loss and other metrics of each
            epoch, `[epochs]` float32.
        seconds: for the same stages, the time they took, compilation included.
        network: name or architecture of the network.
    """

    encoder: Variables
    center: jax.Array
    autoencoder: Variables | None
    history: dict[str, History]
    seconds: dict[str, float]
    network: str | networks.Architecture = flax.struct.field(pytree_node=False)


PRETRAIN = training.Optimization(weight_decay=0.5e-3)


@functools.lru_cache(maxsize=64)
def autoencoder_objective(
    network: str | networks.Architecture,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """Reconstruction: mean squared error over every element; the error is the score."""
    model = networks.build_autoencoder(network, axis_name=axis_name, dtype=dtype)

    def loss(params, model_state, batch, key):
        del key
        reconstruction, model_state = model.apply(
            {"params": params, **model_state},
            batch.x,
            train=True,
            mutable=["batch_stats"],
        )
        return losses.reconstruction_error(batch.x, reconstruction), (model_state, {})

    def score(params, model_state, x):
        reconstruction = model.apply({"params": params, **model_state}, x, train=False)
        return losses.reconstruction_error(x, reconstruction)

    return training.Objective(functools.partial(_init, model), loss, score)


@functools.lru_cache(maxsize=64)
def deep_sad_objective(
    network: str | networks.Architecture,
    *,
    eta: float = 1.0,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """The Deep SAD loss; the model state holds `batch_stats` and the `center`.

    Records `spread`, the root mean square deviation of a batch's embeddings from their
    mean, which is 0 when the hypersphere has collapsed.
    """
    model = networks.build_encoder(network, axis_name=axis_name, dtype=dtype)

    def loss(params, model_state, batch, key):
        del key
        center = model_state["center"]
        embeddings, updated = model.apply(
            {"params": params, "batch_stats": model_state["batch_stats"]},
            batch.x,
            train=True,
            mutable=["batch_stats"],
        )
        per_example = losses.deep_sad_loss(
            embeddings, batch.semi_targets, center, eta=eta
        )
        deviation = lax.stop_gradient(embeddings - jnp.mean(embeddings, axis=0))
        metrics = {"spread": jnp.sqrt(jnp.mean(jnp.square(deviation)))}
        return per_example, ({**updated, "center": center}, metrics)

    def score(params, model_state, x):
        embeddings = _embed(model, params, model_state, x)
        return losses.squared_distance(embeddings, model_state["center"])

    init = functools.partial(_init, model)
    return training.Objective(init, loss, score, metrics=("spread",))


_KEY_USES = ("init_autoencoder", "pretrain", "init_encoder", "train")


def _init(model, key):
    return _split(networks.initialize(model, key))


def _embed(model, params, model_state, x):
    variables = {"params": params, "batch_stats": model_state["batch_stats"]}
    return model.apply(variables, x, train=False)


@functools.lru_cache(maxsize=64)
def _embed_with(network, dtype):
    return functools.partial(_embed, networks.build_encoder(network, dtype=dtype))


def fit(
    key: jax.Array,
    data: training.TrainingSet,
    *,
    network: str | networks.Architecture,
    train: training.Optimization | None = None,
    pretrain: training.Optimization | None = PRETRAIN,
    eta: float = 1.0,
    execution: parallel.Execution | None = None,
    initial: Fitted | None = None,
    dtype: Any = jnp.float32,
    on_epochs: Callable[[str, int, training.TrainState, History], None] | None = None,
) -> Fitted:
    """Trains Deep SAD.

    Args:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: the training set, from `training.training_set`.
        network: name or architecture.
        train: hyper-parameters of the Deep SAD stage; the original's by default.
        pretrain: those of the autoencoder; None starts from random weights.
        eta: weight of the labelled examples, > 0.
        execution: how to run it; the fastest way for one run by default. With many
            runs, `key` and `data` carry their leading axes.
        initial: a model to start from instead of pretraining; its centre is kept.
        dtype: type of the computation.
        on_epochs: called with "pretrain" or "train" and what `training.fit` passes: the
            number of epochs done, the state and the history.

    Returns:
        The model.

    Raises:
        ValueError: if the data or a hyper-parameter does not fit.
        training.TrainingError: if the loss diverges or the hypersphere collapses.
    """
    train = train or training.Optimization()
    execution = execution or _default_execution(network)
    devices = execution.devices if execution.axis_name else 1
    for stage in (train, pretrain):
        if stage is not None:
            training.check_batches(stage, int(np.min(data.size)), devices)
    # One key for each use: its number is part of what a seed means.
    fold_in = execution.compile(jax.random.fold_in, (0, None))
    keys = {use: fold_in(key, i) for i, use in enumerate(_KEY_USES)}

    def run(stage, objective, optimization, params, model_state, check=None):
        began = time.perf_counter()
        start = training.make_start(objective, optimization, execution)
        state = training.fit(
            training.make_advance(objective, optimization, execution),
            start(params, model_state),
            data,
            keys[stage],
            epochs=optimization.epochs,
            check=check,
            on_epochs=on_epochs and functools.partial(on_epochs, stage),
        )
        history[stage] = jax.device_get(state.history)
        seconds[stage] = time.perf_counter() - began
        return state

    history, seconds, autoencoder, center = {}, {}, None, None
    options = {"axis_name": execution.axis_name, "dtype": dtype}
    if initial is not None:
        encoder, center = initial.encoder, initial.center
        autoencoder = initial.autoencoder
    elif pretrain is not None:
        objective = autoencoder_objective(network, **options)
        init = execution.compile(objective.init, (0,))
        state = run("pretrain", objective, pretrain, *init(keys["init_autoencoder"]))
        autoencoder = {"params": state.params, **state.model_state}
        encoder = networks.encoder_variables(autoencoder)

    objective = deep_sad_objective(network, eta=eta, **options)
    if initial is None and pretrain is None:
        init = execution.compile(objective.init, (0,))
        params, model_state = init(keys["init_encoder"])
        encoder = {"params": params, **model_state}
    if center is None:
        embed = training.make_evaluate(_embed_with(network, dtype), execution)
        embeddings = embed(*_split(encoder), data.x, data.indices)
        center = execution.compile(_center, (0, 0))(embeddings, data.size)
    state = run(
        "train",
        objective,
        train,
        encoder["params"],
        {"batch_stats": encoder["batch_stats"], "center": center},
        functools.partial(_check_history, np.asarray(center)),
    )
    encoder = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    return Fitted(encoder, center, autoencoder, history, seconds, network)


def score(
    fitted: Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Squared distance of each embedding to the centre; higher = more anomalous.

    Args:
        fitted: the model.
        x: inputs, `[n, *input_shape]`, uint8 or floating, scaled as in training.
        execution: as in `fit`.
        dtype: as in `fit`.

    Returns:
        Scores, `[n]` float32.
    """
    objective = deep_sad_objective(fitted.network, dtype=dtype)
    params, model_state = _split(fitted.encoder)
    model_state = {**model_state, "center": fitted.center}
    return _evaluate(objective.score, fitted, execution, params, model_state, x)


def embed(
    fitted: Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The encoder's embeddings, `[n, rep_dim]` float32; Args: as for `score`."""
    function = _embed_with(fitted.network, dtype)
    return _evaluate(function, fitted, execution, *_split(fitted.encoder), x)


def reconstruction_score(
    fitted: Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Mean squared reconstruction error of the pretrained autoencoder, as a score.

    Args and Returns: as for `score`.

    Raises:
        ValueError: if the model was trained without an autoencoder.
    """
    if fitted.autoencoder is None:
        raise ValueError("the model has no autoencoder: it was trained without one")
    objective = autoencoder_objective(fitted.network, dtype=dtype)
    state = _split(fitted.autoencoder)
    return _evaluate(objective.score, fitted, execution, *state, x)


def _evaluate(function, fitted, execution, params, model_state, x):
    execution = execution or _default_execution(fitted.network)
    evaluate = training.make_evaluate(function, execution)
    # The axes of the runs, if there are any, are those of the centres.
    runs = fitted.center.shape[:-1]
    size = x.shape[0] if execution.shared_inputs else x.shape[len(runs)]
    indices = jnp.broadcast_to(jnp.arange(size), (*runs, size))
    return evaluate(params, model_state, x, indices)


def _default_execution(network) -> parallel.Execution:
    spec = networks.resolve(network)
    return parallel.for_one_run(networks.is_convolutional(spec))


def _split(variables: Variables) -> tuple[Any, dict[str, Any]]:
    return variables["params"], {"batch_stats": variables["batch_stats"]}


def _center(embeddings: jax.Array, size: jax.Array) -> jax.Array:
    (length, rep_dim), chunk = embeddings.shape, 128
    counts = jnp.arange(length) < size
    counted = jnp.where(counts[:, None], embeddings, 0.0)
    counted = jnp.pad(counted, ((0, -length % chunk), (0, 0)))
    # Summed chunk by chunk, so that padding does not change the order of the sums.
    total, _ = lax.scan(
        lambda total, rows: (total + jnp.sum(rows, axis=0), None),
        jnp.zeros(rep_dim),
        counted.reshape(-1, chunk, rep_dim),
    )
    return losses.clamp_center(total / size)


def _check_history(center: np.ndarray, history: History, epoch: int) -> None:
    training.check_finite(history, epoch)
    spread = history["spread"][..., epoch]
    # Below the rounding of the embeddings themselves, they are all one point.
    if np.any(spread <= 1e-6 * np.sqrt(np.mean(np.square(center), axis=-1))):
        raise training.TrainingError(
            f"the hypersphere collapsed in epoch {epoch + 1}: all embeddings are "
            "equal, so all scores would be; check that the features vary, and try "
            "pretraining, a smaller learning rate or a smaller weight decay"
        )
