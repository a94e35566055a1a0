"""What each value of `config.method` does with a semi-supervised problem."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from deepsad_jax import checkpoints, deep_sad, torch_weights, training
from deepsad_jax.data import scenario
from experiments import settings


class Outcome(NamedTuple):
    """What a method has found on one problem.

    Attributes:
        scores: anomaly scores of the test set, `[n_test]`, higher = more anomalous.
        reference_scores: scores of by-products, such as "ae", the autoencoder.
        seconds: times of the stages, "train" among them.
        history: for each stage, metrics per epoch.
        model: what can be saved, if anything.
        network: the network, by name or description.
    """

    scores: np.ndarray
    reference_scores: dict[str, np.ndarray]
    seconds: dict[str, float]
    history: dict[str, dict[str, np.ndarray]]
    model: deep_sad.Fitted | None
    network: Any


def run_deep_sad(
    problem: scenario.Scenario,
    config: ml_collections.ConfigDict,
    on_epochs: Callable | None = None,
) -> Outcome:
    """Deep SAD, and the autoencoder that it starts from."""
    data = training.training_set(problem.x_train, problem.semi_targets, problem.indices)
    training.check_inputs("the test set", problem.x_test)
    initial, network = None, settings.network(config, problem.x_train)
    if config.load_model:
        initial = load_model(config.load_model, problem.x_train)
        network = initial.network
    fitted = deep_sad.fit(
        jax.random.key(config.seed),
        data,
        network=network,
        train=settings.optimization(config, "train"),
        pretrain=(
            settings.optimization(config, "pretrain")
            if config.pretrain.enabled
            else None
        ),
        eta=config.eta,
        initial=initial,
        on_epochs=on_epochs,
    )
    reference = {}
    if fitted.autoencoder is not None:
        reference["ae"] = deep_sad.reconstruction_score(fitted, problem.x_test)
    return Outcome(
        np.asarray(deep_sad.score(fitted, problem.x_test)),
        {name: np.asarray(scores) for name, scores in reference.items()},
        fitted.seconds,
        fitted.history,
        fitted,
        network,
    )


def stages(config: ml_collections.ConfigDict) -> dict[str, int]:
    """The stages that a run goes through, in their order, with their epochs."""
    pretrains = config.pretrain.enabled and not config.load_model
    names = ("pretrain", "train") if pretrains else ("train",)
    return {name: config[name].epochs for name in names}


def load_model(path: str | os.PathLike, x: np.ndarray) -> deep_sad.Fitted:
    """A model to start from: a folder of ours, or the original's `model.tar`.

    Raises:
        ValueError: if it is neither, or was made for other data.
    """
    if pathlib.Path(path).is_dir():
        fitted = checkpoints.load_model(path)
    else:
        loaded = torch_weights.load_checkpoint(path)
        fitted = deep_sad.Fitted(
            loaded.encoder, loaded.center, loaded.autoencoder, {}, {}, loaded.network
        )
    expected = settings.networks.resolve(fitted.network).input_shape
    if expected != x.shape[1:]:
        raise ValueError(
            f"the model {path} takes examples of shape {expected}, but the data have "
            f"{x.shape[1:]}"
        )
    return fitted


RUN = {"deep_sad": run_deep_sad}
