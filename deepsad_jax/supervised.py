"""The supervised baseline: a binary classifier of known anomalies against the rest.

    data = training.training_set(x_train, semi_targets)
    fitted = supervised.fit(jax.random.key(0), data, network="cardio_mlp")
    scores = supervised.score(fitted, x_test)

As in section 4 of Ruff et al., "Deep Semi-Supervised Anomaly Detection", ICLR 2020:
Deep SAD's encoder with random initial weights and one more linear unit, trained by
binary cross-entropy, where unlabelled examples count as normal.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsad_jax import layers, losses, networks, parallel, stages, training


class Classifier(nn.Module):
    """Maps `[batch, *input_shape]` to the log-odds of an anomaly, `[batch]`.

    Attributes: as for `networks.Encoder`.
    """

    architecture: networks.Architecture
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        options = (self.architecture, self.axis_name, self.dtype)
        self.encoder = networks.Encoder(*options)
        self.logit = nn.Dense(1, dtype=self.dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.logit(self.encoder(x, train))[:, 0].astype(jnp.float32)


@functools.lru_cache(maxsize=64)
def objective(
    network: str | networks.Architecture,
    *,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> training.Objective:
    """Cross-entropy; the score is the log-odds, which do not saturate."""
    model = Classifier(networks.resolve(network), axis_name, dtype)

    def distribute(path, shape, draw):
        return (
            jnp.zeros(shape)
            if path[-1] == "bias"
            else layers.fan_in_bound(shape) * draw
        )

    def init(key):
        x = jnp.zeros((1, *model.architecture.input_shape))
        initialize = functools.partial(model.init, x=x, train=False)
        variables = networks.draw_variables(initialize, key, distribute)
        return variables["params"], {"batch_stats": variables["batch_stats"]}

    def loss(params, model_state, batch, key):
        del key
        logits, model_state = model.apply(
            {"params": params, **model_state},
            batch.x,
            train=True,
            mutable=["batch_stats"],
        )
        per_example = losses.classification_loss(logits, batch.semi_targets)
        return per_example, (model_state, {})

    def score(params, model_state, x):
        return model.apply({"params": params, **model_state}, x, train=False)

    return training.Objective(init, loss, score)


_KEY_USES = ("init", "train")


def fit(
    key: jax.Array,
    data: training.TrainingSet,
    *,
    network: str | networks.Architecture,
    train: training.Optimization | None = None,
    execution: parallel.Execution | None = None,
    initial: stages.Fitted | None = None,
    dtype: Any = jnp.float32,
    on_epochs: stages.OnEpochs | None = None,
    keeper: Any = None,
) -> stages.Fitted:
    """Trains the classifier.

    Args:
        key: random key; the same key gives the same model, bit for bit on one device.
        data: the training set, from `training.training_set`.
        network: name or architecture of the encoder.
        train: hyper-parameters; those of Deep SAD by default.
        execution: how to run it; the fastest way for one run by default. With many
            runs, `key` and `data` carry their leading axes.
        initial: a model to go on from.
        dtype: type of the computation.
        on_epochs: called with "train" and what `training.fit` passes.
        keeper: as for `deep_sad.fit`.

    Returns:
        The model.

    Raises:
        ValueError: if the data or a hyper-parameter does not fit.
        training.TrainingError: if the loss diverges.
    """
    train = train or training.Optimization()
    execution = execution or _default_execution(network)
    stages.check(data, network, execution, train)
    if train.epochs:
        stages.check_known_anomalies(data, "supervised")
    if initial is not None:
        stages.check_initial(initial, "supervised", network)
    target = objective(network, axis_name=execution.axis_name, dtype=dtype)
    steps = stages.Stages(key, data, execution, _KEY_USES, on_epochs, keeper)
    if initial is None:
        variables = steps.initialize("init", target)
    else:
        variables = initial.params, initial.model_state
    state = steps.run("train", target, train, *variables)
    return stages.Fitted(
        state.params,
        state.model_state,
        steps.history,
        steps.seconds,
        "supervised",
        network,
    )


def score(
    fitted: stages.Fitted,
    x: jax.Array,
    *,
    execution: parallel.Execution | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Log-odds of an anomaly, `[n]` float32.

    Args:
        fitted: the model.
        x: inputs, `[n, *input_shape]`, uint8 or floating, scaled as in training.
        execution: as in `fit`.
        dtype: as in `fit`.
    """
    execution = execution or _default_execution(fitted.network)
    function = objective(fitted.network, dtype=dtype).score
    state = (fitted.params, fitted.model_state)
    return stages.evaluate(function, *state, x, fitted.network, execution)


def _default_execution(network) -> parallel.Execution:
    return parallel.for_one_run(networks.is_convolutional(network))
