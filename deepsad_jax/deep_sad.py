"""Deep SAD: pretrain an autoencoder, find the centre, train the encoder, score.

    data = training.training_set(x_train, semi_targets)
    fitted = deep_sad.fit(jax.random.key(0), data, network="cardio_mlp")
    scores = deep_sad.score(fitted, x_test)

Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020.
`autoencoder_objective` and `deep_sad_objective` are what the method adds to `training`;
`fit` puts the stages in their order, for one run or, with an `Execution` of many, for
all of them at once. Other losses take the same way, Deep SVDD's among them: `LOSSES`.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import losses, networks, parallel, stages, statistics, training
from deepsad_jax.stages import History

Variables = dict[str, Any]


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
        radius: of the soft boundary, scalar float32; None for all other losses.
    """

    encoder: Variables
    center: jax.Array
    autoencoder: Variables | None
    history: dict[str, History]
    seconds: dict[str, float]
    network: str | networks.Architecture = flax.struct.field(pytree_node=False)
    radius: jax.Array | None = None


def _deviation_loss(embeddings, semi_targets, center, *, eta):
    distance = losses.squared_distance(embeddings, center)
    return losses.deviation_loss(distance, semi_targets, eta=eta)


def _one_class_loss(embeddings, semi_targets, center, *, eta):
    del semi_targets, eta
    return losses.one_class_loss(embeddings, center)


# (embeddings, semi_targets, center, *, eta) -> losses. The last two are Deep SVDD's and
# use no labels; the soft boundary needs the whole batch and is written below.
LOSSES = {
    "deep_sad": losses.deep_sad_loss,
    "hypersphere": losses.hypersphere_loss,
    "deviation": _deviation_loss,
    "one_class": _one_class_loss,
    "soft_boundary": None,
}


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
    loss: str = "deep_sad",
    eta: float = 1.0,
    nu: float = 0.1,
    record_groups: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """Deep SAD's loss, or another on the distance to the centre.

    The radius of a soft boundary is the best one for each batch, and differentiated as
    such: the loss is the mean of the share nu of the batch that is farthest. (Ruff et
    al., ICML 2018, keep the radius for some epochs between its updates.)

    The model state holds `batch_stats`, the `center` and, for the score of a soft
    boundary, its `radius`. Records `spread`, the root mean square deviation of a
    batch's embeddings from their mean, which is 0 when the hypersphere has collapsed.

    Args:
        network: name or architecture.
        loss: a name in `LOSSES`.
        eta: weight of the labelled examples, > 0.
        nu: of the soft boundary, the share of examples outside of it, in (0, 1).
        record_groups: whether to record `statistics.summary` of the embeddings of an
            epoch, as training has seen them.
        axis_name: the mapped axis over which a batch is split, if it is.
        dtype: type of the computation.

    Raises:
        ValueError: if there is no such loss, or eta or nu is out of its range.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(LOSSES)}")
    if not eta > 0:
        raise ValueError(f"eta is {eta}; it must be > 0")
    if not 0 < nu < 1:
        raise ValueError(f"nu is {nu}; it must be in (0, 1)")
    model = networks.build_encoder(network, axis_name=axis_name, dtype=dtype)

    def mean(x, axis=None):
        of_share = jnp.mean(x, axis=axis)
        return of_share if axis_name is None else lax.pmean(of_share, axis_name)

    def data_term(embeddings, semi_targets, center):
        if loss != "soft_boundary":
            return LOSSES[loss](embeddings, semi_targets, center, eta=eta)
        distances = losses.squared_distance(embeddings, center)
        if axis_name is not None:
            distances = lax.all_gather(distances, axis_name, tiled=True)
        # With its gradient, rounding does not matter to the example on the border.
        radius = _radius(distances, distances.size, nu)
        return losses.soft_boundary_loss(embeddings, center, radius, nu=nu)

    def batch_loss(params, model_state, batch, key):
        del key
        center = model_state["center"]
        embeddings, updated = model.apply(
            {"params": params, "batch_stats": model_state["batch_stats"]},
            batch.x,
            train=True,
            mutable=["batch_stats"],
        )
        per_example = data_term(embeddings, batch.semi_targets, center)
        seen = lax.stop_gradient(embeddings)
        deviation = seen - mean(seen, axis=0)
        metrics = {"spread": jnp.sqrt(mean(jnp.square(deviation)))}
        if record_groups:
            metrics["moments"] = statistics.moments(
                seen, batch.semi_targets, center, axis_name=axis_name
            )
        return per_example, ({**updated, "center": center}, metrics)

    def no_metrics():
        metrics = {"spread": jnp.zeros(())}
        if record_groups:
            metrics["moments"] = statistics.zeros(model.architecture.rep_dim)
        return metrics

    def merge(metrics, more):
        merged = {"spread": metrics["spread"] + more["spread"]}
        if record_groups:
            merged["moments"] = statistics.merge(metrics["moments"], more["moments"])
        return merged

    def summary(metrics, steps):
        groups = statistics.summary(metrics["moments"]) if record_groups else {}
        return {"spread": metrics["spread"] / steps, **groups}

    def score(params, model_state, x):
        embeddings = _embed(model, params, model_state, x)
        distance = losses.squared_distance(embeddings, model_state["center"])
        if (radius := model_state.get("radius")) is not None:
            return distance - jnp.square(radius)
        return distance

    init = functools.partial(_init, model)
    return training.Objective(init, batch_loss, score, no_metrics, merge, summary)


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
    pretrain: training.Optimization | None = training.PRETRAIN,
    loss: str = "deep_sad",
    eta: float = 1.0,
    nu: float = 0.1,
    record_groups: bool = False,
    execution: parallel.Execution | None = None,
    initial: Fitted | None = None,
    dtype: Any = jnp.float32,
    on_epochs: stages.OnEpochs | None = None,
    keeper: Any = None,
) -> Fitted:
    """Trains Deep SAD.

    Args:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: the training set, from `training.training_set`.
        network: name or architecture.
        train: hyper-parameters of the Deep SAD stage; the original's by default.
        pretrain: those of the autoencoder; None starts from random weights.
        loss, eta, nu, record_groups: as for `deep_sad_objective`.
        execution: how to run it; the fastest way for one run by default. With many
            runs, `key` and `data` carry their leading axes.
        initial: a model of the same network to start from instead of pretraining; its
            centre is kept and, without epochs to train, its radius.
        dtype: type of the computation.
        on_epochs: called with "pretrain" or "train" and what `training.fit` passes: the
            number of epochs done, the state and the history.
        keeper: a `checkpoints.Keeper` that saves the state, from which the same fit
            goes on after an interruption; for one run.

    Returns:
        The model.

    Raises:
        ValueError: if the data or a hyper-parameter does not fit.
        training.TrainingError: if the loss diverges or the hypersphere collapses.
    """
    train = train or training.Optimization()
    execution = execution or _default_execution(network)
    stages.check(data, network, execution, train, pretrain if initial is None else None)
    if initial is not None:
        stages.check_network(initial, network)
    options = {"axis_name": execution.axis_name, "dtype": dtype}
    objective = deep_sad_objective(
        network, loss=loss, eta=eta, nu=nu, record_groups=record_groups, **options
    )
    steps = stages.Stages(key, data, execution, _KEY_USES, on_epochs, keeper)
    autoencoder, center = None, None
    if initial is not None:
        encoder, center = initial.encoder, initial.center
        autoencoder = initial.autoencoder
    elif pretrain is not None:
        reconstruction = autoencoder_objective(network, **options)
        variables = steps.initialize("init_autoencoder", reconstruction)
        state = steps.run("pretrain", reconstruction, pretrain, *variables)
        autoencoder = {"params": state.params, **state.model_state}
        encoder = networks.encoder_variables(autoencoder)
    else:
        params, model_state = steps.initialize("init_encoder", objective)
        encoder = {"params": params, **model_state}
    if center is None:
        embed = training.make_evaluate(_embed_with(network, dtype), execution)
        embeddings = embed(*_split(encoder), data.x, data.indices)
        center = execution.compile(_center, (0, 0))(embeddings, data.size)
    state = steps.run(
        "train",
        objective,
        train,
        encoder["params"],
        {"batch_stats": encoder["batch_stats"], "center": center},
        functools.partial(_check_history, np.asarray(center)),
    )
    radius = None
    if loss == "soft_boundary" and initial is not None and not train.epochs:
        radius = initial.radius
    if loss == "soft_boundary" and radius is None:
        distance = deep_sad_objective(network, dtype=dtype).score
        score = training.make_evaluate(distance, execution)
        distances = score(state.params, state.model_state, data.x, data.indices)
        radius = execution.compile(_radius, (0, 0, None))(distances, data.size, nu)
    encoder = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    return Fitted(
        encoder, center, autoencoder, steps.history, steps.seconds, network, radius
    )


def score(
    fitted: Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Squared distance of each embedding to the centre; higher = more anomalous.

    Less the squared radius, if the model has one: positive outside of the boundary.

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
    if fitted.radius is not None:
        model_state["radius"] = fitted.radius
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
    return stages.evaluate(function, params, model_state, x, fitted.network, execution)


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


def _radius(distances: jax.Array, size: jax.Array, nu: float) -> jax.Array:
    """The radius that minimises the soft-boundary loss: a share of nu is outside.

    The derivative of R^2 + mean(max(0, d - R^2)) / nu in R^2 is one less the share
    outside over nu, so that R^2 is the (1 - nu)-quantile of the distances.
    """
    counts = jnp.arange(distances.shape[0]) < size
    ordered = jnp.sort(jnp.where(counts, distances, jnp.inf))
    rank = jnp.ceil((1.0 - nu) * size).astype(int) - 1
    # A derivative of the root at 0 would be infinite.
    return jnp.sqrt(jnp.maximum(ordered[jnp.maximum(rank, 0)], 1e-12))


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
