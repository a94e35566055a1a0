"""What all methods that train networks share: data, executions, saved models."""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deepsad_jax import (
    checkpoints,
    deep_sad,
    networks,
    parallel,
    stages,
    torch_weights,
    training,
)
from deepsad_jax.data import scenario
from experiments import settings
from experiments.methods.method import Method, Outcome

Config = ml_collections.ConfigDict
Model = deep_sad.Fitted | stages.Fitted


class Trainer(NamedTuple):
    """What a method adds to what is here.

    Attributes:
        stages: names of its stages, in their order. A "pretrain" needs no labels and is
            left out for a model that is loaded.
        fit: (config, key, data, **options) -> model, where the options are `network`,
            `initial`, `dtype`, `execution`, `on_epochs` and `keeper` of the library's.
        outcome: (model, x_test, execution=, dtype=) -> `Outcome`.
        is_convolutional: network -> whether the method trains convolutions.
        check: takes a problem and a config; raises ValueError for what of the config
            does not fit the method.
        check_model: takes a loaded model and a config; raises ValueError if the method
            cannot start from it.
    """

    stages: tuple[str, ...]
    fit: Callable[..., Model]
    outcome: Callable[..., Outcome]
    is_convolutional: Callable[[Any], bool]
    check: Callable[[scenario.Scenario, Config], None]
    check_model: Callable[[Model, Config], None]


def method(trainer: Trainer) -> Method:
    """The method of a trainer."""

    def run(problems, configs, on_epochs=None, keepers=None):
        return _run(trainer, problems, configs, on_epochs, keepers)

    def check(problem, config):
        _check(trainer, problem, config)

    def stage_epochs(config):
        return {name: config[name].epochs for name in _stages(trainer, config)}

    return Method(run, check, stage_epochs)


def _stages(trainer: Trainer, config: Config) -> tuple[str, ...]:
    pretrains = config.pretrain.enabled and not config.load_model
    return tuple(s for s in trainer.stages if s != "pretrain" or pretrains)


def _run(
    trainer: Trainer,
    problems: Sequence[scenario.Scenario],
    configs: Sequence[Config],
    on_epochs: Callable | None,
    keepers: Sequence[checkpoints.Keeper] | None,
) -> Iterator[Outcome]:
    """Trains and scores; see `Method.run`.

    The runs share one compiled program wherever that is the fastest; elsewhere each
    outcome comes as soon as its run is finished.
    """
    config, count = configs[0], len(configs)
    devices = config.devices or jax.device_count()
    sets = _training_sets(problems)
    initial, network = None, settings.network(config, problems[0].x_train)
    if config.load_model:
        initial = load_model(config.load_model, problems[0].x_train)
        network = initial.network
    dtype = jnp.dtype(config.dtype)
    options = {"network": network, "initial": initial, "on_epochs": on_epochs}
    convolutional = trainer.is_convolutional(network)
    shared = all(problem.x_train is problems[0].x_train for problem in problems)
    execution = None
    if initial is None and devices == 1:
        execution = parallel.for_many_runs(convolutional, shared, count)

    def outcome(key, data, x_test, execution, keeper=None):
        how = {"execution": execution, "dtype": dtype}
        model = trainer.fit(config, key, data, keeper=keeper, **options, **how)
        return trainer.outcome(model, x_test, **how)

    keys = [jax.random.key(config.seed) for config in configs]
    tests = [jnp.asarray(problem.x_test) for problem in problems]
    if execution is None:
        one = parallel.for_one_run(convolutional, devices)
        keepers = keepers or [None] * count
        for each in zip(keys, sets, tests, [one] * count, keepers, strict=True):
            yield outcome(*each)
        return
    data = parallel.stack([s._replace(x=0 if shared else s.x) for s in sets], execution)
    x_test = tests[0] if shared else parallel.stack(tests, execution)
    if shared:
        data = data._replace(x=sets[0].x)
    together = outcome(parallel.stack(keys, execution), data, x_test, execution)
    seconds = {stage: time / count for stage, time in together.seconds.items()}
    for single in parallel.unstack(together._replace(seconds={}, network=None), count):
        yield single._replace(seconds=seconds, network=network)


def _check(trainer: Trainer, problem: scenario.Scenario, config: Config) -> None:
    if config.hybrid:
        raise ValueError(
            "config.hybrid is for the shallow baselines; "
            f"{config.method} is deep by itself"
        )
    training.check_inputs("the training set", problem.x_train)
    training.check_inputs("the test set", problem.x_test)
    settings.network(config, problem.x_train)
    if config.devices > jax.device_count():
        raise ValueError(
            f"config.devices is {config.devices}, but there are {jax.device_count()}; "
            "0 takes them all"
        )
    for stage in _stages(trainer, config):
        try:
            training.check_batches(
                settings.optimization(config, stage),
                len(problem.indices),
                config.devices or jax.device_count(),
            )
        except ValueError as error:
            raise ValueError(f"config.{stage}: {error}") from error
    trainer.check(problem, config)
    if config.load_model:
        model = load_model(config.load_model, problem.x_train)
        trainer.check_model(model, config)
        check_network(model, config)
    elif "train" not in trainer.stages and not config.pretrain.enabled:
        raise ValueError(
            f"config.method {config.method} trains in the stage pretrain alone: leave "
            "config.pretrain.enabled on"
        )


def _training_sets(problems) -> list[training.TrainingSet]:
    """Training sets of one size, that share the arrays that the problems share."""
    sets = []
    for problem in problems:
        made = training.training_set(
            problem.x_train, problem.semi_targets, problem.indices
        )
        if problem.x_train is problems[0].x_train and sets:
            made = made._replace(x=sets[0].x)
        sets.append(made)
    size = max(len(made.indices) for made in sets)
    return [training.padded(made, size) for made in sets]


def load_model(path: str | os.PathLike, x: np.ndarray) -> Model:
    """A model to start from: a folder of ours, or the original's `model.tar`.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it is neither, or was made for other data.
    """
    if pathlib.Path(path).is_dir():
        model = checkpoints.load_model(path)
    else:
        try:
            loaded = torch_weights.load_checkpoint(path)
        except ImportError as error:
            raise ValueError(f"{path}: {error}") from error
        model = deep_sad.Fitted(
            loaded.encoder, loaded.center, loaded.autoencoder, {}, {}, loaded.network
        )
    expected = networks.resolve(model.network).input_shape
    if expected != x.shape[1:]:
        raise ValueError(
            f"the model {path} takes examples of shape {expected}, but the data have "
            f"{x.shape[1:]}"
        )
    return model


def check_network(model: Model, config: Config) -> None:
    """Raises ValueError if the config names another network than a loaded model's."""
    if not config.network:
        return
    if networks.resolve(model.network) != networks.resolve(config.network):
        raise ValueError(
            f"config.load_model {config.load_model} is a {model.network}, but "
            f"config.network is {config.network}"
        )


def refuse_model(model: Model, config: Config) -> None:
    """Raises ValueError that says that a loaded model is not of the config's method."""
    kind = getattr(model, "method", "deep_sad (or deep_svdd, autoencoder)")
    raise ValueError(
        f"config.load_model {config.load_model} is a model of {kind}, from which "
        f"{config.method} cannot start"
    )
