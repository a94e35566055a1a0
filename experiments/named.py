"""Networks, losses and optimizers that a config names: ours, or module:name of yours.

Each field has a section of options beside it, for what is called.
"""

import functools
import hashlib
import inspect
import os
import pathlib
import sys
import types
from typing import Any

import ml_collections
import optax

from deepsad_jax import checks, modules, networks, objectives, training, values

ConfigDict = ml_collections.ConfigDict
# What config.train.loss may be, the default first.
LOSSES = {
    "deep_sad": ("deep_sad", "hypersphere", "deviation"),
    "deep_svdd": ("one_class", "soft_boundary"),
}


def optimizer(config: ConfigDict, steps: int) -> training.Optimizer | None:
    if not (name := config.optimizer):
        return None
    own = ":" in name
    function = values.imported(name, "optimizer") if own else getattr(optax, name, None)
    if not callable(function):
        raise ValueError(
            f"optimizer is {name!r}; it must be the name of a function in optax, or "
            "module:name of one that makes an optimizer"
        )
    takes_steps = "steps" in inspect.signature(function).parameters
    _bound(config, "optimizer", function, **({"steps": steps} if takes_steps else {}))
    options = tuple(sorted(config.optimizer_options.to_dict().items()))
    made = training.Optimizer(function, options)
    if steps:  # a schedule may be wrong for other numbers
        _called("optimizer", functools.partial(made, steps))
    return made


def versions(config: ConfigDict) -> dict[str, str]:
    """Of each module that a config names things of, a digest of its file, by name."""
    fields = (config.encoder, config.decoder, config.loss, config.optimizer)
    names = {field.partition(":")[0] for field in fields if ":" in field}
    found = {}
    for name in sorted(names):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path and os.path.isfile(path):
            content = pathlib.Path(path).read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()[:12]
    return found


def _signature(function):
    """That of what makes an instance, if it is a class; NNX's hide theirs."""
    if isinstance(function, type):
        function = functools.partial(function.__init__, None)
    return inspect.signature(function)


def _bound(config, name, function, *arguments, **more):
    """A function with the options beside a field, if it takes them."""
    options = config[f"{name}_options"].to_dict()
    try:
        _signature(function).bind(*arguments, **more, **options)
    except TypeError as error:
        raise ValueError(
            f"{name} is {config[name]!r}, which does not take what it is called with, "
            f"{name}_options included ({error})"
        ) from error
    return functools.partial(function, **options) if options else function


def _called(name, function):
    try:
        return function()
    except Exception as error:  # whatever a function of a user raises
        raise ValueError(
            f"{name} cannot be made with its {name}_options ({error})"
        ) from error


def network(config: ConfigDict, name: str, shape: tuple[int, ...]) -> Any:
    """Encoder or decoder: of a user, or of ours by name or with another slope.

    None is the one that fits the data or, for a decoder, the encoder.
    """
    path = config[name]
    if ":" in path:
        return _module(config, name)
    known = path or config.encoder or config.network
    if ":" in known:
        return None
    pair = networks.pair(known) if known else networks.for_shape(shape)
    other = pair.clone(slope=float(config.slope))
    if options := config.encoder_options.to_dict():
        encoder = _called("encoder", functools.partial(other.encoder.clone, **options))
        other = other._replace(encoder=encoder)
    is_other = other != pair and pair.input_shape == shape
    if is_other or (path and name == "decoder"):
        return getattr(other, name)
    return known or None if name == "encoder" else None


def _module(config: ConfigDict, name: str) -> Any:
    """A module of a user: the object itself, or what it makes of its options."""
    made = values.imported(config[name], name)
    if isinstance(made, (type, types.FunctionType, functools.partial)):
        if "rngs" in _signature(made).parameters:  # NNX makes it with a key
            made = _bound(config, name, made, rngs=None)
        else:
            made = _called(name, _bound(config, name, made))
    _check_saved(name, modules.network(made, name))
    return made


def _check_saved(name: str, value: Any) -> None:
    """What cannot be saved is not trained."""
    try:
        values.to_json(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be saved: {error}") from error


def loss(config: ConfigDict) -> Any:
    allowed = LOSSES[config.method if config.method in LOSSES else "deep_sad"]
    name = config.train.loss
    if name and name not in allowed:
        raise ValueError(
            f"train.loss is {name!r}; for {config.method} it must be one of "
            f'{", ".join(allowed)}, or "" for the first of these'
        )
    if not (own := config.loss):
        return name or allowed[0]
    if ":" not in own and not config.loss_options:
        return own
    found = values.imported(own, "loss") if ":" in own else objectives.named_loss(own)
    found = _bound(config, "loss", found, "embeddings", "semi_targets", "center")
    _check_saved("loss", found)
    return found


def check_networks(config: ConfigDict) -> None:
    if config.encoder and config.network:
        raise ValueError(
            f"encoder is {config.encoder!r} and network is {config.network!r}; give one"
        )
    if not (checks.is_finite(config.slope) and config.slope >= 0):
        raise ValueError(f"slope is {config.slope}; it must be >= 0 and finite")
    for name in ("network", "encoder", "decoder"):
        if ":" in config[name] and name != "network":
            _module(config, name)
        elif config[name] and config[name] not in networks.PAPER:
            raise ValueError(
                f"{name} is {config[name]!r}; it must be one of "
                f"{', '.join(networks.PAPER)}"
                + ("" if name == "network" else ", or module:name")
            )
