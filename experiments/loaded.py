"""The model that a config goes on from or only evaluates, see `load_model`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from deepsad_jax import model, torch_weights
from deepsad_jax.data import protocol

ConfigDict = ml_collections.ConfigDict


def is_only_evaluated(config: ConfigDict) -> bool:
    """Whether a model, with its own preprocessing, is only evaluated on other data than
    those it was trained on."""
    path = pathlib.Path(config.load_model)
    trains = config.train.epochs and config.method not in ("autoencoder", "vae")
    if not config.load_model or config.hybrid or trains or not path.is_dir():
        return False
    found = _loaded(config.load_model)
    if found.info["versions"]["deepsad_jax"] == "0.1":  # which kept no scaling
        return False
    is_whole = found.info["method"] == config.method
    before = _trained_on(config)
    if before is None or not is_whole:
        return is_whole
    return not _is_same(before["name"], config.data.name)


def _is_same(one: str, other: str) -> bool:
    """Whether two names are of one file, or of one set of data."""
    return os.path.realpath(one) == os.path.realpath(other)


def initial(config: ConfigDict, problem: protocol.Problem) -> model.Model | None:
    """The model of `load_model`, if it is one, for the data of a problem.

    Raises:
        ValueError: if it cannot be read, or takes examples of another shape.
    """
    path = config.load_model
    if not path:
        return None
    if pathlib.Path(path).is_dir():
        found = _loaded(path)
        if found.info["versions"]["deepsad_jax"] == "0.1":  # which kept no scaling
            found = _scaled_by(found, problem.preprocessing)
    else:
        try:
            found = torch_weights.load_model(path, problem.preprocessing)
        except ImportError as error:
            raise ValueError(f"{path}: {error}") from error
    expected = tuple(found.info["shape"])
    if expected != problem.x_train.shape[1:]:
        raise ValueError(
            f"the model {path} takes examples of shape {expected}, but the data have "
            f"{problem.x_train.shape[1:]}"
        )
    return found


def _loaded(path: str) -> model.Model:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this model was saved by version 0.1")
        return model.load(path)


def _scaled_by(found: model.Model, scaling: Any) -> model.Model:
    """A model that did not keep the scaling of its table, with another one."""
    base = found.base and _scaled_by(found.base, scaling)
    return dataclasses.replace(found, preprocessing=scaling, base=base)


def check_overlap(config: ConfigDict, problem: protocol.Problem) -> None:
    """Raises ValueError if a loaded model was trained on rows of this test set."""
    if (before := _trained_on(config)) is None:
        return
    is_same = _is_same(before["name"], config.data.name)
    for name, same in (
        ("name", is_same),
        ("normal_class", before["normal_class"] == config.data.normal_class),
    ):
        if config.hybrid and not same:
            raise ValueError(
                f"config.load_model {config.load_model} was trained with data.{name} "
                f"{before[name]}, but config.data.{name} is {config.data[name]}"
            )
    if not is_same:
        return
    path = pathlib.Path(config.load_model).absolute().parent / "scores.npz"
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


def _trained_on(config: ConfigDict) -> dict[str, Any] | None:
    """`data.name` and `data.normal_class` of the run that a loaded model is from."""
    path = pathlib.Path(config.load_model).absolute().parent / "config.json"
    if not path.is_file():
        return None
    with _damaged_is_value_error(path):
        saved = json.loads(path.read_text())["data"]
        return {name: saved[name] for name in ("name", "normal_class")}


@contextlib.contextmanager
def _damaged_is_value_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # readers raise many kinds for damaged files
        raise ValueError(
            f"{path}, next to config.load_model, is damaged; restore it or move the "
            "model to a folder of its own"
        ) from error
