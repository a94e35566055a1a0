"""What is learned of a table, and models of every method that take tables."""

import copy
import io

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest

import deepsad_jax as sad
from deepsad_jax import estimators, fields, methods, preprocessing, tables, training
from deepsad_jax.data import delimited, frames, parquet
from deepsad_jax.detectors import METHODS, hybrid

RNG = np.random.default_rng(0)
N = 96
STAGE = training.Stage(epochs=1, batch_size=32)


def _table(n=N):
    table = pd.DataFrame(
        {
            "pressure": RNG.normal(1e5, 300, n),
            "count": RNG.integers(0, 50, n),
            "make": RNG.choice(["x", "y", "z"], n),
            "checked": RNG.choice(["yes", "no"], n),
            "temperature": np.where(np.arange(n) % 5, RNG.normal(size=n), np.nan),
            "same": "only",
        }
    )
    table.loc[::7, "make"] = None
    return table


TABLE = _table()
TARGETS = np.where(np.arange(N) % 8 == 0, -1, np.arange(N) % 2)
SCALING = tables.learn(TABLE)


def test_arrays_of_numbers_get_what_suits_them():
    x = RNG.normal(size=(9, 3))
    images = RNG.integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    for rows in (x, x.astype(np.float32), (9 * x).astype(int), images, images / 255.0):
        assert tables.learn(rows) == preprocessing.auto(rows)
    assert tables.learn(x.tolist()) == preprocessing.auto(x)
    gaps = np.where(x > 1, np.nan, x)
    learned = tables.learn(gaps)
    assert not learned.named and learned.names == ("0", "1", "2")
    assert tables.learn(x, scaling="robust").columns[0].width > 0


def test_every_kind_of_column_is_told():
    kinds = [column.kind for column in SCALING.columns]
    expected = ["numeric", "numeric", "categorical", "boolean", "numeric", "dropped"]
    assert kinds == expected
    assert SCALING.names == tuple(TABLE.columns) and SCALING.named
    assert SCALING.kinds == {
        "pressure": "numbers",
        "count": "numbers",
        "make": "texts",
        "checked": "booleans",
        "temperature": "numbers",
    }
    assert SCALING.columns[4].fill == pytest.approx(TABLE["temperature"].median())


def test_what_is_done_is_said():
    table = TABLE.assign(twin=TABLE["count"], none=None, id=[f"i{i}" for i in range(N)])
    table["post"] = [f"t{i % 20}" for i in range(N)]
    assert tables.describe(tables.learn(table)) == [
        "column 'make' becomes one feature for each of its 3 texts",
        "column 'make' has missing values, which a feature tells",
        "column 'temperature' has missing values, which a feature tells",
        "column 'same' is dropped: it has one value only",
        "column 'twin' is dropped: it is the same as 'count'",
        "column 'none' is dropped: it has no values",
        "column 'id' is dropped: it has another text in nearly every row",
        "column 'post' becomes the frequency of its 20 texts",
    ]
    assert tables.describe(preprocessing.auto(np.eye(3))) == []


def test_a_row_number_without_a_name_is_no_feature(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv")
    for table in (delimited.read(tmp_path / "t.csv"), pd.read_csv(tmp_path / "t.csv")):
        learned = tables.learn(table)
        reasons = {
            c.name: c.reason for c in learned.columns if isinstance(c, fields.Dropped)
        }
        assert reasons["Unnamed: 0"] == "has no name and counts the rows"


def test_kinds_of_columns_are_those_of_all_rows(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"a": rng.normal(size=200), "c": np.resize(["yes", "no"], 200)}
    )
    table.loc[100, "c"] = "unknown"
    table[table["a"] > -1].to_parquet(tmp_path / "t.parquet")  # with its index
    for index, read in (
        ("Unnamed: 0", delimited.read(io.StringIO(table.to_csv()))),
        ("__index_level_0__", parquet.read(str(tmp_path / "t.parquet"))),
    ):
        assert index in read.names
        some = np.delete(np.arange(read.n_rows), read["c"] == "unknown")[1::3]
        learned = tables.learn(read.rows(some), among=read)
        features = learned.feature_names
        assert features[0] == "a" and not any(index in name for name in features)
        kinds = {column.name: type(column) for column in learned.columns}
        assert kinds["c"] is fields.Categorical
        assert "counts the rows" in " ".join(tables.describe(learned))
        detector = estimators.KernelDensity(bandwidth=0.3, selection="none")
        for seed in range(4):
            learned = detector.set_params(random_state=seed).fit(read)
            assert learned.calibrated_.model.preprocessing.feature_names[0] == "a"


def test_a_file_and_its_table_are_learned_alike(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    frame = delimited.read(tmp_path / "t.csv")
    assert tables.learn(frame) == SCALING == tables.learn(pl.from_pandas(TABLE))
    (chunk,) = delimited.chunks(tmp_path / "t.csv", SCALING.kinds)
    np.testing.assert_array_equal(SCALING(chunk.frame), SCALING(TABLE))


def test_the_most_frequent_of_very_many_texts_are_kept(monkeypatch):
    monkeypatch.setattr(tables, "_MOST_LEVELS", 3)
    values = ["a"] * 9 + ["b"] * 2 + ["c"] * 4 + ["d"] * 3
    (column,) = tables.learn({"x": values}, max_levels=2).columns
    assert column.levels == ("a", "c", "d")
    np.testing.assert_allclose(column.frequencies, [1, 4 / 9, 3 / 9])


def test_wide_integers_are_taken_if_their_range_is_wide():
    wide = np.array([0, 2**62 + 1, 2**61])
    features = tables.learn({"x": wide})({"x": wide})
    np.testing.assert_allclose(features[:, 0], [0, 1, 0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="column 'x' has integers.*too close to each"):
        tables.learn({"x": [2**62, 2**62 + 100]})


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"scaling": "log"}, "scaling is 'log'; it must be minmax or robust"),
        (TABLE, {"max_levels": 0}, "max_levels is 0; it must be at least 1"),
        (TABLE, {"max_levels": 2.0}, "max_levels is 2.0; it must be an integer"),
        (TABLE[:1], {}, "X has 1 rows; it must have at least 2"),
        ({"a": [1, 1], "b": ["x", "x"]}, {}, "X: no column carries anything"),
        ({"a": [1, np.inf]}, {}, "column 'a' contains inf .row 1., infinity"),
        ({"a": [-1.7e308, 1.7e308]}, {}, "X: column 'a' .*too far apart for float64"),
        (
            {"t": ["2026-11-28", "2026-1-2 10:30"]},
            {},
            "'t' holds dates.*leave it out, or",
        ),
        (
            {"t": ["28.11.2026", None, "1/2/2026"]},
            {},
            "'t' holds dates or times, such as",
        ),
        (
            {"t": ["10:30", "9:15:01 PM"]},
            {},
            "hours since a start or the day of the week",
        ),
        (np.zeros((2, 4, 4, 1)), {"scaling": "robust"}, "robust, which is for tables"),
    ],
)
def test_what_cannot_be_learned_is_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        tables.learn(table, **options)


def _options(name):
    kind = METHODS[name]
    stages = {n: STAGE for n in ("train", "pretrain") if hasattr(kind, n)}
    return kind(**stages)


HYBRID = hybrid.Hybrid(METHODS["autoencoder"](pretrain=STAGE), METHODS["kde"]())


@pytest.mark.parametrize("name", [*METHODS, "hybrid"])
def test_models_of_every_method_take_tables(name, tmp_path):
    options = HYBRID if name == "hybrid" else _options(name)
    data = sad.training_set(SCALING.encode(TABLE), TARGETS)
    run = methods.Run(jax.random.key(0), data, SCALING)
    options.check(run)
    (fitted, _), *_ = options.fit_many([run])
    new = _table(20)
    scores = sad.score(fitted, new)
    assert scores.shape == (20,) and np.isfinite(scores).all()
    assert fitted.info["shape"] == (6,)
    np.testing.assert_array_equal(scores, sad.score(fitted, new[new.columns[::-1]]))
    np.testing.assert_array_equal(scores, sad.score(fitted, SCALING.encode(new)))
    if name in ("deep_sad", "kde"):
        traced = jax.jit(lambda x: sad.score(fitted, x))(SCALING.encode(new))
        np.testing.assert_allclose(traced, scores, rtol=2e-2, atol=2e-2)
    sad.save(fitted, tmp_path / "model")
    loaded = sad.load(tmp_path / "model")
    assert loaded.preprocessing == SCALING
    np.testing.assert_array_equal(scores, sad.score(loaded, new))
    if fitted.base is not None:
        assert np.isfinite(sad.score(fitted.base, new)).all()


@pytest.fixture(scope="module")
def fitted():
    data = sad.training_set(SCALING.encode(TABLE), TARGETS)
    options = {"train": STAGE, "pretrain": STAGE, "preprocessing": SCALING}
    return sad.fit(jax.random.key(0), data, **options)[0]


def test_tables_come_in_batches_too(fitted):
    expected = sad.score(fitted, TABLE)
    parts = [TABLE[:50], TABLE[50:]]
    np.testing.assert_array_equal(sad.score(fitted, iter(parts)), expected)
    pairs = iter([(part, TARGETS[: len(part)]) for part in parts])
    np.testing.assert_array_equal(sad.score(fitted, pairs), expected)

    def batches():
        for first in range(0, N, 32):
            yield TABLE[first : first + 32], TARGETS[first : first + 32]

    options = {"train": STAGE, "pretrain": None, "preprocessing": SCALING}
    streamed, _ = sad.fit(jax.random.key(0), batches, **options)
    assert streamed.info["shape"] == (6,)
    assert np.isfinite(sad.score(streamed, TABLE)).all()


def test_training_goes_on_from_a_model_of_a_table(fitted):
    data = sad.training_set(SCALING.encode(TABLE), TARGETS)
    options = {"train": STAGE, "initial": fitted}
    again, _ = sad.fit(jax.random.key(1), data, **options)
    assert again.preprocessing == SCALING


def test_tables_unlike_that_of_training_are_refused_or_warned_of(fitted):
    with pytest.raises(ValueError, match="x has no column 'pressure'"):
        sad.score(fitted, TABLE.drop(columns="pressure"))
    new = TABLE.copy()
    new.loc[0, "make"] = "unheard of"
    with pytest.warns(UserWarning, match="1 unknown text in column 'make'"):
        sad.score(fitted, new)
    frame = frames.read(TABLE)
    np.testing.assert_array_equal(sad.score(fitted, frame), sad.score(fitted, TABLE))
    assert copy.deepcopy(fitted).preprocessing == SCALING
