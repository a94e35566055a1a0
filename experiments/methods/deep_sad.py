"""Deep SAD, Deep SVDD, and the autoencoder that both start from."""

import contextlib
import json
import pathlib

import numpy as np

from deepsad_jax import deep_sad, networks, training
from deepsad_jax.data import scenario
from experiments import settings
from experiments.methods import deep
from experiments.methods.deep import Config
from experiments.methods.method import Outcome

# What config.train.loss may be, the default first.
LOSSES = {
    "deep_sad": ("deep_sad", "hypersphere", "deviation"),
    "deep_svdd": ("one_class", "soft_boundary"),
}


def _fit(config, key, data, **options):
    loss = config.train.loss or LOSSES[config.method][0]
    return deep_sad.fit(
        key,
        data,
        train=settings.optimization(config, "train"),
        pretrain=_pretrain(config),
        loss=loss,
        eta=config.eta,
        nu=config.train.nu,
        record_groups=config.train.record_groups,
        **options,
    )


def _fit_autoencoder(config, key, data, **options):
    # The centre is that of Deep SAD, which may start from the model.
    nothing = training.Optimization(epochs=0)
    return deep_sad.fit(key, data, train=nothing, pretrain=_pretrain(config), **options)


def _pretrain(config):
    enabled = config.pretrain.enabled
    return settings.optimization(config, "pretrain") if enabled else None


def _outcome(model, x_test, **options) -> Outcome:
    scores = np.asarray(deep_sad.score(model, x_test, **options))
    reference = {}
    if model.autoencoder is not None:
        reference["ae"] = _reconstruction_score(model, x_test, options)
    history, seconds = model.history, model.seconds
    model = model.replace(history={}, seconds={})
    return Outcome(scores, reference, seconds, history, model, model.network)


def _autoencoder_outcome(model, x_test, **options) -> Outcome:
    scores = _reconstruction_score(model, x_test, options)
    history, seconds = (
        {stage: kept for stage, kept in of_stages.items() if stage != "train"}
        for of_stages in (model.history, model.seconds)
    )
    model = model.replace(history={}, seconds={})
    return Outcome(scores, {}, seconds, history, model, model.network)


def _reconstruction_score(model, x_test, options):
    return np.asarray(deep_sad.reconstruction_score(model, x_test, **options))


def _check(problem: scenario.Scenario, config: Config) -> None:
    del problem
    allowed = LOSSES[config.method]
    if config.train.loss and config.train.loss not in allowed:
        raise ValueError(
            f"config.train.loss is {config.train.loss!r}; for {config.method} it must "
            f'be one of {", ".join(allowed)}, or "" for the first of these'
        )
    if not 0 < config.train.nu < 1:
        raise ValueError(f"config.train.nu is {config.train.nu}; it must be in (0, 1)")


def _check_model(model: deep.Model, config: Config) -> None:
    if not isinstance(model, deep_sad.Fitted) or model.center is None:
        deep.refuse_model(model, config)


def _check_autoencoder_model(model: deep.Model, config: Config) -> None:
    _check_model(model, config)
    if model.autoencoder is None:
        raise ValueError(
            f"config.load_model {config.load_model} has no autoencoder; it was trained "
            "without pretraining"
        )


def check_autoencoder(problem: scenario.Scenario, config: Config) -> None:
    """Raises ValueError unless the model to load has an autoencoder of these data."""
    loaded = deep.load_model(config.load_model, problem.x_train)
    _check_autoencoder_model(loaded, config)
    settings.network(config, problem.x_train)
    deep.check_network(loaded, config)
    folder = pathlib.Path(config.load_model).absolute().parent
    path = folder / "config.json"
    if not path.is_file():
        return
    with _damaged_is_value_error(path):
        saved = json.loads(path.read_text())["data"]
        before = {name: saved[name] for name in ("name", "normal_class")}
    for name in ("name", "normal_class"):
        if before[name] != config.data[name]:
            raise ValueError(
                f"config.load_model {config.load_model} was trained with data.{name} "
                f"{before[name]}, but config.data.{name} is {config.data[name]}"
            )
    path = folder / "scores.npz"
    if not path.is_file():
        return
    with _damaged_is_value_error(path), np.load(path, allow_pickle=False) as scores:
        index = scores["index"]
    if not np.array_equal(index, problem.index_test):
        raise ValueError(
            f"config.load_model {config.load_model} was trained on another "
            "split, so that its training set overlaps this test set; use the "
            "seed of that run"
        )


@contextlib.contextmanager
def _damaged_is_value_error(path: pathlib.Path):
    try:
        yield
    except Exception as error:  # readers raise many kinds for damaged files
        raise ValueError(
            f"{path}, next to config.load_model, is damaged; restore it or move the "
            "model to a folder of its own"
        ) from error


METHOD = deep.method(
    deep.Trainer(
        ("pretrain", "train"),
        _fit,
        _outcome,
        networks.is_convolutional,
        _check,
        _check_model,
    )
)
AUTOENCODER = deep.method(
    deep.Trainer(
        ("pretrain",),
        _fit_autoencoder,
        _autoencoder_outcome,
        networks.is_convolutional,
        lambda problem, config: None,
        _check_autoencoder_model,
    )
)
