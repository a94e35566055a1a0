"""The same columns, whatever package the table is from."""

import datetime
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from deepsad_jax.data import frames

CONTENT = {
    "number": [1.5, None, -2.0],
    "whole": [1, 2, 3],
    "gap": [4, None, 6],
    "flag": [True, False, True],
    "maybe": [True, None, False],
    "text": ["a", None, " b "],
}
EXPECTED = {
    "number": [1.5, np.nan, -2.0],
    "whole": [1, 2, 3],
    "gap": [4.0, np.nan, 6.0],
    "flag": [True, False, True],
    "maybe": [True, None, False],
    "text": ["a", None, "b"],
}
DTYPES = ["float64", "int64", "float64", "bool", "object", "object"]


def _nullable():
    kinds = {"gap": "Int64", "maybe": "boolean", "text": "string", "flag": "boolean"}
    return pd.DataFrame(CONTENT).astype(kinds)


TABLES = {
    "pandas": lambda: pd.DataFrame(CONTENT),
    "pandas_nullable": _nullable,
    "pandas_category": lambda: pd.DataFrame(CONTENT).astype({"text": "category"}),
    "pandas_arrow": lambda: _nullable().astype({"number": "float64[pyarrow]"}),
    "polars": lambda: pl.DataFrame(CONTENT),
    "polars_lazy": lambda: pl.LazyFrame(CONTENT),
    "polars_category": lambda: pl.DataFrame(CONTENT).cast({"text": pl.Categorical}),
    "pyarrow": lambda: pa.table(CONTENT),
    "pyarrow_dictionary": lambda: pa.table(
        {**CONTENT, "text": pa.array(CONTENT["text"]).dictionary_encode()}
    ),
    "mapping": lambda: CONTENT,
    "mapping_of_series": lambda: {n: pd.Series(v) for n, v in CONTENT.items()},
    "mapping_of_pyarrow": lambda: {n: pa.array(v) for n, v in CONTENT.items()},
    "mapping_of_polars": lambda: {n: pl.Series(v) for n, v in CONTENT.items()},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_of_all_packages_have_the_same_columns(table):
    frame = frames.read(table())
    assert frames.is_table(table())
    assert frame.named and frame.names == tuple(CONTENT) and len(frame) == 3
    for (name, expected), dtype in zip(EXPECTED.items(), DTYPES, strict=True):
        np.testing.assert_array_equal(frame[name], np.array(expected, dtype))
        assert frame[name].dtype == dtype, name


def test_arrays_and_lists_are_columns_without_names():
    rows = [["a", 1, True], ["b", 2.5, False]]
    structured = np.array([("a", 1.0), ("b", 2.5)], [("x", "U4"), ("y", "f4")])
    for table in (rows, np.array(rows, object)):
        frame = frames.read(table)
        assert not frame.named and frame.names == ("0", "1", "2")
        assert [c.dtype.kind for c in frame.columns.values()] == ["O", "f", "b"]
    assert frames.read(np.eye(2, dtype=np.uint8))["1"].dtype == np.uint64
    assert frames.read(structured)["y"].tolist() == [1.0, 2.5]
    assert frames.read(structured).named
    assert frames.read(pd.DataFrame([[1, 2]])).names == ("0", "1")
    assert not frames.read(pd.DataFrame([[1, 2]])).named


def test_arrays_of_real_numbers_are_no_tables():
    for x in (np.eye(2), [[1, 2], [3, 4]], np.zeros((2, 3, 3, 1), np.uint8)):
        assert not frames.is_table(x)
    for x in ([[1, None]], np.array([["a"]]), np.eye(2, dtype=bool), [["a", 1]]):
        assert frames.is_table(x)


def test_all_that_stands_for_a_number_or_for_nothing_is_one():
    values = [decimal.Decimal("1.5"), np.float32(2), 3, None, np.nan, pd.NA]
    found = frames.read({"x": values})["x"]
    np.testing.assert_array_equal(found, [1.5, 2, 3, np.nan, np.nan, np.nan])
    for nothing in ([None, None], pl.Series([None, None]), [pd.NA, np.nan]):
        assert frames.kind_of(frames.read({"x": nothing})["x"]) == frames.MISSING
    assert frames.read({"x": ["", "  "]})["x"].tolist() == [None, None]


def test_wide_integers_keep_all_digits():
    wide = [2**62 + 1, 2**53 + 1]
    for table in ({"x": wide}, pd.DataFrame({"x": wide}), pl.DataFrame({"x": wide})):
        assert frames.read(table)["x"].tolist() == wide
    assert frames.read({"x": np.array([2**64 - 1], np.uint64)})["x"][0] == 2**64 - 1
    with pytest.raises(ValueError, match="'x' holds integers beyond 2.53 and missing"):
        frames.read(pl.DataFrame({"x": [2**62 + 1, None]}))
    for values in ([2**62 + 1, None], [2**70, 1]):
        with pytest.raises(ValueError, match="'x' holds integers beyond 2.53"):
            frames.read({"x": values})
    with pytest.raises(ValueError, match="column 'x' holds numbers beyond float64"):
        frames.read({"x": [10**400, 1]})


def test_rows_and_columns_are_chosen():
    frame = frames.read(CONTENT)
    assert frame.without("flag", "text").names == ("number", "whole", "gap", "maybe")
    assert frame.rows([2, 0])["whole"].tolist() == [3, 1]
    assert frame.rows(frame["flag"]).n_rows == 2
    assert frames.read(frame) is frame


DAY = datetime.datetime(2026, 11, 28)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"when": [DAY]}), "column 'when' holds dates.*hours since a"),
        (pl.DataFrame({"when": [DAY]}), "column 'when' holds dates.*hours since a"),
        (pl.DataFrame({"x": [DAY - DAY]}), "column 'x' holds dates or times"),
        ({"when": [DAY.date(), None]}, "column 'when' holds dates or times"),
        ({"when": np.array(["2026-11-28"], "M8[D]")}, "'when' holds dates or times"),
        (pl.DataFrame({"x": [[1, 2]]}), r"column 'x' holds values of type List\(Int64"),
        ({"x": ["a", 1]}, r"column 'x' holds numbers \(1\) and texts \('a'\); make"),
        ({"x": np.array([1j])}, "column 'x' holds complex numbers"),
        ({"x": [1], "y": [1, 2]}, "columns of X have from 1 to 2 rows"),
        ({}, "X has no columns"),
        (np.zeros(3), r"X has shape \(3,\); it must be a table.*Reshape your data"),
        ([[1, "a"], [2]], "rows of X are of unlike length"),
        (pd.DataFrame([[1, 2]], columns=["a", 7]), "names that are texts.*such as 7"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "X is not a table that can be"),
        (np.ma.masked_equal([[1, 0]], 0), r"masked array; give X.filled\(np.nan\)"),
    ],
)
def test_what_is_no_table_of_values_is_refused_by_name(table, message):
    with pytest.raises(ValueError, match=message):
        frames.read(table)


def test_other_objects_are_a_type_error_too():
    with pytest.raises(
        TypeError, match="holds a dict, but each argument must be a str"
    ):
        frames.read(np.array([[{"foo": "bar"}, 1.0]], object))
