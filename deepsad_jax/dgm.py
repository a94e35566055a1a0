"""Training of the deep generative models of `generative`: VAE (M1), M2 and M1+M2.

    data = training.training_set(x_train, semi_targets)
    fitted = dgm.fit(jax.random.key(0), data, network="cardio_mlp", method="m2")
    scores = dgm.score(fitted, x_test)

Kingma et al., "Semi-supervised Learning with Deep Generative Models", NIPS 2014. Unlike
in the published baselines of Deep SAD, the classifier of an image model normalises a
batch as one: a batch of its own for the few labelled examples, often a single anomaly,
would be normalised until nothing tells them apart.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsad_jax import (
    generative,
    layers,
    losses,
    networks,
    parallel,
    stages,
    training,
)

METHODS = ("vae", "m2", "m1_m2")


def _distribute(path: list[str], shape: tuple[int, ...], draw: jax.Array) -> jax.Array:
    """Dense kernels by Glorot's normal rule, convolutions by PyTorch's; no biases."""
    if path[-1] == "bias":
        return jnp.zeros(shape)
    if len(shape) == 4:
        return layers.fan_in_bound(shape) * draw
    # A uniform draw may be -1 itself, whose quantile is infinite.
    normal = math.sqrt(2.0) * lax.erf_inv((1.0 - 1e-6) * draw)
    return math.sqrt(2.0 / sum(shape)) * normal


def _initialize(model, network, key):
    spec = networks.resolve(network)
    x = jnp.zeros((1, *spec.input_shape))
    if isinstance(model, generative.VAE):
        arguments = (x, jnp.zeros((1, model.latent)))
    else:
        arguments = (x, jnp.zeros((model.draws, 2, 1, model.latent)), True)
    variables = networks.draw_variables(
        lambda key: model.init(key, *arguments), key, _distribute
    )
    return variables["params"], {"batch_stats": variables["batch_stats"]}


def _noise(key, shape, axis_name):
    """Standard normal noise; of one device's share, the same as without devices.

    The last axis but one is that of the batch.
    """
    if axis_name is None:
        return jax.random.normal(key, shape)
    *front, share, latent = shape
    whole = jax.random.normal(key, (*front, share * lax.axis_size(axis_name), latent))
    start = lax.axis_index(axis_name) * share
    return lax.dynamic_slice_in_dim(whole, start, share, axis=-2)


@functools.lru_cache(maxsize=64)
def vae_objective(
    network: str | networks.Architecture,
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """The negative lower bound of the likelihood; the score is its noiseless form."""
    model = generative.build_vae(network, dtype=dtype)

    def loss(params, model_state, batch, key):
        noise = _noise(key, (len(batch.x), model.latent), axis_name)
        return -model.apply({"params": params}, batch.x, noise), (model_state, {})

    def score(params, model_state, x):
        del model_state
        # Beyond [0, 1], where test data of a table may be, it would be no likelihood.
        x = jnp.clip(x, 0.0, 1.0)
        return model.apply({"params": params}, x, method=model.noiseless_loss)

    init = functools.partial(_initialize, model, network)
    return training.Objective(init, loss, score)


@functools.lru_cache(maxsize=64)
def m2_objective(
    network: str | networks.Architecture,
    *,
    stacked: bool = False,
    alpha: float = 0.1,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """The loss of M2 or, stacked, of M1+M2; the score is q(anomaly | x).

    The mean over the labelled examples of a batch plus that over the unlabelled ones.
    The model state holds `batch_stats` and, stacked, the frozen parameters `m1` of the
    VAE.
    """
    if stacked:
        model = generative.build_m1_m2(network, dtype=dtype)
    else:
        model = generative.build_m2(network, axis_name=axis_name, dtype=dtype)

    def variables(params, model_state):
        frozen = {"m1": model_state["m1"]} if stacked else {}
        return {
            "params": {**params, **frozen},
            "batch_stats": model_state["batch_stats"],
        }

    def loss(params, model_state, batch, key):
        noise = _noise(key, (model.draws, 2, len(batch.x), model.latent), axis_name)
        (bounds, log_q), updated = model.apply(
            variables(params, model_state),
            batch.x,
            noise,
            True,
            mutable=["batch_stats"],
        )
        per_example = losses.m2_loss(bounds, log_q, batch.semi_targets, alpha=alpha)
        weighted = losses.balanced(per_example, batch.semi_targets, axis_name=axis_name)
        return weighted, ({**model_state, **updated}, {})

    def score(params, model_state, x):
        log_q = model.apply(
            variables(params, model_state), x, False, method=model.classify
        )
        return jnp.exp(log_q[:, 1])

    def init(key):
        params, model_state = _initialize(model, network, key)
        if stacked:
            model_state["m1"] = params.pop("m1")
        return params, model_state

    return training.Objective(init, loss, score)


def is_convolutional(method: str, network: str | networks.Architecture) -> bool:
    """Whether a method computes convolutions for the data of a network."""
    return method == "m2" and networks.is_convolutional(network)


def objective(
    method: str,
    network: str | networks.Architecture,
    *,
    alpha: float = 0.1,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """The objective of one of `METHODS`.

    Raises:
        ValueError: if there is no such method or network, or alpha is below 0.
    """
    if method not in METHODS:
        raise ValueError(
            f"method is {method!r}; it must be one of {', '.join(METHODS)}"
        )
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; it must be >= 0")
    options = {"axis_name": axis_name, "dtype": dtype}
    if method == "vae":
        return vae_objective(network, **options)
    return m2_objective(network, stacked=method == "m1_m2", alpha=alpha, **options)


_KEY_USES = ("init_vae", "pretrain", "init", "train")


def fit(
    key: jax.Array,
    data: training.TrainingSet,
    *,
    network: str | networks.Architecture,
    method: str = "m2",
    train: training.Optimization | None = None,
    pretrain: training.Optimization | None = None,
    alpha: float = 0.1,
    execution: parallel.Execution | None = None,
    initial: stages.Fitted | None = None,
    dtype: Any = jnp.float32,
    on_epochs: stages.OnEpochs | None = None,
    keeper: Any = None,
) -> stages.Fitted:
    """Trains one of `METHODS`.

    Args:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: the training set, from `training.training_set`, with x in [0, 1].
        network: name or architecture of the network whose sizes are taken.
        method: "vae" is trained without labels in the stage "pretrain", "m2" in the
            stage "train"; "m1_m2" takes both, and freezes the VAE after the first.
        train, pretrain: hyper-parameters of the stages; the original's by default.
        alpha: weight of the classification of labelled examples, >= 0.
        execution: how to run it; the fastest way for one run by default. With many
            runs, `key` and `data` carry their leading axes.
        initial: a model of the same method to go on from; a VAE stays as it is.
        dtype: type of the computation.
        on_epochs: called with the stage and what `training.fit` passes.
        keeper: as for `deep_sad.fit`.

    Returns:
        The model.

    Raises:
        ValueError: if the data or a hyper-parameter does not fit.
        training.TrainingError: if the loss diverges.
    """
    train = train or training.Optimization()
    pretrain = pretrain or training.PRETRAIN
    execution = execution or _default_execution(method, network)
    options = {"axis_name": execution.axis_name, "dtype": dtype}
    target = objective(method, network, alpha=alpha, **options)
    pretrains = method != "m2" and initial is None
    stages.check(
        data,
        network,
        execution,
        pretrain if pretrains else None,
        train if method != "vae" else None,
    )
    check_range("x", data.x)
    if method != "vae" and train.epochs:
        stages.check_known_anomalies(data, method)
    if initial is not None:
        stages.check_initial(initial, method, network)
    steps = stages.Stages(key, data, execution, _KEY_USES, on_epochs, keeper)
    if initial is not None:
        params, model_state = initial.params, initial.model_state
    elif method == "m2":
        params, model_state = steps.initialize("init", target)
    else:
        vae = vae_objective(network, **options)
        params, model_state = steps.initialize("init_vae", vae)
        params = steps.run("pretrain", vae, pretrain, params, model_state).params
        if method == "m1_m2":
            m1 = params
            params, model_state = steps.initialize("init", target)
            model_state = {**model_state, "m1": m1}
    if method != "vae":
        state = steps.run("train", target, train, params, model_state)
        params, model_state = state.params, state.model_state
    return stages.Fitted(
        params, model_state, steps.history, steps.seconds, method, network
    )


def score(
    fitted: stages.Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """q(anomaly | x) of M2 and M1+M2, `VAE.noiseless_loss` of a VAE.

    The latter of inputs clipped to [0, 1].

    Args:
        fitted: the model.
        x: inputs, `[n, *input_shape]`, uint8 or floating, scaled as in training.
        execution: as in `fit`.
        dtype: as in `fit`.

    Returns:
        Scores, `[n]` float32; higher = more anomalous.
    """
    function = objective(fitted.method, fitted.network, dtype=dtype).score
    execution = execution or _default_execution(fitted.method, fitted.network)
    state = (fitted.params, fitted.model_state)
    return stages.evaluate(function, *state, x, fitted.network, execution)


def likelihood_score(
    fitted: stages.Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The score of the VAE inside an M1+M2; Args and Returns: as for `score`.

    Raises:
        ValueError: if the model is no M1+M2.
    """
    if fitted.method != "m1_m2":
        raise ValueError(f"the model is {fitted.method}; only m1_m2 has a VAE inside")
    vae = fitted.replace(params=fitted.model_state["m1"], method="vae")
    return score(vae, x, execution=execution, dtype=dtype)


def check_range(name: str, x: jax.Array | np.ndarray) -> None:
    """Raises ValueError unless x is uint8 or, up to rounding, in [0, 1]."""
    if x.dtype == np.uint8:
        return
    low, high = float(x.min()), float(x.max())
    if low < -1e-3 or high > 1.001:
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}; the generative models "
            "take features in [0, 1], so scale them first"
        )


def _default_execution(method, network) -> parallel.Execution:
    return parallel.for_one_run(is_convolutional(method, network))
