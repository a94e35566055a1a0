"""Configs to the plain values that the library takes, checked before anything runs."""

import numbers
import os

import ml_collections
import numpy as np

from configs import default
from deepsad_jax import networks, training
from deepsad_jax.data import scenario

ConfigDict = ml_collections.ConfigDict


def protocol(config: ConfigDict) -> scenario.Protocol:
    """The semi-supervised protocol that `config.data` describes."""
    data = config.data
    return scenario.Protocol(
        normal_class=data.normal_class,
        known_outlier_class=data.known_outlier_class,
        n_known_outlier_classes=data.n_known_outlier_classes,
        ratio_known_normal=data.ratio_known_normal,
        ratio_known_outlier=data.ratio_known_outlier,
        ratio_pollution=data.ratio_pollution,
    )


def optimization(config: ConfigDict, stage: str) -> training.Optimization:
    """The hyper-parameters of the stage `pretrain` or `train`."""
    section = config[stage]
    try:
        return training.Optimization(
            learning_rate=section.learning_rate,
            epochs=section.epochs,
            milestones=section.milestones,
            batch_size=section.batch_size,
            weight_decay=section.weight_decay,
            on_divergence=section.on_divergence,
        )
    except ValueError as error:
        raise ValueError(f"config.{stage}: {error}") from error


def network(config: ConfigDict, x: np.ndarray) -> str | networks.Architecture:
    """The network that the config names, or the one that fits the data.

    Raises:
        ValueError: if there is none, or it does not take such examples.
    """
    if not config.network:
        return networks.default_network(x.shape[1:])
    expected = networks.architecture(config.network).input_shape
    if expected != x.shape[1:]:
        raise ValueError(
            f"config.network {config.network} takes examples of shape {expected}, but "
            f"those of {config.data.name} have {x.shape[1:]}; choose another network, "
            'or "" for the one that fits'
        )
    return config.network


def check(config: ConfigDict) -> None:
    """Raises ValueError for what is wrong in a config, whatever the data are."""
    _check_fields(config, default.get_config(), "config")
    if config.network:
        networks.architecture(config.network)
    if not 0 < config.eta < np.inf:
        raise ValueError(f"config.eta is {config.eta}; it must be > 0 and finite")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"config.seed is {config.seed}; it must be in [0, 2^32)")
    if config.load_model and not os.path.exists(config.load_model):
        raise FileNotFoundError(f"config.load_model: there is no {config.load_model}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"config.dtype is {config.dtype!r}; it must be float32 or bfloat16"
        )
    if config.devices < 0:
        raise ValueError(f"config.devices is {config.devices}; it must be >= 0")
    for name, least in (("epochs", 1), ("seconds", 0), ("keep", 1)):
        value = config.checkpoint[name]
        if not value >= least:
            raise ValueError(
                f"config.checkpoint.{name} is {value}; it must be at least {least}"
            )
    protocol(config)
    for stage in ("pretrain", "train"):
        optimization(config, stage)


# What a field may be, by the type of its default.
_KINDS = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    tuple: (tuple, "a tuple"),
    ConfigDict: (ConfigDict, "a section of fields"),
}


def _check_fields(config: ConfigDict, expected: ConfigDict, name: str) -> None:
    """Raises ValueError unless a config has the fields of another, of their types."""
    for field in sorted({*config, *expected}):
        if field not in expected:
            raise ValueError(
                f"{name} has no field {field!r}; its fields are {', '.join(expected)}"
            )
        if field not in config:
            raise ValueError(
                f"{name}.{field} is missing; configs/default.py has all fields"
            )
        value, kind = config[field], type(expected[field])
        allowed, description = _KINDS[kind]
        is_bool = isinstance(value, bool)
        if not isinstance(value, allowed) or is_bool != (kind is bool):
            found = "a section" if isinstance(value, ConfigDict) else repr(value)
            raise ValueError(f"{name}.{field} is {found}; it must be {description}")
        if kind is ConfigDict:
            _check_fields(value, expected[field], f"{name}.{field}")
