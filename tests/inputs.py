"""Inputs of all kinds: each works, or is refused by a sentence before anything is done.

python tests/inputs.py    # how many inputs were tried, and refused
"""

import atexit
import collections
import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
import unittest.mock

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.io
from hypothesis import strategies as st

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # as a program

from configs import default  # noqa: E402
from deepsad_jax import detectors  # noqa: E402
from deepsad_jax.data import sources  # noqa: E402
from experiments import run  # noqa: E402

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
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="inputs-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
HTML = b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n"


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


def table_file():
    path = FOLDER / "table.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        write_npz(path, {"X": rng.random((60, 3)), "y": np.arange(60) % 3})
    return str(path)


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return os.mkdir, (str(FOLDER / "harm"),)


def main() -> int:
    import inputs  # as the tests know it

    files = sorted(pathlib.Path(__file__).parent.glob("inputs_*_test.py"))
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([*map(str, files), "-q", "-n0", "-p", "no:cacheprovider"])
    print(f"{'inputs':16s}{'tried':>8s}{'refused':>10s}")
    for category, tried in inputs.TRIED.items():
        print(f"{category:16s}{tried:8d}{inputs.REFUSED[category]:10d}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
