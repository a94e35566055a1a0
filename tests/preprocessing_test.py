import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.model_selection

from deepsad_jax import preprocessing
from deepsad_jax.data import sources

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
TABLES = sorted(SHARED.glob("adbench/*.npz")) + sorted(SHARED.glob("odds/*.mat"))
RNG = np.random.default_rng(0)
TABLE = RNG.normal(5, 100, (60, 4)) * [1, 0.01, 1e6, 0] + [0, 1, 0, 3]


def version_0_1(x, x_test):
    """What data/scenario.py of version 0.1 did."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    low, span = x.min(axis=0), x.max(axis=0) - x.min(axis=0)
    span[span == 0] = 1.0
    return ((x_test - low) / span).astype(np.float32)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int8", "uint8", "int32", "int64"]
)
def test_tables_are_scaled_to_the_bit_as_by_version_0_1(dtype):
    x = np.clip(TABLE, 0, 100).astype(dtype)
    scaling = preprocessing.auto(x[:40])
    assert isinstance(scaling, preprocessing.MinMax)
    scaled = scaling(x)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, version_0_1(x[:40], x))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (RNG.integers(0, 256, (5, 4, 4, 1), np.uint8), "bytes"),
        (RNG.integers(0, 256, (5, 4, 4), np.uint8), "bytes"),
        (RNG.integers(0, 256, (5, 4), np.uint8), "min_max"),
        (RNG.random((5, 4, 4, 1)), "unchanged"),
        (RNG.normal(size=(5, 40, 2)), "min_max"),
        (RNG.integers(0, 256, (5, 4, 4, 1)), "min_max"),
        (RNG.random((5, 4)), "min_max"),
        ([[1, 2], [3, 4]], "min_max"),
    ],
)
def test_the_choice_follows_from_the_rows(x, expected):
    assert preprocessing.auto(x).kind == expected


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_differences_of_wide_integers_survive(dtype):
    x = (np.array([[0], [1], [3], [4]]) + 2**62).astype(dtype)
    scaling = preprocessing.auto(x)
    np.testing.assert_array_equal(scaling(x), [[0], [0.25], [0.75], [1]])
    again = preprocessing.from_json(json.loads(json.dumps(scaling.to_json())))
    np.testing.assert_array_equal(again(x), scaling(x))
    whole = np.iinfo(dtype)
    ends = np.array([[whole.min], [whole.max]], dtype)
    np.testing.assert_array_equal(preprocessing.auto(ends)(ends), [[0], [1]])


VALUES = (
    preprocessing.Bytes(),
    preprocessing.Unchanged(),
    preprocessing.Unchanged(0.0, 1.0),
    preprocessing.auto(TABLE),
    preprocessing.auto(np.array([[2**63 + 1, 0], [2**63 + 4, 1]], np.uint64)),
    preprocessing.MinMax((0.1, -1e300), (5e-324 + 0.2, 1)),
)


@pytest.mark.parametrize("value", VALUES, ids=lambda v: v.kind)
def test_values_are_static_equal_and_exact_in_json(value):
    again = preprocessing.from_json(json.loads(json.dumps(value.to_json())))
    assert again == value and hash(again) == hash(value) and again is not value
    assert sum(value == other for other in VALUES) == 1
    traces = []

    @jax.jit
    def count(x):
        traces.append(1)
        return x

    class Node:
        def __init__(self, aux):
            self.aux = aux

    jax.tree_util.register_pytree_node(
        Node, lambda n: ((jnp.ones(()),), n.aux), lambda aux, _: Node(aux)
    )
    count(Node(value)), count(Node(again))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "of kind None; known are bytes, unchanged, min_max"),
        ({"kind": ["bytes"]}, "is of kind"),
        ({"kind": "bytes", "low": 3}, r"has fields \['low'\], not \[\]"),
        ({"kind": "unchanged", "low": 2, "high": 1}, "low is 2 and high is 1"),
        ({"low": [0], "high": [1, 2]}, "one number per column"),
        ({"low": [], "high": []}, "one number per column"),
        ({"low": [0], "high": [float("nan")]}, "high must hold finite numbers"),
        ({"low": [0], "high": [10**400]}, "high must hold finite numbers"),
        ({"low": [False], "high": [1]}, "low must hold finite numbers"),
        ({"low": "ab", "high": [1]}, "low must hold finite numbers"),
        ({"low": [2], "high": [1]}, "low must not be above high"),
        ({"low": [-1e308], "high": [1e308]}, "column 0 .* too far apart"),
    ],
)
def test_tampered_json_is_refused(content, message):
    if content and "kind" not in content:
        content = {"kind": "min_max", "lower": [], "upper": [], **content}
    with pytest.raises(ValueError, match=message):
        preprocessing.from_json(content)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint32", "int8", "bfloat16"])
def test_traced_rows_become_part_of_the_program(dtype):
    kind = jnp.dtype(dtype)
    base = 2**24 if "32" in dtype else 0
    x = np.asarray(RNG.integers(0, 100, (50, 3)) + base).astype(kind)
    scaling = preprocessing.auto(x)
    np.testing.assert_allclose(jax.jit(scaling)(x), scaling(x), rtol=1e-6, atol=1e-7)
    assert jax.jit(scaling)(x).dtype == jnp.float32


def test_the_minimum_keeps_its_digits_in_the_program():
    # One float32 would be wrong by half of the range.
    scaling = preprocessing.MinMax((1e7 + 0.5,), (1e7 + 2.5,))
    x = np.float32([[1e7 + 1], [1e7 + 2]])
    np.testing.assert_allclose(jax.jit(scaling)(x), [[0.25], [0.75]], rtol=1e-6)
    gradient = jax.grad(lambda x: scaling(x).sum())(x)
    np.testing.assert_allclose(gradient, 0.5)


@pytest.mark.parametrize("low, high", [(0, 1e-300), (0.0, 1e300), (-1e300, -1e299)])
def test_extreme_ranges_are_finite_in_the_program(low, high):
    x = jnp.ones((2, 1))
    assert jnp.isfinite(jax.jit(preprocessing.MinMax((low,), (high,)))(0 * x)).all()


def test_bytes_are_the_same_numbers_on_the_host_and_in_the_program():
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    host = preprocessing.Bytes()(x)
    np.testing.assert_array_equal(host, jax.jit(preprocessing.Bytes())(x))
    np.testing.assert_allclose(host, x / 255.0, rtol=2e-7)
    assert host.min() == 0 and host.max() == 1


def test_models_of_images_take_bytes_and_numbers_up_to_1():
    x = RNG.integers(0, 256, (9, 8, 8, 1), np.uint8)
    for scaling in (preprocessing.Bytes(), preprocessing.Unchanged(0.0, 1.0)):
        for rows in (x, x / 255.0, (x / 255.0).astype(np.float32)):
            np.testing.assert_allclose(scaling(scaling.check(rows)), x / 255, atol=1e-6)
    np.testing.assert_allclose(preprocessing.Bytes()(x.astype(int)), x / 255, atol=1e-6)
    for rows in (x.astype(np.float32), x / 255.0 - 0.5, x.astype(int) * 2):
        with pytest.raises(
            ValueError, match="give uint8, or floating values in .0, 1."
        ):
            preprocessing.Bytes().check(rows)
    with pytest.warns(UserWarning, match="of the values lie outside"):
        preprocessing.Unchanged(0.0, 1.0).check(x.astype(np.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (TABLE[:, :3], r"rows has shape \(60, 3\); it must be \[n, 4\]"),
        (TABLE[0], r"rows has shape \(4,\) and dtype float64; it must hold real num"),
        (TABLE[:0], "and not be empty"),
        (TABLE + 1j, "rows has .* dtype complex128; it must hold real numbers"),
        (TABLE > 3, "dtype bool"),
        (TABLE.astype(object), "dtype object"),
        (TABLE.astype("U3"), "dtype <U3"),
        ([[1.0, 2.0], [3.0]], "rows is not an array of numbers"),
        (np.ma.masked_greater(TABLE, 1e6), r"rows has \d+ masked values; fill or"),
        (
            np.where(TABLE == TABLE[7, 1], np.nan, TABLE),
            r"nan \(row 7, column 1; 1 such",
        ),
        (np.where(TABLE == TABLE[7, 1], -np.inf, TABLE), r"contains -inf \(row 7, col"),
        (TABLE * [1, 1e20, 1, 1], r"too far from the training part's.*row 0, column 1"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.auto(TABLE).check(x, "rows", (4,))


def test_sparse_rows_are_refused_with_a_way_out():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match="x is a sparse matrix; give x.toarray()"):
        preprocessing.auto(sparse.eye_array(3))


def test_training_rows_are_refused_by_column():
    x = np.array([[1, -1e308], [2, 1e308]])
    with pytest.raises(
        ValueError, match="x: column 1 has values from .* too far apart"
    ):
        preprocessing.auto(x)
    x[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"x contains nan \(row 1, column 1; 1 such"):
        preprocessing.auto(x)
    images = np.full((2, 4, 4, 1), np.inf)
    with pytest.raises(ValueError, match=r"contains inf \(row 0, at \[0, 0, 0\]; 32"):
        preprocessing.auto(images)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_held_out_rows_of_real_tables_are_no_reason_to_warn(path, recwarn):
    source = sources.read_file(path)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(source.x)), test_size=0.4, stratify=source.labels, random_state=0
    )
    recwarn.clear()
    scaling, x = preprocessing.auto(source.x[train]), source.x[test]
    anomalies, rng = x[source.labels[test] == 1], np.random.default_rng(0)
    parts = [x, anomalies, x[source.labels[test] == 0]]
    parts += [x[rng.choice(len(x), size)] for size in (8, 12, 20) for _ in range(20)]
    parts += [anomalies[start : start + 10] for start in range(0, 100, 10)]
    for part in parts:
        if len(part):
            scaling.check(part)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="looks scaled in another way"):
        scaling.check(x * 1000.0)


@pytest.mark.parametrize("name", ["satellite", "shuttle", "arrhythmia", "25_musk"])
def test_rows_scaled_already_are_told(name):
    paths = [path for path in TABLES if path.stem == name]
    if not paths:
        pytest.skip("the tables are not here")
    x = sources.read_file(paths[0]).x.astype(np.float64)
    scaling = preprocessing.auto(x[::2])
    x = x[1::2]
    deviation, span = x.std(axis=0), np.ptp(x, axis=0)
    for changed in (
        (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1),
        (x - x.min(axis=0)) / np.where(span > 0, span, 1),
    ):
        with pytest.warns(UserWarning, match="x looks scaled in another way than the"):
            scaling.check(changed)


def test_without_percentiles_rows_outside_of_the_range_are_still_told(recwarn):
    scaling = preprocessing.MinMax((0, 0), (1000, 1000))
    scaling.check(RNG.uniform(0, 1000, (20, 2)))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="2 of 2 columns lie mostly outside"):
        scaling.check(RNG.normal(0, 1, (20, 2)))


def test_standardized_rows_look_like_themselves_and_unlike_others():
    x = np.random.default_rng(0).normal(50, 10, (400, 5))
    made = preprocessing.standard(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.check(x)
        made.check(x[:100] + 5)
    for other in (made(x), (x - x.min(0)) / np.ptp(x, axis=0), 1000 * x):
        with pytest.warns(UserWarning, match="scaled in another way"):
            made.check(other)
