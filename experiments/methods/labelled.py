"""The baselines that model the labels: M2, M1+M2, their VAE, and the classifier."""

import functools

import numpy as np

from deepsad_jax import dgm, networks, stages, supervised
from deepsad_jax.data import scenario
from experiments import settings
from experiments.methods import deep
from experiments.methods.deep import Config
from experiments.methods.method import Outcome


def _fit_generative(config, key, data, **options):
    return dgm.fit(
        key,
        data,
        method=config.method,
        train=settings.optimization(config, "train"),
        pretrain=settings.optimization(config, "pretrain"),
        alpha=config.m2.alpha,
        **options,
    )


def _fit_supervised(config, key, data, **options):
    train = settings.optimization(config, "train")
    return supervised.fit(key, data, train=train, **options)


def _outcome(score, model, x_test, **options) -> Outcome:
    scores = np.asarray(score(model, x_test, **options))
    reference = {}
    if model.method == "m1_m2":
        vae = dgm.likelihood_score(model, x_test, **options)
        reference["vae"] = np.asarray(vae)
    history, seconds = model.history, model.seconds
    model = model.replace(history={}, seconds={})
    return Outcome(scores, reference, seconds, history, model, model.network)


def _check(problem: scenario.Scenario, config: Config) -> None:
    if config.method in dgm.METHODS:
        dgm.check_range("the training set", problem.x_train)
        if not 0 <= config.m2.alpha < np.inf:
            raise ValueError(
                f"config.m2.alpha is {config.m2.alpha}; it must be >= 0 and finite"
            )
    pretrains = config.pretrain.enabled or config.load_model
    if config.method == "m1_m2" and not pretrains:
        raise ValueError(
            "config.method m1_m2 stacks M2 on a pretrained VAE: leave "
            "config.pretrain.enabled on"
        )
    learns = config.method != "vae" and config.train.epochs
    if learns and not np.any(problem.semi_targets == -1):
        raise ValueError(
            f"config.method {config.method} learns from known anomalies, but there are "
            "none; raise config.data.ratio_known_outlier"
        )


def _check_model(model: deep.Model, config: Config) -> None:
    if not isinstance(model, stages.Fitted) or model.method != config.method:
        deep.refuse_model(model, config)


def _generative(method: str, names: tuple[str, ...]):
    return deep.method(
        deep.Trainer(
            names,
            _fit_generative,
            functools.partial(_outcome, dgm.score),
            functools.partial(dgm.is_convolutional, method),
            _check,
            _check_model,
        )
    )


VAE = _generative("vae", ("pretrain",))
M2 = _generative("m2", ("train",))
M1_M2 = _generative("m1_m2", ("pretrain", "train"))
SUPERVISED = deep.method(
    deep.Trainer(
        ("train",),
        _fit_supervised,
        functools.partial(_outcome, supervised.score),
        networks.is_convolutional,
        _check,
        _check_model,
    )
)
