"""Every field of a config with every odd value, alone and together."""

import unittest.mock

import hypothesis
import hypothesis.extra.numpy as hnp
import ml_collections
import numpy as np
import pytest
from hypothesis import strategies as st
from inputs import (
    FLOATS,
    FOLDER,
    METHODS,
    attempt,
    config_of,
    refused,
    table_file,
    until_ready,
    write_npz,
)

from configs import default
from deepsad_jax import detectors, model, selection
from deepsad_jax.data import sources
from experiments import build

ODD_VALUES = (
    *(None, True, False, -1, 0, 1, 2, 7, 10**30, 2**32, -(10**30)),
    *(0.0, -0.5, 0.5, 1.5, np.nan, np.inf, -np.inf, 1e300, 5e-324),
    *("", "nope", "linear", "none", "train_labels", "test_auc", "a b", "mnist_LeNet"),
    *((), (-1,), (1.5,), (10**30,), ("x",), [], [1], {}, object()),
)


FIELDS = tuple(
    path
    for section, value in default.get_config().items()
    for path in (
        [f"{section}.{name}" for name in value]
        if isinstance(value, ml_collections.ConfigDict)
        else [section]
    )
)


@pytest.mark.parametrize("method", METHODS)
@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.dictionaries(
        st.sampled_from(FIELDS), st.sampled_from(ODD_VALUES), min_size=1, max_size=3
    )
)
def test_fields(method, changes):
    config = config_of(method, **{"data.name": table_file(), **changes})
    attempt("configs", lambda: until_ready(config))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_alone(field):
    for value in ODD_VALUES:
        config = config_of(**{"data.name": table_file(), field: value})
        attempt("configs", lambda config=config: until_ready(config))


@pytest.mark.parametrize("method", METHODS)
def test_what_every_method_accepts(method):
    config = config_of(method, **{"data.name": table_file()})
    assert until_ready(config)


SHALLOW = tuple(
    n for n in METHODS if issubclass(detectors.METHODS[n], selection.Shallow)
)


DEEP = tuple(name for name in METHODS if name not in SHALLOW)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (DEEP, {"hybrid": True}, "config.hybrid is for the shallow baselines"),
        (
            SHALLOW,
            {"hybrid": True, "pretrain.enabled": False},
            "config.hybrid needs the codes of an autoencoder",
        ),
        (SHALLOW, {"load_model": "."}, "config.load_model is for networks and hybrids"),
        (
            METHODS,
            {"load_model": "nope"},
            "config.load_model: there is no nope",
        ),
        (METHODS, {"nope": 1}, "config has no field 'nope'; its fields are"),
        (METHODS, {"train.nope": 1}, "config.train has no field 'nope'"),
        (
            METHODS,
            {"train.epochs": 1.5},
            "config.train.epochs is 1.5; it must",
        ),
        (
            METHODS,
            {"seed": True},
            "config.seed is True; it must be an integer",
        ),
        (
            METHODS,
            {"train": None},
            "config.train is None; it must be a section",
        ),
        (METHODS, {"data.normal_class": 9}, "normal_class is 9; the classes"),
        (
            METHODS,
            {"data.ratio_pollution": 1.0},
            "ratio_pollution is 1.0; it",
        ),
        (
            METHODS,
            {"data.ratio_pollution": 0.9},
            "asks for .* lower the ratio",
        ),
        (
            METHODS,
            {"data.ratio_known_outlier": 1 - 1e-16, "data.ratio_pollution": 0.5},
            "leave no room for normal examples|asks for",
        ),
        (DEEP, {"devices": 99}, "config.devices is 99; it must be from 1 to"),
        (DEEP, {"network": "cardio_mlp"}, "cardio_mlp takes examples of shape"),
        (
            ("deep_sad", "deep_svdd", "m1_m2"),
            {"train.batch_size": 500},
            "config.train: the training set has .* less than one batch of 500",
        ),
        (
            ("autoencoder", "vae", "m1_m2", "deep_sad"),
            {"pretrain.batch_size": 500},
            "config.pretrain: the training set has .* less than one batch of 500",
        ),
        (
            ("m2", "m1_m2", "supervised"),
            {"data.ratio_known_outlier": 0.0},
            "learns from known anomalies",
        ),
        (("m2", "m1_m2"), {"m2.alpha": np.inf}, "config.m2.alpha is inf"),
        (
            ("ssad", "ocsvm"),
            {"kernel.degree": 10**9},
            "config.kernel.degree is 1000000",
        ),
        (("ssad", "ocsvm"), {"kernel.coef0": np.nan}, "config.kernel.coef0 is nan"),
        (("ssad", "ocsvm"), {"selection": "likelihood"}, "config.selection is 'likeli"),
        (("isoforest",), {"selection": "test_auc"}, "config.selection is 'test_auc'"),
        (
            ("ssad", "ocsvm", "kde"),
            {"selection": "train_labels", "data.ratio_known_outlier": 0.0},
            "needs at least 2 known anomalies",
        ),
    ],
)
def test_contradictions(names, changes, message):
    for name in names:
        config = config_of(name, **{"data.name": table_file(), **changes})
        refused("configs", message, lambda config=config: until_ready(config))


@pytest.mark.parametrize(
    ("name", "semi_targets", "changes", "message"),
    [
        ("kde", [0], {}, "likelihood needs at least 2 training examples"),
        ("kde", [-1] * 4, {"selection": "train_labels"}, "needs at least 4 .* are 0"),
        (
            "ssad",
            [-1, -1, 0, 0, 0, 0],
            {"selection": "train_labels", "ssad.C_unlabeled": 0.3},
            "kappa is 1.0; with these C and labels it must be at most",
        ),
    ],
)
def test_too_few_examples_for_a_selection(name, semi_targets, changes, message):
    path = FOLDER / "mine.npz"
    n = len(semi_targets)
    x, y = np.random.default_rng(0).random((n, 2)), np.arange(n) % 2
    write_npz(
        path, {"x_train": x, "semi_targets": semi_targets, "x_test": x, "y_test": y}
    )
    config = config_of(name, **{"data.name": str(path), **changes})
    refused("configs", message, lambda: until_ready(config))


@pytest.mark.parametrize(
    "config",
    [ml_collections.ConfigDict(), ml_collections.ConfigDict({"method": "deep_sad"})],
)
def test_configs_with_missing_fields(config):
    refused("configs", "config.* is ", lambda: until_ready(config))
    refused("configs", "config.* is |is missing", lambda: build.check(config))


@hypothesis.given(
    st.sampled_from(["ocsvm", "ssad", "kde", "isoforest"]),
    st.sampled_from(["rbf", "linear", "poly"]),
    st.sampled_from(["none", "test_auc"]),
    hnp.arrays(np.float64, (12, 2), elements=FLOATS),
)
@hypothesis.settings(max_examples=40)
def test_what_shallow_methods_accept_gives_finite_scores(name, kernel, selection, x):
    changes = {"kernel.name": kernel, "isoforest.n_trees": 3, "selection": selection}
    if name == "isoforest":
        changes["selection"] = ""
    semi_targets = np.array([1, -1, *np.zeros(10, int)])
    source = sources.Source(x, None, x, np.arange(12) % 2, semi_targets)
    config = config_of(name, **changes)
    with unittest.mock.patch.object(build, "_source", lambda *_: source):
        made = attempt("configs", lambda: build.experiment(config))
    if made is None:
        return
    fitted = attempt("configs", lambda: made.options.fit_many([made.run]))
    if fitted is not None:
        scores = attempt("configs", lambda: model.score(fitted[0][0], x))
        assert scores is None or np.isfinite(scores).all()
