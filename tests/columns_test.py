"""Features against scikit-learn, in NumPy and traced."""

import copy
import json
import pickle
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsad_jax import columns, fields, preprocessing, tables
from deepsad_jax.data import frames

RNG = np.random.default_rng(0)
N = 200


def _table():
    table = pd.DataFrame(
        {
            "p": RNG.normal(1e4, 3, N),
            "n": RNG.integers(0, 9, N),
            "gap": np.where(np.arange(N) % 7, RNG.normal(size=N), np.nan),
            "make": RNG.choice(["x", "y", "z"], N),
            "on": RNG.choice([True, False], N),
            "post": RNG.choice([f"t{i}" for i in range(30)], N),
            "same": np.ones(N),
        }
    )
    table.loc[::9, "make"] = None
    table["copy"] = table["p"]
    return table


TABLE = _table()
LEARNED = tables.learn(TABLE)


def test_numbers_are_scaled_as_by_scikit_learn():
    expected = sklearn.preprocessing.MinMaxScaler().fit_transform(TABLE[["p", "n"]])
    found = LEARNED(TABLE)[:, [0, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    filled = TABLE[["gap"]].fillna(TABLE["gap"].median())
    expected = sklearn.preprocessing.MinMaxScaler().fit_transform(filled)
    np.testing.assert_allclose(LEARNED(TABLE)[:, [2]], expected, rtol=1e-6)
    assert LEARNED.feature_names[3] == "gap is missing"
    assert (LEARNED(TABLE)[:, 3] == TABLE["gap"].isna()).all()


def test_numbers_alone_are_scaled_to_the_same_bits_as_arrays_of_them():
    x = RNG.normal(size=(50, 3)) * [1, 1e3, 1e-5]
    named = tables.learn(pd.DataFrame(x, columns=["a", "b", "c"]))
    np.testing.assert_array_equal(named(x), preprocessing.auto(x)(x))


def test_texts_are_encoded_as_by_scikit_learn():
    encoder = sklearn.preprocessing.OneHotEncoder(sparse_output=False)
    expected = encoder.fit_transform(TABLE[["make"]].fillna("~ missing"))
    start = LEARNED.feature_names.index("make = x")
    np.testing.assert_array_equal(LEARNED(TABLE)[:, start : start + 4], expected)
    names = [f"make = {level}" for level in "xyz"] + ["make is missing"]
    assert list(LEARNED.feature_names[start : start + 4]) == names


def test_many_texts_become_their_relative_frequency():
    counts = TABLE["post"].map(TABLE["post"].value_counts())
    place = LEARNED.feature_names.index("post is frequent")
    np.testing.assert_allclose(
        LEARNED(TABLE)[:, place], counts / counts.max(), rtol=1e-6
    )


def test_the_robust_scaling_knows_median_and_quartiles():
    robust = tables.learn(TABLE[["p", "gap"]], scaling="robust")
    z = sklearn.preprocessing.RobustScaler().fit_transform(TABLE[["p"]])
    expected = 0.5 + 0.5 * z / (2 + np.abs(z))
    np.testing.assert_allclose(robust(TABLE[["p", "gap"]])[:, [0]], expected, rtol=1e-6)
    wild = pd.DataFrame({"p": [1e12, -1e12], "gap": [0.0, 0.0]})
    np.testing.assert_allclose(robust(wild)[:, 0], [1, 0], atol=1e-6)


def test_what_carries_nothing_is_dropped_and_may_be_absent():
    reasons = {
        c.name: c.reason for c in LEARNED.columns if isinstance(c, fields.Dropped)
    }
    assert reasons == {"same": "has one value only", "copy": "is the same as 'p'"}
    without = TABLE.drop(columns=["same", "copy"])
    np.testing.assert_array_equal(LEARNED(without), LEARNED(TABLE))
    changed = TABLE.assign(same="anything")
    np.testing.assert_array_equal(LEARNED(changed), LEARNED(TABLE))


def test_columns_are_found_by_name_in_any_order():
    np.testing.assert_array_equal(LEARNED(TABLE[TABLE.columns[::-1]]), LEARNED(TABLE))
    without_names = TABLE.to_numpy(object)
    np.testing.assert_array_equal(LEARNED(without_names), LEARNED(TABLE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="p"),
            "x has no column 'p'; it must have the columns",
        ),
        (lambda t: t.assign(new=1, z=2), "x has a column 'new', 'z' too many"),
        (
            lambda t: t.rename(columns={"n": "N"}),
            "x has no column 'n' and has a column 'N' too many",
        ),
        (
            lambda t: t.assign(n="four"),
            r"x: column 'n' holds texts \('four' in row 0\); it must hold numbers, as",
        ),
        (
            lambda t: t.assign(make=1),
            r"'make' holds numbers \(1 in row 0\).*hold texts",
        ),
        (
            lambda t: t.assign(on="maybe"),
            "'on' has 'maybe' in row 0; it must hold bool",
        ),
        (lambda t: t.assign(on=2), "column 'on' has 2 in row 0"),
        (lambda t: t.assign(p=np.inf), r"contains inf \(row 0, column 'p'\), too far"),
        (lambda t: t.assign(n=1e15), r"row 0, column 'n'\), too far.*from 0 to 8"),
        (lambda t: t.to_numpy(object)[:, :3], "x has 3 columns; it must have 8"),
        (lambda t: np.zeros((4, 3)), r"shape \(4, 3\); it must be \[n, 8\]"),
        (
            lambda t: np.full((4, 8), 7.5),
            "contains 7.5 .row 0, column 'make'.*not a code",
        ),
        (lambda t: t[:0], "x has no rows"),
    ],
)
def test_what_is_not_as_in_training_is_said_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        LEARNED.check(change(TABLE))


def test_words_and_numbers_are_booleans_where_training_had_booleans():
    place = LEARNED.feature_names.index("on")
    for yes, no in (("yes", "No"), ("TRUE", "false"), (1, 0), (1.0, 0.0)):
        table = TABLE.assign(on=np.where(TABLE["on"], yes, no))
        np.testing.assert_array_equal(LEARNED(table)[:, place], TABLE["on"])


def test_unknown_texts_and_new_gaps_are_counted_and_warned_of():
    table = TABLE.copy()
    table.loc[[0, 1], "make"] = "new"
    table.loc[2, "p"] = np.nan
    encoded = LEARNED.encode(table)
    assert LEARNED.strange(encoded) == {"make": (2, 0), "p": (0, 1)}
    assert LEARNED.strange(LEARNED.encode(TABLE)) == {}
    with pytest.warns(UserWarning, match="1 missing in column 'p'.*2 unknown texts in"):
        checked = LEARNED.check(table)
    np.testing.assert_array_equal(checked, encoded)
    start = LEARNED.feature_names.index("make = x")
    assert not LEARNED(table)[:2, start : start + 4].any()
    low, high = TABLE["p"].min(), TABLE["p"].max()
    middle = (TABLE["p"].median() - low) / (high - low)
    assert LEARNED(table)[2, 0] == pytest.approx(middle, rel=1e-6)


def test_rows_that_look_scaled_in_another_way_are_warned_of():
    x = RNG.normal(size=(100, 6)) * 10 + 50
    learned = tables.learn(pd.DataFrame(x, columns=list("abcdef")))
    standardized = sklearn.preprocessing.scale(x)
    with pytest.warns(UserWarning, match="scaled in another way than the training"):
        learned.check(standardized)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.check(x)


def test_traced_rows_get_the_same_features():
    for scaling in ("minmax", "robust"):
        learned = tables.learn(TABLE, scaling=scaling)
        encoded = learned.encode(TABLE)
        traced = jax.jit(learned)(encoded)
        assert traced.dtype == np.float32
        np.testing.assert_allclose(traced, learned(encoded), atol=2e-4)
    with jax.enable_x64(True):
        traced = jax.jit(learned)(encoded)
    np.testing.assert_allclose(traced, learned(encoded), atol=1e-6)


def test_it_is_a_value():
    again = preprocessing.from_json(json.loads(json.dumps(LEARNED.to_json())))
    for other in (again, copy.deepcopy(LEARNED), pickle.loads(pickle.dumps(LEARNED))):
        assert other == LEARNED and hash(other) == hash(LEARNED)
    assert tables.learn(TABLE[:100]) != LEARNED
    assert LEARNED.features((8,)) == (len(LEARNED.feature_names),) == (10,)
    assert LEARNED.raw((10,)) == (8,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["columns"][0].update(kind="other"), "kind 'other'; known are"),
        (lambda c: c["columns"][0].pop("low"), "kind numeric has other fields"),
        (lambda c: c["columns"][0].update(low=float("inf")), "needs finite numbers"),
        (lambda c: c["columns"][0].update(low=1e9), "a range below 0"),
        (
            lambda c: c["columns"][3].update(levels=["a", "a"]),
            "must have levels, texts",
        ),
        (lambda c: c["columns"][5].update(frequencies=[1.0]), "a frequency for each"),
        (lambda c: c["columns"][1].update(name="p"), "two columns have the same name"),
        (lambda c: c.update(columns=[]), "no column carries anything"),
        (lambda c: c.pop("named"), "has other fields"),
    ],
)
def test_damaged_json_is_refused(change, message):
    content = LEARNED.to_json()
    change(content)
    with pytest.raises(ValueError, match=message):
        preprocessing.from_json(content)


CELLS = {
    "numbers": st.none() | st.floats(-1e6, 1e6, width=32) | st.integers(-1000, 1000),
    "booleans": st.none() | st.booleans(),
    "texts": st.none() | st.sampled_from(["a", "b", "c", "d"]),
}


@st.composite
def _tables(draw):
    rows = draw(st.integers(2, 12))
    kinds = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    return {
        f"{kind} {i}": draw(st.lists(CELLS[kind], min_size=rows, max_size=rows))
        for i, kind in enumerate(kinds)
    }


@settings(max_examples=40, deadline=None)
@given(_tables(), st.sampled_from(tables.SCALINGS), st.integers(1, 4))
def test_any_table_round_trips(table, scaling, max_levels):
    try:
        learned = tables.learn(table, scaling=scaling, max_levels=max_levels)
    except ValueError as error:
        assert "no column carries anything" in str(error)
        return
    again = preprocessing.from_json(json.loads(json.dumps(learned.to_json())))
    features = learned(table)
    assert again == learned and np.isfinite(features).all()
    assert features.shape == (len(frames.read(table)), len(learned.feature_names))
    assert -1e-6 <= features.min() and features.max() <= 1 + 1e-6
    assert learned.strange(learned.encode(table)) == {}
    for i in range(len(features)):
        alone = learned(frames.read(table).rows(slice(i, i + 1)))
        np.testing.assert_array_equal(alone[0], features[i])


@settings(max_examples=6, deadline=None)
@given(_tables(), st.sampled_from(tables.SCALINGS))
def test_any_table_is_traced_alike(table, scaling):
    try:
        learned = tables.learn(table, scaling=scaling, max_levels=2)
    except ValueError:
        return
    encoded = learned.encode(table)
    np.testing.assert_allclose(
        jax.jit(learned)(encoded), learned(encoded), atol=1e-5, rtol=1e-5
    )


def test_a_preprocessing_of_columns_is_hashed_once(monkeypatch):
    learned = columns.Columns(LEARNED.columns)
    before = hash(learned)
    monkeypatch.setattr(fields.Numeric, "__hash__", lambda self: 1 / 0)
    assert hash(learned) == before
