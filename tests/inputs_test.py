"""Whatever a user gives works or is refused by one sentence, before anything is done.

python tests/inputs_test.py --count    # how many inputs were tried, and refused
"""

import collections
import contextlib
import gzip
import io
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import types
import unittest.mock
import zipfile

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import ml_collections
import numpy as np
import pooch
import pytest
import scipy.io
import scipy.sparse
from hypothesis import strategies as st

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # for --count

from configs import default
from deepsad_jax import (
    detectors,
    model,
    networks,
    objectives,
    preprocessing,
    torch_weights,
    training,
)
from deepsad_jax.data import protocol as protocols
from deepsad_jax.data import sources, tfds_images
from experiments import build, run

hypothesis.settings.register_profile(
    "inputs",
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("inputs")

METHODS = tuple(detectors.METHODS)
TRIED, REFUSED = collections.Counter(), collections.Counter()
FOLDER = pathlib.Path(tempfile.gettempdir(), f"inputs_test-{os.getpid()}")


@pytest.fixture(scope="module", autouse=True)
def folder():
    FOLDER.mkdir()
    yield
    shutil.rmtree(FOLDER)


def attempt(category, action, *words):
    """What the action returns, or None if it refuses by a sentence with these words."""
    TRIED[category] += 1
    try:
        return action()
    except (ValueError, OSError) as error:
        # Subclasses, such as that of json, are not meant for users.
        assert type(error) is ValueError or isinstance(error, OSError), repr(error)
        message = str(error)
        assert 10 < len(message) < 1000 and "\n" not in message, message
        assert "Traceback" not in message and not message.endswith("."), message
        for word in words:
            assert str(word) in message, (word, message)
        REFUSED[category] += 1
    return None


def refused(category, message, action):
    """Checks that an action is refused, by a message that matches."""
    before = REFUSED[category]
    with pytest.raises((ValueError, OSError), match=message):
        try:
            action()
        except (ValueError, OSError):
            attempt(category, action)
            raise
    assert REFUSED[category] == before + 1


# --- Arrays.

DTYPES = (
    *("float64", "float32", "float16", "int64", "int16", "uint8", "uint64", "bool"),
    *("complex64", "datetime64[s]", "S3", "U3", "object"),
)
NOT_ARRAYS = st.sampled_from(
    [None, 3, "x", [], [[1.0, 2.0], [3.0]], {}, object(), [None], [[1.0], "a"], 1e400]
)
FLOATS = st.one_of(
    st.floats(0, 1),
    st.floats(width=64),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e308, -1e308, 1e39, 5e-324, -0.0]),
)


def anything(dtype):
    """Arrays of any shape."""
    shape = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    if dtype == "object":
        return shape.map(lambda s: np.full(s, None))
    return hnp.arrays(dtype, shape)


ANYTHING = st.one_of(NOT_ARRAYS, st.sampled_from(DTYPES).flatmap(anything))


@st.composite
def tables(draw):
    """Tables, of which some have a value, a column or a type that is odd."""
    n, d = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    x = np.random.default_rng(seed).normal(size=(n, d))
    x = x * draw(st.sampled_from([1.0, 0.01, 1e6, 1e30, 1e-300]))
    for _ in range(draw(st.integers(0, 2))):
        x[draw(st.integers(0, n - 1)), draw(st.integers(0, d - 1))] = draw(FLOATS)
    if draw(st.booleans()):
        x[:, 0] = draw(FLOATS)  # constant
    if draw(st.booleans()):
        x = np.column_stack([x, x[:, 0]])  # duplicate
    dtype = draw(st.sampled_from(["float64", "float64", "float32", "int32", "uint8"]))
    with np.errstate(all="ignore"):
        return x.astype(dtype)


@st.composite
def images(draw):
    shape = (
        draw(st.integers(1, 30)),
        *draw(
            st.sampled_from(
                [(8, 8, 1), (8, 8), (28, 28, 1), (32, 32, 3), (3, 32, 32), (5, 7, 2)]
            )
        ),
    )
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        return rng.integers(0, 256, shape, np.uint8)
    x = rng.random(shape).astype(draw(st.sampled_from(["float32", "float64"])))
    if draw(st.booleans()):
        with np.errstate(over="ignore"):
            x.flat[draw(st.integers(0, x.size - 1))] = draw(FLOATS)
    return x


@st.composite
def labels_for(draw, n):
    """Labels of n examples, most often two classes of which each has some."""
    usual = np.arange(n) % draw(st.integers(1, 4))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(ANYTHING)
    if kind == 1:
        return draw(hnp.arrays(st.sampled_from(["int64", "float64", "uint64"]), n))
    if kind == 2:
        return usual - 1  # such as -1, 0, 1
    return usual.astype(draw(st.sampled_from(["int64", "float32", "uint8", "bool"])))


@st.composite
def raw_sources(draw):
    """Data sets of whatever arrays."""
    pictures = draw(st.booleans())
    x = draw(images() if pictures else tables())
    x_test = labels = labels_test = semi_targets = None
    if draw(st.booleans()):
        labels = draw(labels_for(len(x)))
    else:
        semi_targets = draw(labels_for(len(x)))
    if draw(st.booleans()):
        x_test = x[:: draw(st.sampled_from([1, -1, 2]))]
        labels_test = draw(labels_for(len(x_test)))
    if draw(st.integers(0, 9)) == 0:
        x = draw(ANYTHING)
    if draw(st.integers(0, 9)) == 0:
        x_test = draw(st.one_of(ANYTHING, tables(), images()))
    return sources.Source(x, labels, x_test, labels_test, semi_targets)


RATIOS = st.one_of(st.sampled_from([0.0, 0.1, 0.5]), st.floats(0, 1), FLOATS)
PROTOCOLS = st.fixed_dictionaries(
    {},
    optional={
        "normal_class": st.integers(-1, 3),
        "known_outlier_class": st.integers(-1, 3),
        "n_known_outlier_classes": st.integers(-1, 3),
        "ratio_known_normal": RATIOS,
        "ratio_known_outlier": RATIOS,
        "ratio_pollution": RATIOS,
    },
)


@hypothesis.given(
    st.one_of(tables(), images(), ANYTHING), st.data(), st.booleans(), st.booleans()
)
def test_training_sets(x, data, has_labels, has_indices):
    n = len(x) if isinstance(x, np.ndarray) and x.ndim else 3
    semi_targets = data.draw(labels_for(n)) if has_labels else None
    indices = None
    if has_indices:
        rows = st.permutations(range(n)).map(lambda r: np.array(r, np.int64))
        indices = data.draw(st.one_of(rows, rows.map(lambda r: r - 1), ANYTHING))
    made = attempt("arrays", lambda: training.training_set(x, semi_targets, indices))
    if made is None:
        return
    assert made.x is x or made.x.dtype == np.asarray(x).dtype  # raw
    np.testing.assert_array_equal(
        made.indices, np.arange(n) if indices is None else indices
    )
    assert set(np.unique(made.semi_targets)) <= {-1, 0, 1}
    assert made.semi_targets.shape == made.indices.shape


@hypothesis.given(st.one_of(tables(), images(), ANYTHING))
def test_inputs_are_named(x):
    made = attempt("arrays", lambda: preprocessing.auto(x, "the examples"))
    if made is None:
        refused("arrays", "the examples", lambda: preprocessing.auto(x, "the examples"))
        return
    scaled = made(made.check(x, "the examples"))
    assert scaled.dtype == np.float32 and np.isfinite(scaled).all()


def check_problem(problem):
    assert len(problem.indices) == len(problem.semi_targets) > 0
    assert set(np.unique(problem.semi_targets)) <= {-1, 0, 1}
    assert set(np.unique(problem.labels_test)) <= {0, 1}
    assert len(problem.x_test) == len(problem.labels_test) == len(problem.index_test)
    scaled = [problem.preprocessing(x) for x in (problem.x_train, problem.x_test)]
    for part in scaled:
        assert part.dtype == np.float32 and np.isfinite(part).all()
    if problem.x_train.ndim == 2:
        assert scaled[0].min() >= 0 and scaled[0].max() <= 1


@hypothesis.settings(max_examples=400)
@hypothesis.given(raw_sources(), PROTOCOLS, st.sampled_from([0, 1, 2**32 - 1]))
def test_problems(source, fields, seed):
    drawn = attempt("arrays", lambda: protocols.Protocol(**fields))
    if drawn is None:
        drawn = protocols.Protocol()
    problem = attempt("arrays", lambda: protocols.make(source, drawn, seed))
    if problem is not None:
        check_problem(problem)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "a", None])
def test_seeds_that_are_none(seed):
    source = sources.load("breast_cancer")
    refused(
        "arrays", "seed is", lambda: protocols.make(source, protocols.Protocol(), seed)
    )


@hypothesis.given(
    st.sampled_from(["uint8", "int8", "int16", "uint64", "float16", "float64"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            (10, 2),
            elements={"allow_nan": False, "allow_infinity": False}
            if dtype.startswith("float")
            else None,
        )
    )
)
def test_tables_of_all_types_are_scaled_without_overflow(x):
    source = sources.Source(x, np.zeros(10, int), x, np.zeros(10, int))
    drawn = protocols.Protocol(n_known_outlier_classes=0)
    problem = attempt("arrays", lambda: protocols.make(source, drawn, 0))
    if problem is None:
        assert x.dtype == np.float64  # whose range is too wide for float64
        return
    wide = x.astype(np.longdouble)
    span = wide.max(0) - wide.min(0)
    expected = (wide - wide.min(0)) / np.where(span > 0, span, 1)
    for part in (problem.x_train, problem.x_test):
        scaled = problem.preprocessing(part)
        np.testing.assert_allclose(scaled, expected.astype(np.float64), atol=1e-6)


@hypothesis.given(hnp.arrays(np.uint8, (6, 8, 8, 1)))
def test_bytes_of_images_stay_and_become_numbers_up_to_1(x):
    source = sources.Source(x, np.zeros(6, int), x, np.zeros(6, int))
    problem = protocols.make(source, protocols.Protocol(n_known_outlier_classes=0), 0)
    assert problem.x_train is x
    scaled = problem.preprocessing(x)
    np.testing.assert_allclose(scaled, x.astype(np.float64) / 255, 1e-6)


# --- Files of the user's own.


def write_npz(path, arrays):
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def write_mat(path, arrays):
    scipy.io.savemat(path, {k: v for k, v in arrays.items() if v is not None})


def config_of(method="deep_sad", /, **overrides):
    config = default.get_config()
    config.method = method
    config.pretrain.batch_size = config.train.batch_size = 4
    config.data.ratio_known_outlier = 0.2
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


class ReadyError(Exception):
    """Everything was checked; the folder would be made now."""


def until_ready(config):
    """Runs an experiment until it would write; True if it gets so far."""
    with unittest.mock.patch.object(run.workdir, "locked", side_effect=ReadyError):
        try:
            run.run(config, str(FOLDER / "run"))
        except ReadyError:
            return True
        finally:
            assert not (FOLDER / "run").exists()
    raise AssertionError("nothing would be written")


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    raw_sources(),
    st.sampled_from(list(METHODS)),
    st.booleans(),
    st.booleans(),
)
def test_npz_files(source, method, whole, hybrid):
    path = FOLDER / "mine.npz"
    if whole:
        arrays = {"X": source.x, "y": source.labels}
    else:
        arrays = {
            "x_train": source.x,
            "y_train": source.labels,
            "x_test": source.x_test,
            "y_test": source.labels_test,
            "semi_targets": source.semi_targets,
        }
    try:
        write_npz(path, arrays)
    except Exception:  # no array at all
        hypothesis.reject()
    if attempt("files", lambda: sources.load(str(path)), path) is not None:
        config = config_of(method, **{"data.name": str(path), "hybrid": hybrid})
        attempt("files", lambda: until_ready(config))


@hypothesis.given(st.one_of(tables(), ANYTHING), st.data())
def test_mat_files(x, data):
    path = FOLDER / "mine.mat"
    n = len(x) if isinstance(x, np.ndarray) and x.ndim else 3
    try:
        write_mat(path, {"X": x, "y": data.draw(labels_for(n))})
    except Exception:  # no MATLAB type for it
        hypothesis.reject()
    source = attempt("files", lambda: sources.load(str(path)), path)
    if source is not None:
        drawn = protocols.Protocol(n_known_outlier_classes=0)
        problem = attempt("files", lambda: protocols.make(source, drawn, 0))
        if problem is not None:
            check_problem(problem)


def test_sparse_and_complex_matrices_and_structures_of_mat_files():
    path = FOLDER / "mine.mat"
    x = np.eye(6)[:, :2]
    for other in (scipy.sparse.csc_array(x), x + 1j, {"a": x}, "text"):
        write_mat(path, {"X": other, "y": np.arange(6) % 2})
        message = "holds y; it must hold X and y"
        refused("files", message, lambda: sources.load(str(path)))


CELLS = st.one_of(
    st.integers(-3, 300).map(str),
    st.sampled_from(["", "nan", "inf", "red", '"1"', "1;2", "1e999", "#", "0x1", "é"]),
)


@hypothesis.given(
    st.sampled_from(["", "a,b,label", "label,a,b", "x,y,label", "y,y,a", "#a,b,c"]),
    st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=4),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_csv_files(header, rows, encoding, end):
    path = FOLDER / "mine.csv"
    lines = [header, *(",".join(row) for row in rows), "1,2,0", "3,4,1"]
    path.write_bytes(end.join(lines).encode(encoding))
    source = attempt("files", lambda: sources.load(str(path)), path)
    if source is not None:
        attempt("files", lambda: protocols.make(source, protocols.Protocol(), 0))


def test_the_column_label_comes_before_y():
    path = FOLDER / "mine.csv"
    path.write_text("x,y,label\n5,6,0\n7,8,1\n")
    source = sources.load(str(path))
    np.testing.assert_array_equal(source.x, [[5, 6], [7, 8]])
    path.write_text("label,a,Label\n0,6,0\n1,8,1\n")
    refused("files", "2 columns label", lambda: sources.load(str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"semi_targets": [2, 0, 0, 0]},
            "semi_targets contains 2; allowed are 1 known",
        ),
        ({"y_test": [-1, 1, 1, 1]}, "y_test contains -1; allowed are 0 normal, 1 anom"),
        ({"y_test": [0, 1, np.nan, 1]}, "y_test must hold integers.* but has nan"),
        ({"y_test": np.eye(2)}, r"y_test has 4 entries of shape \(2, 2\)"),
        ({"x_test": np.full((4, 2), np.nan)}, "test part of the table contains nan"),
        ({"x_test": np.full((4, 2), 1e30)}, "too far from the training part's"),
        ({"x_train": (2 * np.eye(4)[:, :2] - 1) * [1, 1e308]}, "column 1 .* far ap"),
        ({"x_train": np.full((4, 8, 8), np.nan)}, "values from nan to nan; they must"),
        ({"X_train": np.eye(4)}, "differ in upper and lower case alone"),
    ],
)
def test_labels_and_values_outside_the_convention(changes, message):
    path = FOLDER / "mine.npz"
    x = np.random.default_rng(0).random((4, 2))
    arrays = {"x_train": x, "semi_targets": [1, 0, 0, -1], "x_test": x}
    write_npz(path, {**arrays, "y_test": [0, 1, 1, 1], **changes})
    with np.errstate(over="ignore"):
        refused(
            "files",
            message,
            lambda: protocols.make(sources.load(str(path)), protocols.Protocol(), 0),
        )


@pytest.mark.parametrize("name", [3, None, "", "mine.csv.gz", "a\0.npz", "n" * 300])
def test_names_that_are_no_files(name):
    refused("files", "data set|no file", lambda: sources.load(name))
    long = f"{name}.npz"
    refused("files", "no data|no file|too long", lambda: sources.load(long))


# --- Configs.

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


def table_file():
    path = FOLDER / "table.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        write_npz(path, {"X": rng.random((60, 3)), "y": np.arange(60) % 3})
    return str(path)


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


SHALLOW = ("ssad", "ocsvm", "kde", "isoforest")
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


# --- Files that are damaged, or meant to do harm.

HTML = b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n"


def valid_bytes(suffix):
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    buffer = io.BytesIO()
    if suffix == ".csv":
        rows, header = np.column_stack([x, y]), "a,b,c,label"
        np.savetxt(buffer, rows, delimiter=",", header=header, comments="")
    else:
        write = {".npz": write_npz, ".mat": write_mat}[suffix]
        write(buffer, {"X": x, "y": y})
    return buffer.getvalue()


@st.composite
def damaged(draw, suffix):
    content = valid_bytes(suffix)
    kind = draw(st.integers(0, 4))
    position = draw(st.integers(0, len(content) - 1))
    if kind == 0:
        return content[:position]
    if kind == 1:
        flipped = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
            flipped[place] ^= draw(st.integers(1, 255))
        return bytes(flipped)
    if kind == 2:
        return content[:position] + draw(st.binary(max_size=40)) + content[position:]
    if kind == 3:
        return draw(st.binary(max_size=200))
    whole = st.sampled_from(
        [b"", HTML, gzip.compress(content), b"PK\x05\x06" + 18 * b"\0"]
    )
    return draw(whole)


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data())
def test_damaged_files(suffix, data):
    path = FOLDER / f"damaged{suffix}"
    path.write_bytes(data.draw(damaged(suffix)))
    source = attempt("damaged files", lambda: sources.load(str(path)), path)
    if source is not None:
        attempt(
            "damaged files", lambda: protocols.make(source, protocols.Protocol(), 0)
        )


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return os.mkdir, (str(FOLDER / "harm"),)


def test_pickles_are_never_loaded():
    path = FOLDER / "payload.npz"
    harmful = np.array([Payload()], object)
    for arrays in (
        {"X": harmful, "y": [0]},
        {"X": [[1.0]], "y": [0], "extra": harmful},
    ):
        np.savez(path, **arrays)
        refused(
            "damaged files",
            "payload.npz cannot be read as .npz .*allow_pickle=False",
            lambda: sources.load(str(path)),
        )
    for suffix in (".npz", ".mat", ".csv"):
        path = FOLDER / f"payload{suffix}"
        with path.open("wb") as file:
            np.save(file, harmful)
        refused(
            "damaged files",
            f"payload{suffix} cannot be read",
            lambda path=path: sources.load(str(path)),
        )
    assert not (FOLDER / "harm").exists()


def test_archives_of_other_things_are_no_arrays():
    path = FOLDER / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("X", "y", "../../escaped.npy"):
            archive.writestr(name, b"1,2\n3,4\n")
    refused("damaged files", "mine.npz", lambda: sources.load(str(path)))
    assert not (FOLDER / "../../escaped.npy").resolve().exists()


def test_a_cached_table_of_another_hash_is_not_taken():
    folder = FOLDER / "cache"
    folder.mkdir(exist_ok=True)
    (folder / "cardio.mat").write_bytes(valid_bytes(".mat"))
    with unittest.mock.patch.object(pooch, "os_cache", lambda _: folder):
        refused(
            "damaged files",
            "cardio.mat is not the table cardio .its SHA-256 differs.* delete it",
            lambda: sources.load("cardio", download=False),
        )


def test_nothing_is_unpacked_from_archives():
    path = FOLDER / "cifar.tar"
    records = np.zeros((2, 3073), np.uint8).tobytes()
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("../../names.txt", b"a\nb\n"),
            ("../../escaped.bin", records),
            ("/escaped/test.bin", records),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    info = types.SimpleNamespace(
        url="",
        label_files=["names.txt"],
        train_files=["escaped.bin"],
        test_files=["test.bin"],
    )
    label = types.SimpleNamespace(names=None)
    builder = types.SimpleNamespace(
        _cifar_info=info, info=types.SimpleNamespace(features={"label": label})
    )
    before = {p for p in FOLDER.rglob("*")}
    with unittest.mock.patch.object(tfds_images, "_download", lambda *_: path):
        splits = tfds_images._cifar10_splits(builder, None)
    TRIED["damaged files"] += 1
    assert len(list(splits["train"])) == 2 and label.names == ["a", "b"]
    assert {p for p in FOLDER.rglob("*")} == before
    assert not (FOLDER / "../../escaped.bin").resolve().exists()


NETWORK = "thyroid_mlp"


def encoder_state():
    shapes = {"hidden.0.linear": (32, 6), "hidden.1.linear": (16, 32), "code": (4, 16)}
    state = {f"{name}.weight": np.ones(shape) for name, shape in shapes.items()}
    for i, width in enumerate((32, 16)):
        for name in ("running_mean", "running_var"):
            state[f"hidden.{i}.bn.{name}"] = np.ones(width)
    return {name: array.astype(np.float32) for name, array in state.items()}


def without_a_key(content):
    content["net_dict"].popitem()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("net_dict"), "model.tar is not a model.tar of the original"),
        (lambda c: c.update(net_dict=None), "is not a model.tar of the original"),
        (lambda c: c.update(net_dict=[1]), "is not a model.tar of the original"),
        (lambda c: c.update(net_dict={}), "model.tar: the shapes in the checkpoint"),
        (lambda c: c.update(c="here"), "is not a model.tar of the original"),
        (lambda c: c.update(c=[1.0]), "model.tar: c has 1 values; thyroid_mlp needs 4"),
        (lambda c: c.update(c=[np.nan] * 4), "c has 4 values; .* needs 4, finite"),
        (lambda c: c.update(c=Payload()), "is not a model.tar of the original"),
        (without_a_key, "the shapes in the checkpoint fit none"),
        (lambda c: c.update(ae_net_dict={}), "state dict for thyroid_mlp lacks"),
        (lambda c: c.update(ae_net_dict=c["net_dict"]), "net_dict must be of an enc"),
        (lambda c: c["net_dict"]["code.weight"].fill_(np.inf), "fit none|not finite"),
    ],
)
def test_checkpoints_of_pytorch(change, message):
    torch = pytest.importorskip("torch")
    path = FOLDER / "model.tar"
    state = {key: torch.tensor(value) for key, value in encoder_state().items()}
    content = {"c": [0.1] * 4, "net_dict": state, "ae_net_dict": None}
    torch.save(content, path)
    assert torch_weights.load_checkpoint(path).network == NETWORK
    change(content)
    torch.save(content, path)
    refused("checkpoints", message, lambda: torch_weights.load_checkpoint(path))
    assert not (FOLDER / "harm").exists()


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_damaged_checkpoints_of_pytorch(data):
    torch = pytest.importorskip("torch")
    path = FOLDER / "model.tar"
    buffer = io.BytesIO()
    state = {key: torch.tensor(value) for key, value in encoder_state().items()}
    torch.save({"c": [0.1] * 4, "net_dict": state, "ae_net_dict": None}, buffer)
    content = buffer.getvalue()
    end = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        data.draw(st.sampled_from([content[:end], HTML, b"", content[end:]]))
    )
    attempt("checkpoints", lambda: torch_weights.load_checkpoint(path), path)


def saved(folder, network=NETWORK):
    """A model of that network in a folder."""
    encoder, decoder, shape = networks.pair(network)
    objective = objectives.Autoencoder(encoder, decoder)
    variables = objective.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    scaling = preprocessing.Unchanged()
    made = model.make("autoencoder", objective, variables, scaling, shape)
    if not folder.exists():
        model.save(made, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json, next to config.load_model, is damaged"),
        ("config.json", b"[]", "config.json, next to config.load_model, is damaged"),
        ("config.json", b'{"data": {}}', "config.json, next to .* is damaged"),
        ("scores.npz", HTML, "scores.npz, next to config.load_model, is damaged"),
        ("scores.npz", valid_bytes(".npz"), "scores.npz, next to .* is damaged"),
    ],
)
def test_models_with_damaged_neighbours(name, content, message):
    rng = np.random.default_rng(0)
    path = FOLDER / "six.npz"
    write_npz(path, {"X": rng.random((60, 6)), "y": np.arange(60) % 3})
    folder = FOLDER / "earlier"
    folder.mkdir(exist_ok=True)
    saved(folder / "model")
    changes = {"data.name": str(path), "load_model": str(folder / "model")}
    config = config_of("kde", hybrid=True, **changes)
    (folder / "config.json").write_text(config.to_json_best_effort())
    (folder / name).write_bytes(content)
    refused("checkpoints", message, lambda: until_ready(config))
    (folder / name).unlink()


@pytest.mark.parametrize("method", ["deep_sad", "kde"])
def test_a_model_of_another_network_than_the_configs(method):
    x = np.random.default_rng(0).random((60, 6))
    path = FOLDER / "six.npz"
    write_npz(path, {"X": x, "y": np.arange(60) % 3})
    other = FOLDER / "satellite"
    saved(other, "satellite_mlp")
    changes = {"data.name": str(path), "load_model": str(other), "network": NETWORK}
    config = config_of(method, hybrid=method == "kde", **changes)
    message = r"takes examples of shape \(36,\), but the data have \(6,\)"
    refused("checkpoints", message, lambda: until_ready(config))


def test_folders_that_hold_no_model():
    folder = FOLDER / "empty"
    folder.mkdir(exist_ok=True)
    config = config_of(**{"data.name": table_file(), "load_model": str(folder)})
    with pytest.raises(ValueError, match="empty .*complete|empty does not hold a"):
        until_ready(config)


def main():
    import inputs_test

    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([__file__, "-q", "-n0", "-p", "no:cacheprovider"])
    print(f"{'inputs':16s}{'tried':>8s}{'refused':>10s}")
    for category, tried in inputs_test.TRIED.items():
        print(f"{category:16s}{tried:8d}{inputs_test.REFUSED[category]:10d}")
    return int(status)


if __name__ == "__main__":
    if sys.argv[1:] != ["--count"]:
        sys.exit("usage: python tests/inputs_test.py --count")
    sys.exit(main())
