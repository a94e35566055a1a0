"""Deep SAD, and the autoencoder that it starts from."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deepsad_jax import (
    checkpoints,
    deep_sad,
    networks,
    parallel,
    torch_weights,
    training,
)
from deepsad_jax.data import scenario
from experiments import settings
from experiments.methods.method import Method, Outcome


def run(
    problems: Sequence[scenario.Scenario],
    configs: Sequence[ml_collections.ConfigDict],
    on_epochs: Callable | None = None,
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
    convolutional = networks.is_convolutional(network)
    options = {
        "network": network,
        "train": settings.optimization(config, "train"),
        "pretrain": (
            settings.optimization(config, "pretrain")
            if config.pretrain.enabled
            else None
        ),
        "eta": config.eta,
        "initial": initial,
        "dtype": jnp.dtype(config.dtype),
        "on_epochs": on_epochs,
    }
    shared = all(problem.x_train is problems[0].x_train for problem in problems)
    execution = None
    if initial is None and devices == 1:
        execution = parallel.for_many_runs(convolutional, shared, count)
    keys = [jax.random.key(config.seed) for config in configs]
    tests = [jnp.asarray(problem.x_test) for problem in problems]
    if execution is None:
        one = parallel.for_one_run(convolutional, devices)
        for key, data, x_test in zip(keys, sets, tests, strict=True):
            fitted = deep_sad.fit(key, data, **options, execution=one)
            yield _outcome(fitted, x_test, execution=one, dtype=options["dtype"])
        return
    data = parallel.stack([s._replace(x=0 if shared else s.x) for s in sets], execution)
    x_test = tests[0] if shared else parallel.stack(tests, execution)
    if shared:
        data = data._replace(x=sets[0].x)
    fitted = deep_sad.fit(
        parallel.stack(keys, execution), data, **options, execution=execution
    )
    outcome = _outcome(fitted, x_test, execution=execution, dtype=options["dtype"])
    seconds = {stage: time / count for stage, time in outcome.seconds.items()}
    for run in parallel.unstack(outcome._replace(seconds={}, network=None), count):
        yield run._replace(seconds=seconds, network=network)


def check(problem: scenario.Scenario, config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for what of a config does not fit the data."""
    if config.hybrid:
        raise ValueError(
            "config.hybrid is for the shallow baselines; deep_sad is deep by itself"
        )
    training.check_inputs("the training set", problem.x_train)
    training.check_inputs("the test set", problem.x_test)
    settings.network(config, problem.x_train)
    for stage in stages(config):
        try:
            training.check_batches(
                settings.optimization(config, stage),
                len(problem.indices),
                config.devices or jax.device_count(),
            )
        except ValueError as error:
            raise ValueError(f"config.{stage}: {error}") from error


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


def _outcome(fitted, x_test, **options) -> Outcome:
    reference = {}
    if fitted.autoencoder is not None:
        reference["ae"] = deep_sad.reconstruction_score(fitted, x_test, **options)
    scores = deep_sad.score(fitted, x_test, **options)
    return Outcome(
        np.asarray(scores),
        {name: np.asarray(values) for name, values in reference.items()},
        fitted.seconds,
        fitted.history,
        fitted.replace(history={}, seconds={}),
        fitted.network,
    )


def stages(config: ml_collections.ConfigDict) -> dict[str, int]:
    """The stages that a run goes through, in their order, with their epochs."""
    pretrains = config.pretrain.enabled and not config.load_model
    names = ("pretrain", "train") if pretrains else ("train",)
    return {name: config[name].epochs for name in names}


def load_model(path: str | os.PathLike, x: np.ndarray) -> deep_sad.Fitted:
    """A model to start from: a folder of ours, or the original's `model.tar`.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it is neither, or was made for other data.
    """
    if pathlib.Path(path).is_dir():
        fitted = checkpoints.load_model(path)
    else:
        loaded = torch_weights.load_checkpoint(path)
        fitted = deep_sad.Fitted(
            loaded.encoder, loaded.center, loaded.autoencoder, {}, {}, loaded.network
        )
    expected = networks.resolve(fitted.network).input_shape
    if expected != x.shape[1:]:
        raise ValueError(
            f"the model {path} takes examples of shape {expected}, but the data have "
            f"{x.shape[1:]}"
        )
    return fitted


def check_autoencoder(
    problem: scenario.Scenario, config: ml_collections.ConfigDict
) -> None:
    """Raises ValueError unless the model to load has an autoencoder of these data."""
    loaded = load_model(config.load_model, problem.x_train)
    if loaded.autoencoder is None:
        raise ValueError(
            f"config.load_model {config.load_model} has no autoencoder; it was trained "
            "without pretraining"
        )
    expected = settings.network(config, problem.x_train)
    if config.network and loaded.network != expected:
        raise ValueError(
            f"config.load_model {config.load_model} is a {loaded.network}, but "
            f"config.network is {config.network}"
        )
    folder = pathlib.Path(config.load_model).absolute().parent
    if not (folder / "config.json").is_file():
        return
    before = json.loads((folder / "config.json").read_text())["data"]
    for name in ("name", "normal_class"):
        if before[name] != config.data[name]:
            raise ValueError(
                f"config.load_model {config.load_model} was trained with data.{name} "
                f"{before[name]}, but config.data.{name} is {config.data[name]}"
            )
    if (folder / "scores.npz").is_file():
        with np.load(folder / "scores.npz") as scores:
            if not np.array_equal(scores["index"], problem.index_test):
                raise ValueError(
                    f"config.load_model {config.load_model} was trained on another "
                    "split, so that its training set overlaps this test set; use the "
                    "seed of that run"
                )


METHOD = Method(run, check, stages)
