"""From a config to the objects that the library takes, checked before anything runs."""

import contextlib
import dataclasses
import functools
import hashlib
import numbers
import operator
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from configs import default
from deepsad_jax import (
    detectors,
    methods,
    parallel,
    preprocessing,
    selection,
    training,
)
from deepsad_jax.data import adbench, protocol, sources
from deepsad_jax.detectors import hybrid
from experiments import loaded, named, streaming

ConfigDict = ml_collections.ConfigDict
# Where an option stands in a config: in the section of its method, here, or at the top.
_PLACES = {
    "initial": "load_model",
    "label": "data.label",
    "nu": "train.nu",
    "record_groups": "train.record_groups",
    "alpha": "m2.alpha",
    "kernel": "kernel.name",
    **{n: f"kernel.{n}" for n in ("gamma", "coef0", "degree", "components")},
}


class Experiment(NamedTuple):
    """What a config describes.

    Attributes:
        config: the config.
        problem: its data.
        options: the method, one of `detectors.METHODS` or a hybrid.
        label: which column is the label, and what its values mean.
        plan: the devices that share each batch.
        evaluates: whether a model is only evaluated, on data that are new to it.
    """

    config: ConfigDict
    problem: protocol.Problem
    options: Any
    label: str
    plan: parallel.Plan
    evaluates: bool = False

    @property
    def run(self) -> methods.Run:
        """What the method is fitted to."""
        config, problem, few = self.config, self.problem, None
        data = streaming.training_data(problem)
        if config.selection == "test_auc":
            rows = selection.selection_rows(problem.labels_test, config.seed)
            few = problem.x_test[rows], problem.labels_test[rows]
        # A loaded model brings its own preprocessing.
        scaling = None if config.load_model else problem.preprocessing
        return methods.Run(jax.random.key(config.seed), data, scaling, config.seed, few)


def experiment(config: ConfigDict) -> Experiment:
    """Loads the data of a config and makes its method.

    Raises:
        ValueError, OSError: for what is wrong in the config or the data.
    """
    check(config)
    with _named(config):
        source = _source(*_stamped(config))
    drawn, evaluates = protocol_of(config), loaded.is_only_evaluated(config)
    if config.data.stream:
        problem = streaming.problem(source, config.data.scaling, evaluates)
    elif evaluates:
        problem = protocol.whole(source, drawn)
    else:
        problem = _problem(config, source, drawn)
    with _named(config):
        plan = parallel.split_batch(config.devices or jax.device_count())
        options = options_of(config, problem)
        label = protocol.describe(source, drawn)
        made = Experiment(config, problem, options, label, plan, evaluates)
        try:
            options.check(made.run, plan.share)
        except (TypeError, AttributeError, IndexError, KeyError) as error:
            # In what a user has written.
            raise ValueError(
                "encoder, decoder or loss of your own cannot be computed for examples "
                f"of shape {problem.x_train.shape[1:]} ({error})"
            ) from error
    if config.load_model and not evaluates:
        loaded.check_overlap(config, problem)
    return made


def check_applies(config: ConfigDict, grid: Iterable[str]) -> None:
    """Raises ValueError for fields of a grid that data of their own labels ignore.

    Args:
        config: of a run.
        grid: names of fields, such as "data.normal_class".
    """
    ignored = {f"data.{field.name}" for field in dataclasses.fields(protocol.Protocol)}
    source = _source(*_stamped(config))
    if source.semi_targets is not None and (wrong := sorted(ignored & {*grid})):
        raise ValueError(
            f"{config.data.name} has semi_targets of its own, so that {wrong[0]} "
            "changes nothing; leave it out of the grid"
        )


def _problem(config, source, drawn) -> protocol.Problem:
    if config.data.protocol == "adbench":
        problem = adbench.make(
            source,
            config.data.ratio_known_outlier,
            config.seed,
            duplicates=config.data.duplicates,
        )
    else:
        problem = protocol.make(source, drawn, config.seed)
    if config.data.scaling == "min_max":
        return problem
    rows = problem.x_train
    if config.data.protocol == "adbench":
        rows = rows[problem.indices]
    return problem._replace(preprocessing=preprocessing.standard(rows))


def data_digest(config: ConfigDict) -> str:
    """What tells the data of a config from others: SHA-256 of their arrays."""
    return _digest(*_stamped(config))


@functools.lru_cache(maxsize=256)
def _digest(*stamped) -> str:
    found = hashlib.sha256()
    for part in _source(*stamped):
        streaming.update(found, part)
    return found.hexdigest()


def _stamped(config: ConfigDict) -> tuple[str, str, str, bool, tuple]:
    """Name, folder and label of the data, whether they are streamed, and when their
    files were changed."""
    name, folder = config.data.name, config.data.dir
    paths = [name, *(os.path.join(folder, name + end) for end in sources.SUFFIXES)]
    if sources.is_folder(name):
        paths += sorted(pathlib.Path(name).glob("*.npy"))
    stamps = [(s.st_mtime_ns, s.st_size) for p in paths if (s := _stat(p))]
    return name, folder, config.data.label, config.data.stream, tuple(stamps)


@functools.lru_cache(maxsize=2)
def _source(
    name: str, folder: str, label: str, stream: bool, stamps: tuple
) -> sources.Source:
    del stamps  # a file that has changed is another one
    if stream:
        return sources.on_disk(name)
    return sources.load(name, folder or None, label=label)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):  # no file, or no name of one
        return None


def protocol_of(config: ConfigDict) -> protocol.Protocol:
    """The semi-supervised protocol that `config.data` describes."""
    if config.data.protocol == "adbench":
        return protocol.Protocol()  # which has its own
    fields = dataclasses.fields(protocol.Protocol)
    return protocol.Protocol(
        **{field.name: config.data[field.name] for field in fields}
    )


def options_of(config: ConfigDict, problem: protocol.Problem) -> Any:
    """The method of a config, with its options."""
    if not config.hybrid:
        return _options(config, config.method, problem)
    if not _is_shallow(config.method):
        raise ValueError(
            f"hybrid is for the shallow baselines; {config.method} is deep by itself"
        )
    if not (config.load_model or config.pretrain.enabled):
        raise ValueError(
            "hybrid needs the codes of an autoencoder: leave config.pretrain.enabled "
            "on, or name a model by config.load_model"
        )
    return hybrid.Hybrid(
        _options(config, "autoencoder", problem),
        _options(config, config.method, problem),
    )


def _is_shallow(method):
    return issubclass(detectors.METHODS[method], selection.Shallow)


def _places(config, method):
    own = config.get(method, {})
    return {**_PLACES, **{name: f"{method}.{name}" for name in own}}


def _options(config, method, problem):
    if _is_shallow(method) and config.load_model and not config.hybrid:
        raise ValueError(
            f"load_model is for networks and hybrids, but {method} is neither"
        )
    shape, size = problem.x_train.shape[1:], len(problem.indices)
    special = {
        "encoder": lambda: named.network(config, "encoder", shape),
        "decoder": lambda: named.network(config, "decoder", shape),
        "loss": lambda: named.loss(config),
        "train": lambda: _stage(config, "train", size),
        "pretrain": lambda: _stage(config, "pretrain", size),
        "initial": lambda: loaded.initial(config, problem),
    }
    places = _places(config, method)
    kind, found = detectors.METHODS[method], {}
    for field in dataclasses.fields(kind):
        if field.name in special:
            found[field.name] = special[field.name]()
        else:
            path = places.get(field.name, field.name)
            try:
                found[field.name] = functools.reduce(
                    operator.getitem, path.split("."), config
                )
            except KeyError:
                raise ValueError(
                    f"{field.name} is an option of {method} that configs/default.py "
                    f"lacks; a section {method} there has those of its own"
                ) from None
    return kind(**found)


def _stage(config: ConfigDict, name: str, size: int = 0) -> training.Stage | None:
    """A stage; `size` is that of the training set, where it is known."""
    section = config[name]
    own = named.optimizer(config, size // max(section.batch_size, 1))
    try:
        optimizer = own or training.Adam(
            section.learning_rate, section.milestones, section.weight_decay
        )
        stage = training.Stage(
            optimizer, section.epochs, section.batch_size, section.on_divergence
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return stage if name == "train" or section.enabled else None


@contextlib.contextmanager
def _named(config: ConfigDict) -> Iterator[None]:
    """Errors that begin with the name of an option get that of its field."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        first = message.split(" ")[0].rstrip(":")
        places = _places(config, config.method)
        if config.network and not config.encoder:
            places["encoder"] = "network"
        place = places.get(first, first)
        if place.split(".")[0] in default.get_config():
            message = f"config.{place}{message[len(first) :]}"
        raise ValueError(message) from error


def check(config: ConfigDict) -> None:
    """Raises ValueError for what is wrong in a config, whatever the data are."""
    method = config.get("method")
    if not isinstance(method, str) or method not in detectors.METHODS:
        found = repr(method) if isinstance(method, str) else f"of {type(method)}"
        raise ValueError(
            f"config.method is {found}; it must be one of "
            f"{', '.join(detectors.METHODS)}"
        )
    _check_fields(config, default.get_config(), "config")
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
    for name, allowed in _CHOICES.items():
        if config.data[name] not in allowed:
            raise ValueError(
                f"config.data.{name} is {config.data[name]!r}; it must be "
                f"{' or '.join(allowed)}"
            )
    if config.data.protocol == "adbench":
        _check_adbench(config.data)
    streaming.check(config, _is_shallow(config.method))
    protocol_of(config)
    with _named(config):
        for stage in ("pretrain", "train"):
            _stage(config, stage)
        named.check_networks(config)
        named.loss(config)


def _check_adbench(data: ConfigDict) -> None:
    """Raises ValueError for what the protocol of ADBench would not look at."""
    usual = default.get_config().data
    fields = {field.name for field in dataclasses.fields(protocol.Protocol)}
    for name in sorted(fields - {"ratio_known_outlier"}):
        if data[name] != usual[name]:
            raise ValueError(
                f"config.data.{name} is {data[name]}, which the protocol adbench does "
                "not know: a share ratio_known_outlier of the anomalies, 1, is labeled"
            )


_CHOICES = {"protocol": ("paper", "adbench"), "scaling": ("min_max", "standard")}
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
        if value is None and field in ("encoder", "decoder"):
            config[field] = ""
            continue
        allowed, description = _KINDS[kind]
        is_bool = isinstance(value, bool)
        if not isinstance(value, allowed) or is_bool != (kind is bool):
            found = "a section" if isinstance(value, ConfigDict) else repr(value)
            raise ValueError(f"{name}.{field} is {found}; it must be {description}")
        if kind is ConfigDict and not field.endswith("_options"):
            _check_fields(value, expected[field], f"{name}.{field}")
